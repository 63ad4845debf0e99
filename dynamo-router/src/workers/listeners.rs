use std::fmt;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use dynamo_core::protocol::WorkerId;

/// Who is told that the load of a worker has changed.
#[derive(Default)]
pub(super) struct Listeners(ArcSwap<Vec<Listener>>);

type Listener = Arc<dyn Fn(WorkerId, Change) + Send + Sync>;

/// How a worker's load has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// This router has booked more.
    More,
    /// There may be less.
    Less,
}

impl Listeners {
    /// Has `listener` told of changes for as long as what this returns is kept.
    pub(super) fn add(self: &Arc<Self>, listener: Listener) -> ReleaseListener {
        self.0.rcu(|all| all.iter().chain([&listener]).cloned().collect::<Vec<_>>());
        ReleaseListener { listener, all: Arc::downgrade(self) }
    }

    pub(super) fn tell(&self, worker: WorkerId, change: Change) {
        self.0.load().iter().for_each(|listener| listener(worker, change));
    }
}

/// A listener that a router tells of load that is released
/// ([`KvRouter::on_release`](crate::KvRouter::on_release)); dropping it removes the listener.
///
/// A call that is under way on another thread then is not waited for.
#[must_use = "dropping it removes the listener"]
pub struct ReleaseListener {
    listener: Listener,
    all: Weak<Listeners>,
}

impl Drop for ReleaseListener {
    fn drop(&mut self) {
        let Some(all) = self.all.upgrade() else { return };
        let is_other = |other: &&Listener| !Arc::ptr_eq(other, &self.listener);
        all.0.rcu(|all| all.iter().filter(is_other).cloned().collect::<Vec<_>>());
    }
}

impl fmt::Debug for ReleaseListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReleaseListener").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use dynamo_core::protocol::InstanceId;

    use super::*;

    #[test]
    fn a_listener_is_told_until_it_is_dropped_and_no_other_goes_with_it() {
        let (all, told) = (Arc::new(Listeners::default()), Arc::new(Mutex::new(Vec::new())));
        let listen = |name| {
            let told = Arc::clone(&told);
            all.add(Arc::new(move |_, change| told.lock().unwrap().push((name, change))))
        };
        let worker = WorkerId::new(InstanceId(1));
        let (first, second) = (listen("first"), listen("second"));
        all.tell(worker, Change::More);
        drop(first);
        all.tell(worker, Change::Less);
        assert_eq!(Arc::strong_count(&told), 2, "what it has caught is gone with it");
        drop(second);
        all.tell(worker, Change::Less);
        let expected =
            [("first", Change::More), ("second", Change::More), ("second", Change::Less)];
        assert_eq!(*told.lock().unwrap(), expected);
        let orphan = listen("orphan");
        drop(all);
        drop(orphan);
    }
}
