//! A part of a pool behind a lock of its own.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dynamo_transfer::{SharedSlot, Slot};

use super::Common;
use super::registry::Registry;
use crate::evict::{EntryId, Eviction};
use crate::identity::BlockIdentity;

/// The blocks of some sequences, and some of the free ones.
pub(crate) struct Shard {
    pub(super) common: Arc<Common>,
    state: Mutex<State>,
    pub(super) counts: Counts,
}

pub(super) struct State {
    /// The next one to be taken is the last.
    pub(super) free: Vec<Slot>,
    pub(super) registry: Registry,
}

/// What others see without the lock, as it was when the lock was last let go; and the blocks that were
/// taken here and are not shared yet.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) free: AtomicUsize,
    pub(super) cached: AtomicUsize,
    /// [`Registry::rank`]; `u64::MAX` if there is no victim.
    pub(super) rank: AtomicU64,
    pub(super) unshared: AtomicUsize,
    pub(super) complete: AtomicUsize,
}

/// The state of a shard, locked; what others see of it is told when it is let go.
pub(super) struct Locked<'a> {
    state: MutexGuard<'a, State>,
    counts: &'a Counts,
}

impl Shard {
    pub(super) fn new(
        common: &Arc<Common>,
        mut free: Vec<Slot>,
        eviction: Box<dyn Eviction>,
    ) -> Self {
        free.reverse();
        let state = Mutex::new(State { free, registry: Registry::new(eviction) });
        let shard = Self { common: Arc::clone(common), state, counts: Counts::default() };
        drop(shard.lock());
        shard
    }

    pub(super) fn lock(&self) -> Locked<'_> {
        // Nothing panics between two writes under this lock, so a poisoned state is still whole.
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Locked { state, counts: &self.counts }
    }

    /// Takes back a block that nobody shares.
    pub(crate) fn free(&self, slot: Slot, is_complete: bool) {
        self.counts.unshared.fetch_sub(1, Ordering::Relaxed);
        if is_complete {
            self.counts.complete.fetch_sub(1, Ordering::Relaxed);
        }
        self.lock().free.push(slot);
    }

    pub(crate) fn completed(&self) {
        self.counts.complete.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a hold of a block, if the entry still names it.
    pub(crate) fn hold(&self, entry: EntryId, identity: &BlockIdentity) -> Option<SharedSlot> {
        let mut state = self.lock();
        state.registry.names(entry, identity).then(|| state.registry.hold(entry))
    }

    /// Lets go of a block; the last guard of it makes it evictable, and perhaps those before it.
    pub(crate) fn release(&self, entry: EntryId, slot: SharedSlot) {
        // The registry's is the one that is left.
        if slot.release() <= 1 {
            let now = self.common.clock.load(Ordering::Relaxed);
            self.lock().registry.settle(entry, now);
        }
    }
}

impl std::ops::Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl std::ops::DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let Counts { free, cached, rank, .. } = self.counts;
        free.store(self.state.free.len(), Ordering::Relaxed);
        cached.store(self.state.registry.cached(), Ordering::Relaxed);
        rank.store(self.state.registry.rank().unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}
