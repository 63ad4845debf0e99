use dynamo_core::protocol::{KvEvent, WorkerId};

use crate::router::KvRouter;

/// Where the events of a publisher go: a [`KvRouter`], or whatever is called with them.
pub trait Sink {
    /// Takes in what happened next; must not block.
    fn take(&mut self, event: KvEvent);

    /// Tells whether `worker` is to be told of anew, all of it: what was told before is forgotten.
    ///
    /// It is asked for each rank that was heard of, about once a second.
    fn lacks(&self, worker: WorkerId) -> bool {
        let _ = worker;
        false
    }
}

impl<F: FnMut(KvEvent)> Sink for F {
    fn take(&mut self, event: KvEvent) {
        self(event);
    }
}

/// Lacks a worker that it has forgotten and that is listed again.
impl Sink for KvRouter {
    fn take(&mut self, event: KvEvent) {
        self.apply(&event);
    }

    fn lacks(&self, worker: WorkerId) -> bool {
        // What comes from here has no holes: who is known in part was forgotten meanwhile.
        self.knows(worker) && !self.intake().has_whole(worker)
    }
}
