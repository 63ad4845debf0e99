//! The state of a manager, in shards that each have a lock of their own.
//!
//! ```text
//! allocate ─► free slots of one shard, of the others, then victims: oldest shard first
//! register ─► the shard of the sequence   (blocks of one sequence are in one shard, so that
//! match    ─► the shard of the sequence    a block and those before it are under one lock)
//! drop     ─► the shard of the sequence, once for all blocks of a run
//! ```
//!
//! A quota has shards of its own, so that it knows its blocks, and no free slots: those are in the
//! manager's. Each is a [`Pool`] over what is [`Common`].
//!
//! Locks are taken in this order: the turns of allocations; the list of quotas; shards, the manager's
//! first; what is below.

mod common;
mod home;
mod memory;
mod partition;
mod publisher;
mod register;
mod registry;
mod shard;
mod sync;
mod take;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use dynamo_core::protocol::Tier;
use dynamo_transfer::SharedSlot;

use crate::below::{Acquired, Below, Otherwise, Sources};
use crate::block::BlockRun;
use crate::evict::{EntryId, RetentionPriority};
use crate::identity::{BlockIdentity, BlockKey};
use common::Common;
pub(crate) use common::PoolConfig;
pub(crate) use home::Home;
pub use memory::BlockMemory;
pub(crate) use memory::{DeviceMemory, Memory, failed};
use partition::Partition;
pub(crate) use publisher::{Publisher, Shared as Published};
pub(crate) use registry::Victim;
use sync::Ordering;

/// The blocks of one manager, or of one of its quotas.
pub(crate) struct Pool {
    common: Arc<Common>,
    /// Where its own blocks are.
    partition: Arc<Partition>,
}

/// Where a registered block is.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    shard: u32,
    entry: EntryId,
}

impl Pool {
    /// Creates a pool; with tiers within a runtime, where their tasks begin.
    pub(crate) fn new(config: PoolConfig) -> Arc<Self> {
        let (common, work) = Common::new(config);
        if let (Some(below), Some(work)) = (&common.below, work) {
            below.start(work);
        }
        let partition = Arc::clone(&common.root);
        Arc::new(Self { common, partition })
    }

    /// Creates a pool of at most so many of the same slots.
    pub(crate) fn with_quota(&self, blocks: usize) -> dynamo_core::Result<Arc<Self>> {
        let capacity = self.common.capacity;
        if self.partition.quota.is_some() {
            return Err(dynamo_core::Error::invalid("a quota of a quota"));
        }
        if blocks == 0 || blocks > capacity {
            let message = format!("a quota of {blocks} of {capacity} blocks");
            return Err(dynamo_core::Error::invalid(message));
        }
        let (common, partition) = (Arc::clone(&self.common), self.common.partition(blocks)?);
        Ok(Arc::new(Self { common, partition }))
    }

    pub(crate) fn below(&self) -> Option<&Below> {
        self.common.below.as_ref()
    }

    pub(crate) fn tier(&self) -> Tier {
        self.common.tier
    }

    pub(crate) fn publisher(&self) -> &Arc<Published> {
        &self.common.publisher
    }

    /// Tells whether a block can be found.
    pub(crate) fn has(&self, key: &BlockKey) -> bool {
        self.partition.shards[self.shard_of(key) as usize].lock().registry.has(&key.identity)
    }

    pub(crate) fn match_prefix(self: &Arc<Self>, keys: &[BlockKey]) -> BlockRun {
        self.prefix(keys, true)
    }

    /// Finds blocks as [`match_prefix`](Self::match_prefix) does, and counts neither hits nor misses nor how
    /// often a block was found; for eviction they are used while they are held.
    pub(crate) fn find_prefix(self: &Arc<Self>, keys: &[BlockKey]) -> BlockRun {
        self.prefix(keys, false)
    }

    /// Returns how many blocks [`match_prefix`](Self::match_prefix) would find, which is no use of them.
    pub(crate) fn count_prefix(&self, keys: &[BlockKey]) -> usize {
        let Some(first) = keys.first() else { return 0 };
        self.partition.shards[self.shard_of(first) as usize].lock().registry.count_prefix(keys)
    }

