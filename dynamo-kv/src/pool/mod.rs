//! The state of a manager, in shards that each have a lock of their own.
//!
//! ```text
//! allocate ─► free slots of one shard, of the others, then victims: oldest shard first
//! register ─► the shard of the sequence   (blocks of one sequence are in one shard, so that
//! match    ─► the shard of the sequence    a block and those before it are under one lock)
//! drop     ─► the shard of the sequence, once for all blocks of a run
//! ```

mod home;
mod publisher;
mod register;
mod registry;
mod shard;
mod sync;
mod take;

use std::sync::{Arc, Weak};

use dynamo_core::protocol::{KvChange, Tier};
use dynamo_transfer::{HostBuffer, SharedSlot, Slot};

use crate::below::{Acquired, Below, TiersConfig};
use crate::block::BlockRun;
use crate::evict::{EntryId, Eviction};
use crate::identity::{BlockIdentity, BlockKey};
use crate::manager::{PoolStats, Snapshot};
use home::Complete;
pub(crate) use home::Home;
pub(crate) use publisher::{Publisher, Shared as Published};
use registry::Registry;
pub(crate) use registry::Victim;
use shard::Shard;
use sync::{AtomicU64, AtomicUsize, Ordering};

/// The slots of one manager.
pub(crate) struct Pool {
    shards: Box<[Shard]>,
    complete: Arc<Complete>,
    capacity: usize,
    zero_on_allocate: bool,
    below: Option<Below>,
    /// Where the next allocation of free slots begins.
    next: AtomicUsize,
    /// Counts uses of blocks: what compares those in one shard with those in others.
    clock: AtomicU64,
    publisher: Arc<Published>,
}

/// What a pool is made of.
pub(crate) struct PoolConfig<'a> {
    /// With room for the blocks, and for the spare slots of tiers.
    pub(crate) buffer: HostBuffer,
    pub(crate) block_bytes: usize,
    pub(crate) blocks: usize,
    pub(crate) publisher: Publisher,
    pub(crate) eviction: &'a dyn Fn() -> Box<dyn Eviction>,
    pub(crate) zero_on_allocate: bool,
    pub(crate) tiers: Option<TiersConfig>,
}

/// Where a registered block is.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    shard: u32,
    entry: EntryId,
}

impl Pool {
    /// Creates a pool; with tiers within a runtime, where their tasks begin.
    pub(crate) fn new(config: PoolConfig<'_>) -> Arc<Self> {
        let PoolConfig { buffer, block_bytes, blocks: capacity, eviction, tiers, .. } = config;
        let publisher = Arc::new(Published::new(config.publisher));
        let mut work = None;
        let pool = Arc::new_cyclic(|pool: &Weak<Self>| {
            let complete = Arc::new(Complete::new(buffer.len() / block_bytes));
            let home = Home::new(Weak::clone(pool), Arc::clone(&complete));
            let mut slots = buffer.into_slots_of(block_bytes, home);
            let spares = slots.split_off(capacity);
            let is_named = tiers.is_some();
            let count = (capacity / BLOCKS_PER_SHARD).clamp(1, SHARDS_MAX);
            let shard = |index: usize| {
                let own = capacity / count + usize::from(index < capacity % count);
                Shard::new(slots.split_off(slots.len() - own), eviction(), is_named)
            };
            let shards = (0..count).map(shard).collect();
            let below = tiers.map(|tiers| {
                let (below, its_work) = Below::new(tiers, spares, Arc::clone(&publisher));
                work = Some(its_work);
                below
            });
            let (next, clock) = (AtomicUsize::new(0), AtomicU64::new(1));
            let zero_on_allocate = config.zero_on_allocate;
            Self { shards, complete, capacity, zero_on_allocate, below, next, clock, publisher }
        });
        if let (Some(below), Some(work)) = (&pool.below, work) {
            below.start(work, &pool);
        }
        pool
    }

    pub(crate) fn below(&self) -> Option<&Below> {
        self.below.as_ref()
    }

    pub(crate) fn match_prefix(self: &Arc<Self>, keys: &[BlockKey]) -> BlockRun {
        self.prefix(keys, true)
    }

    /// Finds blocks as [`match_prefix`](Self::match_prefix) does, and counts neither hits nor misses nor a
    /// use.
    pub(crate) fn find_prefix(self: &Arc<Self>, keys: &[BlockKey]) -> BlockRun {
        self.prefix(keys, false)
    }

    /// Finds blocks in memory, then in tiers.
    pub(crate) async fn acquire(self: &Arc<Self>, keys: &[BlockKey]) -> Acquired {
        let mut acquired = Acquired::new(keys.len(), self.match_prefix(keys));
        if let Some(below) = &self.below {
            below.acquire(self, keys, &mut acquired).await;
        }
        acquired
    }

