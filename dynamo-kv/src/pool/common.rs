//! What a manager and its quotas have in common.

use std::sync::{Arc, Weak};

use dynamo_core::protocol::{KvChange, KvCursor, Tier, WorkerId};
use dynamo_transfer::{Slot, SlotList};

use super::home::Notes;
use super::memory::Memory;
use super::partition::{Among, Partition, Quota, Quotas};
use super::publisher::{self, Shared as Published};
use super::registry::Registry;
use super::shard::Shard;
use super::sync::{AtomicU64, AtomicUsize, Mutex};
use super::{Home, Pool};
use crate::below::{self, Below, TiersConfig};
use crate::evict::{EvictionFactory, Levels};
use crate::manager::{PoolStats, Snapshot};

/// The slots of one manager, and what is done with them.
pub(super) struct Common {
    /// What no quota counts, and all free slots.
    pub(super) root: Arc<Partition>,
    pub(super) quotas: Quotas,
    pub(super) notes: Arc<Notes>,
    pub(super) capacity: usize,
    pub(super) zero_on_allocate: bool,
    pub(super) below: Option<Below>,
    /// Where the next allocation of free slots begins.
    pub(super) next: AtomicUsize,
    /// Allocations that came short at their first look, one after the other.
    pub(super) turns: Mutex<()>,
    /// Counts uses of blocks: what compares those in one shard with those in others.
    pub(super) clock: AtomicU64,
    pub(super) publisher: Arc<Published>,
    /// What events call its memory.
    pub(super) tier: Tier,
    eviction: EvictionFactory,
}

/// What a pool is made of.
pub(crate) struct PoolConfig {
    /// With room for `slots`: the blocks, and the spare ones of tiers.
    pub(crate) memory: Memory,
    pub(crate) slots: usize,
    pub(crate) block_bytes: usize,
    pub(crate) blocks: usize,
    pub(crate) publisher: Arc<Published>,
    pub(crate) eviction: EvictionFactory,
    pub(crate) zero_on_allocate: bool,
    pub(crate) tiers: Option<TiersConfig>,
}

impl Common {
    /// Creates it, with the work of its tiers, which begins by [`Below::start`].
    pub(super) fn new(config: PoolConfig) -> (Arc<Self>, Option<below::Work>) {
        let PoolConfig { memory, slots, blocks: capacity, publisher, eviction, tiers, .. } = config;
        let mut work = None;
        let common = Arc::new_cyclic(|common: &Weak<Self>| {
            let notes = Arc::new(Notes::new(slots));
            let home = |device| Home::new(Weak::clone(common), Arc::clone(&notes), device);
            let (tier, mut slots) = match memory {
                Memory::Host(buffer) => {
                    (Tier::Host, buffer.into_slots_of(config.block_bytes, home(None)))
                }
                Memory::Device(memory) => {
                    (Tier::Device, SlotList::of_numbers(slots, home(Some(memory))))
                }
            };
            let spares = slots.split_off(capacity);
            let count = shards_of(capacity);
            let shard = |index: usize| {
                let own = capacity / count + usize::from(index < capacity % count);
                let free = slots.split_off(slots.len() - own);
                Shard::new(free, Levels::new(eviction.clone()), tiers.is_some())
            };
            let shards = (0..count).map(shard).collect();
            let below = tiers.map(|tiers| {
                let (below, its_work) = Below::new(tiers, spares, Arc::clone(&publisher));
                work = Some(its_work);
                below
            });
            Self {
                root: Arc::new(Partition { shards, quota: None }),
                quotas: Quotas::default(),
                notes,
                capacity,
                zero_on_allocate: config.zero_on_allocate,
                below,
                next: AtomicUsize::new(0),
                turns: Mutex::new(()),
                clock: AtomicU64::new(1),
                publisher,
                tier,
                eviction,
            }
        });
        (common, work)
    }

    /// Creates the partition of a quota of so many blocks.
    pub(super) fn partition(&self, blocks: usize) -> dynamo_core::Result<Arc<Partition>> {
        self.notes.know_quotas();
        let shard = |_| {
            let policies = Levels::new(self.eviction.clone());
            // Free slots are those of all.
            Shard::new(SlotList::default(), policies, self.below.is_some())
        };
        let shards = (0..shards_of(blocks)).map(shard).collect();
        self.quotas.add(|number| Partition { shards, quota: Some(Quota::new(number, blocks)) })
    }

    /// Takes back a slot that nobody has, and no quota counts any more.
    pub(super) fn free(&self, slot: Slot<Home>) {
        let shards = &self.root.shards;
        let shard = slot.index() * shards.len() / self.capacity;
        // Slots that were spare have the last numbers.
        shards[shard.min(shards.len() - 1)].lock().free.push(slot);
        self.say_freed();
    }

    /// Has those who wait for slots look again.
    fn say_freed(&self) {
        if let Some(below) = &self.below {
            below.freed();
        }
    }

