use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::Shared;
use crate::identity::BlockIdentity;

/// Keeps a slot for whoever reads or writes it, and a place among what is in flight.
pub(super) struct Hold {
    shared: Arc<Shared>,
    slot: u32,
    write: Option<Write>,
    _permit: OwnedSemaphorePermit,
    _running: TaskTrackerToken,
}

/// A store that has not come to its end.
struct Write {
    identity: BlockIdentity,
    generation: u64,
    /// Dropped when the slot is released, so that who waits finds what it has come to.
    _ended: watch::Sender<()>,
}

impl Hold {
    /// Guards a slot that the index says is held.
    pub(super) fn new(
        shared: Arc<Shared>,
        slot: u32,
        permit: OwnedSemaphorePermit,
        running: TaskTrackerToken,
    ) -> Self {
        Self { shared, slot, write: None, _permit: permit, _running: running }
    }

    /// Guards a store that has begun, too.
    pub(super) fn writing(
        mut self,
        identity: BlockIdentity,
        generation: u64,
        ended: watch::Sender<()>,
    ) -> Self {
        self.write = Some(Write { identity, generation, _ended: ended });
        self
    }

    pub(super) fn slot(&self) -> u32 {
        self.slot
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut index = self.shared.index();
        if let Some(Write { identity, generation, .. }) = &self.write {
            index.abandon(identity, *generation);
        }
        index.release(self.slot);
    }
}

/// Memory that the engine moves, with the slot that it moves it to or from: both are given back when
/// the kernel is done with them.
pub(super) struct Held<B> {
    /// Dropped first.
    pub(super) bytes: B,
    pub(super) hold: Hold,
}

impl<B: AsRef<[u8]>> AsRef<[u8]> for Held<B> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

impl<B: AsMut<[u8]>> AsMut<[u8]> for Held<B> {
    fn as_mut(&mut self) -> &mut [u8] {
        self.bytes.as_mut()
    }
}