    fn prefix(self: &Arc<Self>, keys: &[BlockKey], is_counted: bool) -> BlockRun {
        let mut found = BlockRun::default();
        let Some(first) = keys.first() else { return found };
        self.tick(keys.len());
        let index = self.shard_of(first);
        let mut shard = self.shards[index as usize].lock();
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

    /// Takes back a slot that nobody shares.
    fn free(&self, slot: Slot<Home>) {
        let shard = slot.index() * self.shards.len() / self.capacity;
        // Slots that were spare have the last numbers.
        self.shards[shard.min(self.shards.len() - 1)].lock().free.push(slot);
    }

    /// Looks whether a block may be evicted now that a guard of it is gone, and those before it.
    pub(crate) fn settle(&self, Place { shard, entry }: Place) {
        let now = self.clock.load(Ordering::Relaxed);
        self.shards[shard as usize].lock().registry.settle(entry, now);
    }

    /// Takes a hold of a block, if it is there still.
    pub(crate) fn hold(&self, at: Place, identity: &BlockIdentity) -> Option<SharedSlot<Home>> {
        self.shards[at.shard as usize].lock().registry.hold(at.entry, identity)
    }

    /// Returns what names a block that is held and those before it, `count` in all, the first first.
    pub(crate) fn names(&self, last: Place, count: usize) -> Vec<(Place, BlockIdentity)> {
        let Place { shard, entry } = last;
        let names = self.shards[shard as usize].lock().registry.names(entry, count);
        names.into_iter().map(|(entry, identity)| (Place { shard, entry }, identity)).collect()
    }

    pub(crate) fn clear(&self) {
        let mut shards: Vec<_> = self.shards.iter().map(Shard::lock).collect();
        let is_all =
            self.below.is_none() && shards.iter().all(|shard| shard.registry.active() == 0);
        let mut is_any = false;
        for shard in &mut shards {
            let mut evicted = Vec::with_capacity(shard.registry.cached());
            let shard = &mut **shard;
            for (sequence, slot) in shard.registry.evict(usize::MAX, u64::MAX, Registry::sequence) {
                shard.free.push(slot);
                evicted.push(sequence);
            }
            is_any |= !evicted.is_empty();
            shard.evicted_total += evicted.len() as u64;
            if !is_all {
                self.publisher.removed(evicted, Tier::Host);
            }
        }
        if is_all && is_any {
            // Nothing stays: one word says it all.
            self.publisher.publish(KvChange::AllBlocksCleared);
        }
    }

    pub(crate) fn stats(&self) -> PoolStats {
        let mut stats = PoolStats { capacity: self.capacity, ..PoolStats::default() };
        let shards: Vec<_> = self.shards.iter().map(Shard::lock).collect();
        for shard in &shards {
            stats.free += shard.free.len();
            stats.active += shard.registry.active();
            stats.cached += shard.registry.cached();
            stats.evicted_total += shard.evicted_total;
            stats.hits_total += shard.hits_total;
            stats.misses_total += shard.misses_total;
        }
        // Whatever is in no shard.
        let unshared = self.capacity - stats.free - stats.active - stats.cached;
        stats.complete = self.complete.count().min(unshared);
        stats.mutable = unshared - stats.complete;
        stats
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        // With all locks nothing is published.
        let shards: Vec<_> = self.shards.iter().map(Shard::lock).collect();
        let stored = shards.iter().flat_map(|shard| shard.registry.parents_first());
        let mut stored: Vec<_> = stored.map(|block| publisher::one_stored(&block)).collect();
        let below = self.below.as_ref().map(|below| below.catalog().lock());
        stored.extend(below.iter().flat_map(|below| below.stored()));
        let (epoch, seq) = self.publisher.next();
        Snapshot { epoch, seq, stored }
    }

    /// Takes note that so many blocks are about to be used, each of which has a time of its own.
    fn tick(&self, uses: usize) {
        self.clock.fetch_add(uses as u64, Ordering::Relaxed);
    }

    /// Returns where the blocks of a sequence are.
    fn shard_of(&self, key: &BlockKey) -> u32 {
        u32::try_from(key.chain % self.shards.len() as u64).unwrap_or(0)
    }
}

/// Fewer blocks are not worth a lock of their own.
const BLOCKS_PER_SHARD: usize = 256;

/// Several times the threads that allocate and register at once.
const SHARDS_MAX: usize = 16;

#[cfg(all(test, dynamo_loom))]
mod tests;