    /// Finds blocks in memory, then in tiers.
    pub(crate) async fn acquire(self: &Arc<Self>, keys: &[BlockKey]) -> Acquired {
        self.bring(keys, self.match_prefix(keys), |below, _| below.computed()).await
    }

    /// Finds blocks in memory, then in tiers those that are likely to come sooner than by another way, which
    /// takes `per_block` for each; what has not come in the time that takes, or `within`, is left to it.
    pub(crate) async fn acquire_sooner(
        self: &Arc<Self>,
        keys: &[BlockKey],
        per_block: Duration,
        within: Duration,
    ) -> Acquired {
        let otherwise = |below: &Below, count| below.otherwise(count, per_block, within);
        self.bring(keys, self.match_prefix(keys), otherwise).await
    }

    /// Brings up what tiers have, and counts no use of it.
    pub(crate) async fn prefetch(self: &Arc<Self>, keys: &[BlockKey]) -> Sources {
        self.bring(keys, self.find_prefix(keys), |below, _| below.computed()).await.sources
    }

    async fn bring(
        self: &Arc<Self>,
        keys: &[BlockKey],
        found: BlockRun,
        otherwise: impl FnOnce(&Below, usize) -> Otherwise,
    ) -> Acquired {
        let mut acquired = Acquired::new(keys.len(), self.common.tier, found);
        if let Some(below) = &self.common.below {
            let otherwise = otherwise(below, acquired.compute.len());
            below.acquire(self, keys, &mut acquired, otherwise).await;
        }
        acquired
    }

    fn prefix(self: &Arc<Self>, keys: &[BlockKey], is_counted: bool) -> BlockRun {
        let mut found = BlockRun::default();
        let Some(first) = keys.first() else { return found };
        self.tick(keys.len());
        let index = self.shard_of(first);
        let mut shard = self.partition.shards[index as usize].lock();
        for (entry, slots) in shard.registry.hold_prefix(keys, is_counted) {
            found.push(self, Place { shard: index, entry }, slots);
        }
        if is_counted {
            shard.hits_total += found.len() as u64;
            shard.misses_total += (keys.len() - found.len()) as u64;
        }
        drop(shard);
        found
    }

    /// Looks whether a block may be evicted now that a guard of it is gone, and those before it.
    pub(crate) fn settle(&self, Place { shard, entry }: Place) {
        let now = self.common.clock.load(Ordering::Relaxed);
        self.partition.shards[shard as usize].lock().registry.settle(entry, now);
    }

    /// Takes a hold of a block, if it is there still.
    pub(crate) fn hold(&self, at: Place, identity: &BlockIdentity) -> Option<SharedSlot<Home>> {
        self.partition.shards[at.shard as usize].lock().registry.hold(at.entry, identity)
    }

    /// Returns what names a block that is held and those before it, `count` in all, the first first.
    pub(crate) fn names(&self, last: Place, count: usize) -> Vec<(Place, BlockIdentity)> {
        let Place { shard, entry } = last;
        let names = self.partition.shards[shard as usize].lock().registry.names(entry, count);
        names.into_iter().map(|(entry, identity)| (Place { shard, entry }, identity)).collect()
    }

    /// Gives a block that is held and those before it a priority, `count` in all.
    pub(crate) fn prioritize(&self, last: Place, count: usize, priority: RetentionPriority) {
        let mut shard = self.partition.shards[last.shard as usize].lock();
        shard.registry.prioritize(last.entry, count, priority);
    }

    /// Takes note that so many blocks are about to be used, each of which has a time of its own.
    fn tick(&self, uses: usize) {
        self.common.clock.fetch_add(uses as u64, Ordering::Relaxed);
    }

    /// Returns where the blocks of a sequence are.
    fn shard_of(&self, key: &BlockKey) -> u32 {
        u32::try_from(key.chain % self.partition.shards.len() as u64).unwrap_or(0)
    }
}

impl Drop for Pool {
    /// The blocks of a quota go with whoever could find them.
    fn drop(&mut self) {
        if self.partition.quota.is_some() {
            self.clear();
            self.common.quotas.remove(&self.partition);
        }
    }
}

#[cfg(all(test, dynamo_loom))]
mod tests;
