//! The state of a manager, in shards that each have a lock of their own.
//!
//! ```text
//! allocate ─► free slots of one shard, of the others, then victims: oldest shard first
//! register ─► the shard of the sequence   (blocks of one sequence are in one shard, so that
//! match    ─► the shard of the sequence    a block and those before it are under one lock)
//! drop     ─► the slot's own count; the last guard locks the shard
//! ```

mod publisher;
mod registry;
mod shard;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use dynamo_core::protocol::{KvChange, SequenceHash, Tier};
use dynamo_transfer::Slot;

use crate::below::{Acquired, Below};
use crate::block::{CompleteBlock, MutableBlock, RegisteredBlock};
use crate::evict::{EntryId, Eviction};
use crate::identity::BlockKey;
use crate::manager::{AllocateError, PoolStats, Snapshot};
pub(crate) use publisher::{Publisher, Shared as Published};
pub(crate) use registry::Victim;
pub(crate) use shard::Shard;

/// The slots of one manager.
pub(crate) struct Pool {
    shards: Vec<Arc<Shard>>,
    common: Arc<Common>,
    capacity: usize,
    zero_on_allocate: bool,
    below: Option<Below>,
    /// Where the next allocation begins.
    next: AtomicUsize,
}

/// What all shards share.
pub(crate) struct Common {
    /// Counts uses of blocks: what compares those in one shard with those in others.
    clock: AtomicU64,
    publisher: Arc<Published>,
    evicted_total: AtomicU64,
    hits_total: AtomicU64,
    misses_total: AtomicU64,
}

impl Pool {
    pub(crate) fn new(
        slots: Vec<Slot>,
        publisher: Arc<Published>,
        eviction: &dyn Fn() -> Box<dyn Eviction>,
    ) -> Self {
        let capacity = slots.len();
        let common = Arc::new(Common {
            clock: AtomicU64::new(1),
            publisher,
            evicted_total: AtomicU64::new(0),
            hits_total: AtomicU64::new(0),
            misses_total: AtomicU64::new(0),
        });
        let count = (capacity / BLOCKS_PER_SHARD).clamp(1, SHARDS_MAX);
        let mut slots = slots.into_iter();
        let shards = (0..count)
            .map(|index| {
                let own = capacity / count + usize::from(index < capacity % count);
                let free = slots.by_ref().take(own).collect();
                Arc::new(Shard::new(&common, free, eviction()))
            })
            .collect();
        let next = AtomicUsize::new(0);
        Self { shards, common, capacity, zero_on_allocate: false, below: None, next }
    }

    pub(crate) fn with_below(mut self, below: Option<Below>) -> Self {
        self.below = below;
        self
    }

    pub(crate) fn below(&self) -> Option<&Below> {
        self.below.as_ref()
    }

    pub(crate) fn with_zero_on_allocate(mut self, zero: bool) -> Self {
        self.zero_on_allocate = zero;
        self
    }

    pub(crate) fn allocate(&self, count: usize) -> Result<Vec<MutableBlock>, AllocateError> {
        self.check(count)?;
        let first = self.next.fetch_add(1, Ordering::Relaxed) % self.shards.len();
        let mut slots = Vec::with_capacity(count);
        // Once more, for what others have freed behind the first look.
        for _ in 0..2 {
            self.take_free(first, count, &mut slots);
            self.take_cached(count, &mut slots);
        }
        let home = &self.shards[first];
        if slots.len() < count {
            // Others were faster.
            let available = slots.len();
            home.lock().free.append(&mut slots);
            let capacity = self.capacity;
            return Err(AllocateError { requested: count, available, capacity });
        }
        home.counts.unshared.fetch_add(count, Ordering::Relaxed);
        if self.zero_on_allocate {
            slots.iter_mut().for_each(|slot| slot.fill(0));
        }
        Ok(slots.into_iter().map(|slot| MutableBlock::new(home, slot)).collect())
    }

    pub(crate) fn check(&self, requested: usize) -> Result<(), AllocateError> {
        let of = |shard: &Arc<Shard>| {
            let counts = &shard.counts;
            counts.free.load(Ordering::Relaxed) + counts.cached.load(Ordering::Relaxed)
        };
        let mut available = 0;
        for shard in &self.shards {
            available += of(shard);
            if available >= requested {
                return Ok(());
            }
        }
        Err(AllocateError { requested, available, capacity: self.capacity })
    }

