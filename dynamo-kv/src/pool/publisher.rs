//! Events, in the order of the changes.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

use dynamo_core::protocol::{KvChange, KvEvent, SequenceHash, StoredBlock, Tier, WorkerId};

use super::registry::Held;
use super::sync::{Mutex, MutexGuard};
use crate::manager::EventSink;

pub(crate) struct Publisher {
    worker: WorkerId,
    epoch: u64,
    seq: u64,
    events: Box<dyn EventSink>,
}

/// One that all shards publish by, each under its own lock.
pub(crate) struct Shared {
    publisher: Mutex<Publisher>,
    /// More than one pool publishes by it.
    is_shared: AtomicBool,
}

impl Publisher {
    pub(crate) fn new(worker: WorkerId, epoch: u64, events: Box<dyn EventSink>) -> Self {
        Self { worker, epoch, seq: 0, events }
    }
}

impl Shared {
    pub(crate) fn new(publisher: Publisher) -> Self {
        Self { publisher: Mutex::new(publisher), is_shared: AtomicBool::new(false) }
    }

    /// Has a second pool publish by it, or no more; tells whether that was so already.
    pub(crate) fn set_shared(&self, is_shared: bool) -> bool {
        self.is_shared.swap(is_shared, Ordering::Relaxed)
    }

    pub(super) fn is_shared(&self) -> bool {
        self.is_shared.load(Ordering::Relaxed)
    }

    /// Says that blocks were stored which follow each other, the first of them `parent`.
    pub(crate) fn stored(
        &self,
        parent: Option<SequenceHash>,
        blocks: Vec<StoredBlock>,
        tier: Tier,
    ) {
        if !blocks.is_empty() {
            self.publish(KvChange::BlockStored { parent, blocks, tier });
        }
    }

    /// Says that blocks are there no more.
    pub(crate) fn removed(&self, sequence_hashes: Vec<SequenceHash>, tier: Tier) {
        if !sequence_hashes.is_empty() {
            self.publish(KvChange::BlockRemoved { sequence_hashes, tier });
        }
    }

    pub(super) fn publish(&self, change: KvChange) {
        let mut publisher = self.lock();
        let Publisher { worker, epoch, seq, .. } = *publisher;
        publisher.seq += 1;
        publisher.events.publish(KvEvent { worker, epoch, seq, change });
    }

    /// Returns the epoch and the number of the next event.
    pub(super) fn next(&self) -> (u64, u64) {
        let publisher = self.lock();
        (publisher.epoch, publisher.seq)
    }

    fn lock(&self) -> MutexGuard<'_, Publisher> {
        self.publisher.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says of one block that it is there.
pub(super) fn one_stored(block: &Held, tier: Tier) -> KvChange {
    let Held { parent, sequence, local } = *block;
    let blocks = vec![StoredBlock { sequence, local }];
    KvChange::BlockStored { parent, blocks, tier }
}
