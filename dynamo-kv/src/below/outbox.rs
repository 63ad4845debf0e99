//! Blocks on their way down: evicted ones in their own memory, and registered ones that are held.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use dynamo_transfer::{Slot, SlotList};
use tokio::sync::Notify;

use crate::block::{DeviceBlock, RegisteredBlock};
use crate::identity::BlockIdentity;
use crate::pool::Home;

/// Exchanges slots of blocks that leave for spare ones, so that nothing is copied and nobody waits.
pub(super) struct Outbox {
    state: Mutex<State>,
    /// Registered blocks that are held until they are down.
    held: AtomicUsize,
    returned: Notify,
}

struct State {
    spares: SlotList<Home>,
    leaving: HashMap<BlockIdentity, Weak<Leaving>>,
}

/// A block that is held until it is down.
pub(crate) struct Offered {
    /// `None` only while being dropped.
    block: Option<RegisteredBlock>,
    outbox: Weak<Outbox>,
}

/// A block that was evicted and is on its way down; its slot is spare when the last holder has gone.
pub(crate) struct Leaving {
    identity: BlockIdentity,
    /// `None` only while being dropped.
    slot: Option<Slot<Home>>,
    outbox: Weak<Outbox>,
}

impl Outbox {
    pub(super) fn new(spares: SlotList<Home>) -> Arc<Self> {
        let state = Mutex::new(State { spares, leaving: HashMap::new() });
        Arc::new(Self { state, held: AtomicUsize::new(0), returned: Notify::new() })
    }

    /// Takes a block's slot for a spare one; fails with the slot if none is spare.
    pub(super) fn exchange(
        self: &Arc<Self>,
        identity: BlockIdentity,
        slot: Slot<Home>,
    ) -> Result<(Slot<Home>, Arc<Leaving>), Slot<Home>> {
        let mut state = self.lock();
        let Some(spare) = state.spares.pop() else { return Err(slot) };
        let leaving = Leaving { identity, slot: Some(slot), outbox: Arc::downgrade(self) };
        let leaving = Arc::new(leaving);
        state.leaving.insert(identity, Arc::downgrade(&leaving));
        Ok((spare, leaving))
    }

    /// Holds a registered block.
    pub(super) fn hold(self: &Arc<Self>, block: RegisteredBlock) -> Arc<Offered> {
        self.held.fetch_add(1, Ordering::Relaxed);
        Arc::new(Offered { block: Some(block), outbox: Arc::downgrade(self) })
    }

    /// Returns how many registered blocks are held.
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Returns a block that has not gone yet.
    pub(super) fn find(&self, identity: &BlockIdentity) -> Option<Arc<Leaving>> {
        self.lock().leaving.get(identity)?.upgrade()
    }

    pub(super) fn spares(&self) -> usize {
        self.lock().spares.len()
    }

    /// Waits until a slot is spare again, or a block held no more, or
    /// [`say_returned`](Self::say_returned) says so; for one waiter at a time.
    pub(super) async fn returned(&self) {
        self.returned.notified().await;
    }

    /// Wakes whoever waits, or will.
    pub(super) fn say_returned(&self) {
        self.returned.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Offered {
    pub(crate) fn device(&self) -> Option<DeviceBlock<'_>> {
        self.block.as_ref().and_then(RegisteredBlock::device)
    }
}

impl Leaving {
    pub(crate) fn device(&self) -> Option<DeviceBlock<'_>> {
        let slot = self.slot.as_ref()?;
        DeviceBlock::of(slot.home(), slot.index())
    }
}

impl AsRef<[u8]> for Offered {
    fn as_ref(&self) -> &[u8] {
        self.block.as_ref().expect("the block is let go only in drop")
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        // Whoever is woken finds it let go.
        drop(self.block.take());
        let Some(outbox) = self.outbox.upgrade() else { return };
        outbox.held.fetch_sub(1, Ordering::Relaxed);
        outbox.say_returned();
    }
}

impl AsRef<[u8]> for Leaving {
    fn as_ref(&self) -> &[u8] {
        self.slot.as_deref().expect("the slot is given up only in drop")
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let (Some(slot), Some(outbox)) = (self.slot.take(), self.outbox.upgrade()) else { return };
        let mut state = outbox.lock();
        // It may have come up and left again meanwhile: then the later one is there.
        if state.leaving.get(&self.identity).is_some_and(|known| known.strong_count() == 0) {
            state.leaving.remove(&self.identity);
        }
        state.spares.push(slot);
        drop(state);
        outbox.say_returned();
    }
}