    /// Returns how many slots nothing is in, as it was a moment ago.
    pub(crate) fn free(&self) -> usize {
        self.shards.iter().map(|shard| shard.counts.free.load(Ordering::Relaxed)).sum()
    }

    fn take_free(&self, first: usize, count: usize, slots: &mut Vec<Slot>) {
        let shards = self.shards[first..].iter().chain(&self.shards[..first]);
        for shard in shards {
            if slots.len() == count {
                return;
            }
            if shard.counts.free.load(Ordering::Relaxed) > 0 {
                let mut shard = shard.lock();
                let left = shard.free.len().saturating_sub(count - slots.len());
                slots.extend(shard.free.drain(left..).rev());
                if shard.free.capacity() > 4 * left.max(64) {
                    shard.free.shrink_to(2 * left);
                }
            }
        }
    }

    /// Evicts until there are so many, from the shard whose next victim goes first.
    fn take_cached(&self, count: usize, slots: &mut Vec<Slot>) {
        while slots.len() < count {
            let ranks = self.shards.iter().map(|shard| shard.counts.rank.load(Ordering::Relaxed));
            let (mut oldest, mut next) = ((u64::MAX, 0), u64::MAX);
            for (index, rank) in ranks.enumerate() {
                if rank < oldest.0 {
                    next = oldest.0;
                    oldest = (rank, index);
                } else {
                    next = next.min(rank);
                }
            }
            if oldest.0 == u64::MAX {
                return;
            }
            let shard = &self.shards[oldest.1];
            let mut state = shard.lock();
            let mut evicted = Vec::new();
            while slots.len() < count
                && state.registry.rank().is_some_and(|rank| rank <= next)
                && let Some(victim) = state.registry.evict()
            {
                evicted.push(victim.key.sequence);
                slots.push(match &self.below {
                    Some(below) => below.leave(victim),
                    None => victim.slot,
                });
            }
            self.common.evicted(evicted);
        }
    }

    pub(crate) fn match_prefix(&self, keys: &[BlockKey]) -> Vec<RegisteredBlock> {
        let found = self.find_prefix(keys);
        self.common.hits_total.fetch_add(found.len() as u64, Ordering::Relaxed);
        let misses = (keys.len() - found.len()) as u64;
        self.common.misses_total.fetch_add(misses, Ordering::Relaxed);
        found
    }

    /// Finds blocks like [`match_prefix`](Self::match_prefix), and counts nothing.
    pub(crate) fn find_prefix(&self, keys: &[BlockKey]) -> Vec<RegisteredBlock> {
        self.common.tick(keys.len());
        let mut found = Vec::new();
        if let Some(first) = keys.first() {
            let shard = self.shard(first);
            let mut state = shard.lock();
            for key in keys {
                let Some(entry) = state.registry.find(&key.identity) else { break };
                let slot = state.registry.hold(entry);
                found.push(RegisteredBlock::new(shard, entry, slot, key.identity));
            }
        }
        found
    }

    /// Finds blocks in memory, then in tiers.
    pub(crate) async fn acquire(&self, keys: &[BlockKey]) -> Acquired {
        let mut acquired = Acquired::new(keys.len(), self.match_prefix(keys));
        if let Some(below) = &self.below {
            below.acquire(self, keys, &mut acquired).await;
        }
        acquired
    }