    fn stats(&self) -> PoolStats {
        let quotas = self.quotas.lock();
        let shards: Vec<_> =
            self.all(&quotas.partitions).shards().map(|(_, shard)| shard.lock()).collect();
        let mut stats = PoolStats { capacity: self.capacity, ..quotas.gone };
        for shard in &shards {
            stats.free += shard.free.len();
            shard.add_to(&mut stats);
        }
        let complete = self.notes.complete(None);
        let unshared = self.capacity - stats.free - stats.active - stats.cached;
        stats.complete = complete.min(unshared);
        stats.mutable = unshared - stats.complete;
        stats
    }

    fn stats_of(&self, partition: &Partition, quota: &Quota) -> PoolStats {
        let shards: Vec<_> = partition.shards.iter().map(Shard::lock).collect();
        let mut stats = PoolStats { capacity: quota.blocks, ..PoolStats::default() };
        shards.iter().for_each(|shard| shard.add_to(&mut stats));
        // Under the locks of its shards no fewer are taken than are there.
        let taken = quota.taken();
        stats.free = quota.blocks - taken;
        let unshared = taken.saturating_sub(stats.active + stats.cached);
        stats.complete = self.notes.complete(Some(quota.number)).min(unshared);
        stats.mutable = unshared - stats.complete;
        stats
    }

    fn snapshot(&self) -> Snapshot {
        let quotas = self.quotas.lock();
        // With all locks nothing is published.
        let shards: Vec<_> =
            self.all(&quotas.partitions).shards().map(|(_, shard)| shard.lock()).collect();
        let stored = shards.iter().flat_map(|shard| shard.registry.parents_first());
        let mut stored: Vec<_> =
            stored.map(|block| publisher::one_stored(&block, self.tier)).collect();
        let below = self.below.as_ref().map(|below| below.catalog().lock());
        stored.extend(below.iter().flat_map(|below| below.stored()));
        if let Some(host) = self.below.as_ref().and_then(Below::host) {
            // It publishes by the same publisher: its number is that of both, while ours are locked.
            let Snapshot { epoch, seq, stored: its } = host.snapshot();
            stored.extend(its);
            return Snapshot { epoch, seq, stored };
        }
        let KvCursor { epoch, next: seq } = self.publisher.next();
        Snapshot { epoch, seq, stored }
    }

    /// Evicts what is cached; `is_whole` if those are all partitions.
    fn clear(&self, among: Among<'_>, is_whole: bool) {
        let mut shards: Vec<_> =
            among.shards().map(|(partition, shard)| (partition, shard.lock())).collect();
        let is_held = shards.iter().any(|(_, shard)| shard.registry.active() > 0);
        let is_alone = self.below.is_none() && !self.publisher.is_shared();
        let is_all = is_whole && is_alone && !is_held;
        let (mut is_any, mut freed) = (false, Vec::new());
        for (partition, shard) in &mut shards {
            let mut evicted = Vec::with_capacity(shard.registry.cached());
            let shard = &mut **shard;
            for (sequence, slot) in shard.registry.evict(usize::MAX, u64::MAX, Registry::sequence) {
                match partition.quota {
                    None => shard.free.push(slot),
                    Some(_) => freed.push(slot),
                }
                evicted.push(sequence);
            }
            is_any |= !evicted.is_empty();
            shard.evicted_total += evicted.len() as u64;
            partition.count_down(evicted.len());
            if !is_all {
                self.publisher.removed(evicted, self.tier);
            }
        }
        if is_all && is_any {
            // Nothing stays: one word says it all.
            self.publisher.publish(KvChange::AllBlocksCleared);
        }
        drop(shards);
        freed.into_iter().for_each(|slot| self.free(slot));
        self.say_freed();
    }

    /// Returns the root and the partitions of quotas.
    pub(super) fn all<'a>(&'a self, quotas: &'a [Arc<Partition>]) -> Among<'a> {
        Among { first: &self.root, others: quotas }
    }
}

impl Pool {
    pub(crate) fn clear(&self) {
        let Self { common, partition } = self;
        if partition.quota.is_some() {
            return common.clear(Among::one(partition), false);
        }
        let quotas = common.quotas.lock();
        common.clear(common.all(&quotas.partitions), true);
    }

    pub(crate) fn stats(&self) -> PoolStats {
        match &self.partition.quota {
            None => self.common.stats(),
            Some(quota) => self.common.stats_of(&self.partition, quota),
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.common.snapshot()
    }

    pub(crate) fn worker(&self) -> WorkerId {
        self.common.publisher.worker()
    }

    /// Returns the number of the next event, at this moment.
    pub(crate) fn cursor(&self) -> KvCursor {
        self.common.publisher.next()
    }
}

/// Returns into how many shards so many blocks are divided.
fn shards_of(blocks: usize) -> usize {
    (blocks / BLOCKS_PER_SHARD).clamp(1, SHARDS_MAX)
}

/// Fewer blocks are not worth a lock of their own.
const BLOCKS_PER_SHARD: usize = if cfg!(dynamo_loom) { 1 } else { 256 };

/// Several times the threads that allocate and register at once.
const SHARDS_MAX: usize = 16;
