use std::sync::Arc;

use crate::engine::{Admission, Cancellation, Context, Level, Permit};
use crate::error::Result;

/// The requests that an instance is serving: bounded, countable, killable.
#[derive(Debug)]
pub(crate) struct Inflight {
    admission: Admission,
    /// Cancelled when the instance ends what is still running; so is whatever it serves.
    gone: Arc<Cancellation>,
}

impl Inflight {
    pub(super) fn new(admission: Admission) -> Self {
        Self { admission, gone: Cancellation::new() }
    }

    /// Returns a context of the instance's own for the request of `ctx`: ending it is no hang-up of
    /// the client.
    pub(super) fn context(&self, ctx: &Context) -> Context {
        ctx.child_also_of(&self.gone)
    }

    /// Admits a request, perhaps after a wait, or says why not; nothing has started in that case.
    pub(super) async fn admit(&self, ctx: &Context) -> Result<Permit> {
        self.admission.admit(ctx).await
    }

    /// Refuses further requests and those that wait.
    pub(super) fn close(&self) {
        self.admission.close();
    }

    /// Tells whether the instance has ended what was still running: its requests did not hang up.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.has_reached(Level::Killed)
    }

    /// Ends what is running and returns how many requests that were.
    pub(super) fn kill_all(&self) -> usize {
        let running = self.admission.running();
        self.gone.raise(Level::Killed);
        running
    }

    pub(super) fn admission(&self) -> &Admission {
        &self.admission
    }
}