    /// Shares the blocks, each held once; a block that is there already frees the new slot.
    pub(crate) fn register(&self, blocks: Vec<CompleteBlock>) -> Vec<RegisteredBlock> {
        self.common.tick(blocks.len());
        let mut registered = Vec::with_capacity(blocks.len());
        let mut blocks = blocks.into_iter().peekable();
        while let Some(first) = blocks.peek() {
            let shard = self.shard(first.key());
            let chain = first.key().chain;
            let mut state = shard.lock();
            let mut run: Vec<BlockKey> = Vec::new();
            let mut before: Option<(BlockKey, EntryId)> = None;
            while let Some(block) = blocks.next_if(|block| block.key().chain == chain) {
                let (home, key, slot) = block.into_parts();
                home.counts.unshared.fetch_sub(1, Ordering::Relaxed);
                home.counts.complete.fetch_sub(1, Ordering::Relaxed);
                let (entry, slot) = match state.registry.find(&key.identity) {
                    Some(entry) => {
                        state.free.push(slot);
                        (entry, state.registry.hold(entry))
                    }
                    None => {
                        let slot = slot.share();
                        let before = before
                            .filter(|(before, _)| Some(before.identity) == key.parent)
                            .map(|(_, entry)| entry);
                        if run.last().is_some_and(|last| Some(last.identity) != key.parent) {
                            self.common.publisher.stored(&std::mem::take(&mut run), Tier::Host);
                        }
                        run.push(key);
                        (state.registry.insert(&key, slot.clone(), before), slot)
                    }
                };
                before = Some((key, entry));
                registered.push(RegisteredBlock::new(shard, entry, slot, key.identity));
            }
            self.common.publisher.stored(&run, Tier::Host);
        }
        registered
    }

    pub(crate) fn clear(&self) {
        let mut shards: Vec<_> = self.shards.iter().map(|shard| shard.lock()).collect();
        let is_all =
            self.below.is_none() && shards.iter().all(|shard| shard.registry.active() == 0);
        let mut all = 0;
        for shard in &mut shards {
            let mut evicted = Vec::with_capacity(shard.registry.cached());
            while let Some(victim) = shard.registry.evict() {
                shard.free.push(victim.slot);
                evicted.push(victim.key.sequence);
            }
            all += evicted.len();
            if !is_all {
                self.common.evicted(evicted);
            }
        }
        if is_all && all > 0 {
            // Nothing stays: one word says it all.
            self.common.evicted_total.fetch_add(all as u64, Ordering::Relaxed);
            self.common.publisher.publish(KvChange::AllBlocksCleared);
        }
    }

    pub(crate) fn stats(&self) -> PoolStats {
        let shards: Vec<_> = self.shards.iter().map(|shard| shard.lock()).collect();
        let count = |count: fn(&shard::Counts) -> &AtomicUsize| -> usize {
            self.shards.iter().map(|shard| count(&shard.counts).load(Ordering::Relaxed)).sum()
        };
        let complete = count(|counts| &counts.complete);
        PoolStats {
            capacity: self.capacity,
            free: shards.iter().map(|shard| shard.free.len()).sum(),
            mutable: count(|counts| &counts.unshared) - complete,
            complete,
            active: shards.iter().map(|shard| shard.registry.active()).sum(),
            cached: shards.iter().map(|shard| shard.registry.cached()).sum(),
            evicted_total: self.common.evicted_total.load(Ordering::Relaxed),
            hits_total: self.common.hits_total.load(Ordering::Relaxed),
            misses_total: self.common.misses_total.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        // With all locks nothing is published.
        let shards: Vec<_> = self.shards.iter().map(|shard| shard.lock()).collect();
        let stored = shards.iter().flat_map(|shard| shard.registry.parents_first());
        let mut stored: Vec<_> = stored.map(|block| publisher::one_stored(&block)).collect();
        let below = self.below.as_ref().map(|below| below.catalog().lock());
        stored.extend(below.iter().flat_map(|below| below.stored()));
        let (epoch, seq) = self.common.publisher.next();
        Snapshot { epoch, seq, stored }
    }

    /// Returns where the blocks of a sequence are.
    fn shard(&self, key: &BlockKey) -> &Arc<Shard> {
        &self.shards[usize::try_from(key.chain % self.shards.len() as u64).unwrap_or(0)]
    }
}

impl Common {
    /// Takes note that so many blocks are about to be used, each of which has a time of its own.
    fn tick(&self, uses: usize) {
        self.clock.fetch_add(uses as u64, Ordering::Relaxed);
    }

    /// Says which blocks were evicted, of one shard, under its lock.
    fn evicted(&self, sequence_hashes: Vec<SequenceHash>) {
        if !sequence_hashes.is_empty() {
            self.evicted_total.fetch_add(sequence_hashes.len() as u64, Ordering::Relaxed);
            self.publisher.removed(sequence_hashes, Tier::Host);
        }
    }
}

/// Fewer blocks are not worth a lock of their own.
const BLOCKS_PER_SHARD: usize = 256;

/// Several times the threads that allocate and register at once.
const SHARDS_MAX: usize = 16;
