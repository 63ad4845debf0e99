//! What every slot of a pool leads to.

use std::sync::{Arc, Weak};

use dynamo_transfer::Slot;

use super::Pool;
use super::sync::{AtomicU8, Ordering};

/// Where the slots of one manager come from and go back to.
pub(crate) struct Home {
    pool: Weak<Pool>,
    complete: Arc<Complete>,
}

/// Which slots are of blocks that are full and not shared yet.
///
/// A byte each, for who writes it waits for nobody; counting them, which is rare, looks at all.
pub(super) struct Complete(Box<[AtomicU8]>);

impl Home {
    pub(super) fn new(pool: Weak<Pool>, complete: Arc<Complete>) -> Self {
        Self { pool, complete }
    }

    /// Tells whether slots of this home are that pool's.
    pub(super) fn is_of(&self, pool: &Arc<Pool>) -> bool {
        std::ptr::eq(self.pool.as_ptr(), Arc::as_ptr(pool))
    }

    /// Takes back a slot that nobody shares.
    pub(crate) fn free(slot: Slot<Self>) {
        // If its pool is gone, so is the memory with the last of the slots.
        if let Some(pool) = slot.home().pool.upgrade() {
            pool.free(slot);
        }
    }

    /// Says whether the block of a slot is complete and not shared yet.
    pub(crate) fn set_complete(slot: &Slot<Self>, is_complete: bool) {
        slot.home().complete.0[slot.index()].store(u8::from(is_complete), Ordering::Relaxed);
    }
}

impl Complete {
    pub(super) fn new(slots: usize) -> Self {
        Self((0..slots).map(|_| AtomicU8::new(0)).collect())
    }

    pub(super) fn count(&self) -> usize {
        self.0.iter().map(|slot| usize::from(slot.load(Ordering::Relaxed))).sum()
    }
}
