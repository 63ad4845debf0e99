//! The way down to one tier.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::config::{Offload, TierConfig};
use super::{Offered, TierReport};
use crate::identity::BlockKey;
use crate::manager::BlockManager;
use crate::tier::{Outgoing, Tier};

/// A tier and the queue of blocks that wait for it.
pub(super) struct Level {
    config: TierConfig,
    queue: mpsc::Sender<(BlockKey, Outgoing)>,
    /// Places in the queue that are for blocks that are evicted.
    queue_blocks: usize,
    dropped_total: AtomicU64,
}

/// What takes blocks from the queue.
pub(super) struct Work {
    tier: Arc<dyn Tier>,
    queue: mpsc::Receiver<(BlockKey, Outgoing)>,
}

impl Level {
    pub(super) fn new(config: TierConfig, queue_blocks: usize) -> (Self, Work) {
        // As many places for blocks that are evicted, of which there are no more than spare slots.
        let (sender, queue) = mpsc::channel(2 * queue_blocks);
        let work = Work { tier: Arc::clone(&config.tier), queue };
        (Self { config, queue: sender, queue_blocks, dropped_total: AtomicU64::new(0) }, work)
    }

    pub(super) fn tier(&self) -> &dyn Tier {
        &*self.config.tier
    }

    /// Returns the pool of host memory that the tier is.
    pub(super) fn host(&self) -> Option<&BlockManager> {
        self.config.host.as_ref()
    }

    /// Tells whether the tier is a pool of host memory that has a block; of other tiers the catalog
    /// knows.
    pub(super) fn has_in_host(&self, key: &BlockKey) -> bool {
        self.host().is_some_and(|host| host.pool().has(key))
    }

    pub(super) fn offload(&self) -> Offload {
        self.config.offload
    }

    pub(super) fn is_exclusive(&self) -> bool {
        self.config.is_exclusive
    }

    /// Queues a block that was evicted; without room it is lost to this tier.
    pub(super) fn push(&self, key: BlockKey, block: Outgoing) {
        if self.queue.try_send((key, block)).is_err() {
            self.count_dropped();
        }
    }

    /// Queues a block that is held, if there is room beside that for blocks that are evicted.
    pub(super) fn offer(&self, key: &BlockKey, hold: impl FnOnce() -> Arc<Offered>) {
        if self.queue.capacity() > self.queue_blocks
            && let Ok(place) = self.queue.try_reserve()
        {
            place.send((*key, Outgoing::offered(hold())));
        }
    }

    pub(super) fn count_dropped(&self) {
        self.dropped_total.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn report(&self) -> TierReport {
        TierReport {
            kind: self.tier().kind(),
            stats: self.tier().stats(),
            queued: self.queue.max_capacity() - self.queue.capacity(),
            offload_dropped_total: self.dropped_total.load(Ordering::Relaxed),
        }
    }
}

impl Work {
    /// Stores what comes, until nothing comes any more; when it is closed, what is queued is the rest.
    pub(super) async fn run(mut self, closing: CancellationToken) {
        let mut batches = FuturesUnordered::new();
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                () = closing.cancelled(), if !self.queue.is_closed() => self.queue.close(),
                count = self.queue.recv_many(&mut batch, BATCH_BLOCKS), if batches.len() < BATCHES => {
                    if count == 0 {
                        break;
                    }
                    batches.push(store(&*self.tier, batch));
                }
                Some(()) = batches.next() => {}
            }
        }
        while batches.next().await.is_some() {}
    }
}

async fn store(tier: &dyn Tier, batch: Vec<(BlockKey, Outgoing)>) {
    for outcome in tier.store(batch).await {
        if let Err(error) = outcome {
            // The tier counts it.
            tracing::debug!(%error, tier = ?tier.kind(), "a block did not go down");
        }
    }
}

/// Stored by one call.
pub(super) const BATCH_BLOCKS: usize = 64;

/// While one batch comes to its end the next has begun.
const BATCHES: usize = 2;
