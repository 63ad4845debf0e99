//! What every slot of a pool leads to.

use std::sync::{Arc, OnceLock, Weak};

use dynamo_transfer::Slot;

use super::common::Common;
use super::memory::DeviceMemory;
use super::sync::{AtomicU8, AtomicU32, Ordering};

/// Where the slots of one manager come from and go back to.
pub(crate) struct Home {
    common: Weak<Common>,
    notes: Arc<Notes>,
    /// Where the bytes of slots are that have none themselves.
    device: Option<Arc<DeviceMemory>>,
}

/// What is known of slots that are in no shard.
///
/// Who writes of a slot waits for nobody; counting, which is rare, looks at all.
pub(super) struct Notes {
    /// Whether a slot is of a block that is full and not shared yet.
    complete: Box<[AtomicU8]>,
    /// The number of the quota that each slot was taken for last, or 0; there once there is a quota.
    quotas: OnceLock<Box<[AtomicU32]>>,
}

impl Home {
    pub(super) fn new(
        common: Weak<Common>,
        notes: Arc<Notes>,
        device: Option<Arc<DeviceMemory>>,
    ) -> Self {
        Self { common, notes, device }
    }

    /// Returns the device memory that its slots number.
    pub(crate) fn device(&self) -> Option<&Arc<DeviceMemory>> {
        self.device.as_ref()
    }

    /// Tells whether a slot is of that manager, and was taken for that quota.
    pub(super) fn is_of(slot: &Slot<Self>, common: &Arc<Common>, quota: u32) -> bool {
        let home = slot.home();
        std::ptr::eq(home.common.as_ptr(), Arc::as_ptr(common)) && home.notes.quota(slot) == quota
    }

    /// Takes back a slot that nobody shares.
    pub(crate) fn free(slot: Slot<Self>) {
        // If its pool is gone, so is the memory with the last of the slots.
        if let Some(common) = slot.home().common.upgrade() {
            let quota = slot.home().notes.quota(&slot);
            if quota != 0 {
                common.quotas.count_down(quota, 1);
            }
            common.free(slot);
        }
    }

    /// Says whether the block of a slot is complete and not shared yet.
    pub(crate) fn set_complete(slot: &Slot<Self>, is_complete: bool) {
        slot.home().notes.complete[slot.index()].store(u8::from(is_complete), Ordering::Relaxed);
    }
}

impl Notes {
    pub(super) fn new(slots: usize) -> Self {
        let complete = (0..slots).map(|_| AtomicU8::new(0)).collect();
        Self { complete, quotas: OnceLock::new() }
    }

    /// Makes room for the numbers of quotas.
    pub(super) fn know_quotas(&self) {
        let slots = self.complete.len();
        self.quotas.get_or_init(|| (0..slots).map(|_| AtomicU32::new(0)).collect());
    }

    /// Takes note for which quota slots were taken.
    pub(super) fn set_quota<'a>(&self, slots: impl Iterator<Item = &'a Slot<Home>>, quota: u32) {
        // Where there are no numbers yet, nobody has had a slot for a quota.
        let Some(quotas) = self.quotas.get() else { return };
        slots.for_each(|slot| quotas[slot.index()].store(quota, Ordering::Relaxed));
    }

    fn quota(&self, slot: &Slot<Home>) -> u32 {
        self.quotas.get().map_or(0, |quotas| quotas[slot.index()].load(Ordering::Relaxed))
    }

    /// Returns how many blocks are complete, of all or of one quota.
    pub(super) fn complete(&self, quota: Option<u32>) -> usize {
        let is_counted = |at: usize| {
            let Some(quota) = quota else { return true };
            let its = self.quotas.get().map_or(0, |quotas| quotas[at].load(Ordering::Relaxed));
            its == quota
        };
        let complete = self.complete.iter().enumerate();
        let complete = complete.filter(|(_, slot)| slot.load(Ordering::Relaxed) != 0);
        complete.filter(|(at, _)| is_counted(*at)).count()
    }
}
