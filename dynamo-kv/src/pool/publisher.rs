//! Events, in the order of the changes.

use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;

use dynamo_core::protocol::{
    KvChange, KvCursor, KvEvent, SequenceHash, StoredBlock, Tier, WorkerId,
};

use super::registry::Held;
use super::sync::{AtomicUsize, Mutex, MutexGuard, Ordering};
use crate::identity::BlockKey;
use crate::manager::EventSink;

pub(crate) struct Publisher {
    worker: WorkerId,
    epoch: u64,
    seq: u64,
    events: Box<dyn EventSink>,
    watcher: Option<Watcher>,
}

/// Told of every change, with all that names the blocks that were stored; called under the manager's
/// locks, as an [`EventSink`] is.
pub(crate) type Watcher = Box<dyn Fn(&KvChange, &[BlockKey]) + Send>;

/// One that all shards publish by, each under its own lock.
pub(crate) struct Shared {
    publisher: Mutex<Publisher>,
    /// More than one pool publishes by it.
    is_shared: AtomicBool,
    /// Whose blocks the watcher wants the keys of: the number of the quota, and one more; 0 for none.
    watched: AtomicUsize,
}

impl Publisher {
    pub(crate) fn new(worker: WorkerId, epoch: u64, events: Box<dyn EventSink>) -> Self {
        Self { worker, epoch, seq: 0, events, watcher: None }
    }
}

impl Shared {
    pub(crate) fn new(publisher: Publisher) -> Self {
        Self {
            publisher: Mutex::new(publisher),
            is_shared: AtomicBool::new(false),
            watched: AtomicUsize::new(0),
        }
    }

    /// Has a second pool publish by it, or no more; tells whether that was so already.
    pub(crate) fn set_shared(&self, is_shared: bool) -> bool {
        self.is_shared.swap(is_shared, Ordering::Relaxed)
    }

    pub(super) fn is_shared(&self) -> bool {
        self.is_shared.load(Ordering::Relaxed)
    }

    /// Tells `watcher` of what changes from now on, instead of any before, with the keys of what is
    /// stored under one quota.
    pub(super) fn watch(&self, quota: u32, watcher: Watcher) {
        self.lock().watcher = Some(watcher);
        self.watched.store(quota as usize + 1, Ordering::Relaxed);
    }

    /// Tells whether keys of what is stored under a quota are wanted; whoever asks has a lock that nobody
    /// watches it without.
    pub(super) fn is_watched(&self, quota: u32) -> bool {
        self.watched.load(Ordering::Relaxed) == quota as usize + 1
    }

    /// Says that blocks were stored which follow each other, the first of them `parent`; `keys` are
    /// theirs if it [is watched](Self::is_watched).
    pub(crate) fn stored(
        &self,
        parent: Option<SequenceHash>,
        blocks: Vec<StoredBlock>,
        tier: Tier,
        keys: &[BlockKey],
    ) {
        if !blocks.is_empty() {
            self.say(KvChange::BlockStored { parent, blocks, tier }, keys);
        }
    }

    /// Says that blocks are there no more.
    pub(crate) fn removed(&self, sequence_hashes: Vec<SequenceHash>, tier: Tier) {
        if !sequence_hashes.is_empty() {
            self.publish(KvChange::BlockRemoved { sequence_hashes, tier });
        }
    }

    pub(super) fn publish(&self, change: KvChange) {
        self.say(change, &[]);
    }

    fn say(&self, change: KvChange, keys: &[BlockKey]) {
        let mut publisher = self.lock();
        let Publisher { worker, epoch, seq, .. } = *publisher;
        publisher.seq += 1;
        if let Some(watcher) = &publisher.watcher {
            watcher(&change, keys);
        }
        publisher.events.publish(KvEvent { worker, epoch, seq, change });
    }

    /// Returns whose events it publishes.
    pub(super) fn worker(&self) -> WorkerId {
        self.lock().worker
    }

    /// Returns the epoch and the number of the next event.
    pub(super) fn next(&self) -> KvCursor {
        let Publisher { epoch, seq: next, .. } = *self.lock();
        KvCursor { epoch, next }
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
