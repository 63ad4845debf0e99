//! Where slots for an allocation come from: those that are free, then those of victims.

use dynamo_core::protocol::Tier;

use super::registry::Registry;
use super::shard::Locked;
use super::sync::Ordering;
use super::{Pool, SHARDS_MAX};
use crate::block::MutableBlock;
use crate::manager::AllocateError;

impl Pool {
    pub(crate) fn allocate(&self, count: usize) -> Result<Vec<MutableBlock>, AllocateError> {
        self.check(count)?;
        let mut blocks = Vec::with_capacity(count);
        // Once more, for what others have freed behind the first look.
        for _ in 0..2 {
            self.take_free(count, &mut blocks);
            self.take_cached(count, &mut blocks);
        }
        if blocks.len() < count {
            // Others were faster; what was taken is freed again.
            let (available, capacity) = (blocks.len(), self.capacity);
            return Err(AllocateError { requested: count, available, capacity });
        }
        if self.zero_on_allocate {
            blocks.iter_mut().for_each(|block| block.fill(0));
        }
        Ok(blocks)
    }

    pub(crate) fn check(&self, requested: usize) -> Result<(), AllocateError> {
        let mut available = 0;
        for shard in &self.shards {
            let counts = &shard.counts;
            available +=
                counts.free.load(Ordering::Relaxed) + counts.cached.load(Ordering::Relaxed);
            if available >= requested {
                return Ok(());
            }
        }
        Err(AllocateError { requested, available, capacity: self.capacity })
    }

    /// Returns how many slots nothing is in, as it was a moment ago.
    pub(crate) fn free_count(&self) -> usize {
        self.shards.iter().map(|shard| shard.counts.free.load(Ordering::Relaxed)).sum()
    }

    fn take_free(&self, count: usize, blocks: &mut Vec<MutableBlock>) {
        let is_free = |shard: usize| self.shards[shard].counts.free.load(Ordering::Relaxed) > 0;
        if blocks.len() == count || !(0..self.shards.len()).any(is_free) {
            return;
        }
        let first = self.next.fetch_add(1, Ordering::Relaxed) % self.shards.len();
        for shard in (first..self.shards.len()).chain(0..first).filter(|shard| is_free(*shard)) {
            let mut shard = self.shards[shard].lock();
            let some = shard.free.by_ref().take(count - blocks.len());
            blocks.extend(some.map(MutableBlock::new));
            shard.free.shrink();
            if blocks.len() == count {
                return;
            }
        }
    }

    /// Evicts until there are so many, from the shard whose next victim goes first.
    fn take_cached(&self, count: usize, blocks: &mut Vec<MutableBlock>) {
        while blocks.len() < count
            && let Some((mut shard, limit)) = self.oldest()
        {
            let missing = count - blocks.len();
            let mut evicted = Vec::with_capacity(missing);
            match &self.below {
                None => {
                    let victims = shard.registry.evict(missing, limit, Registry::sequence);
                    for (sequence, slot) in victims {
                        blocks.push(MutableBlock::new(slot));
                        evicted.push(sequence);
                    }
                }
                Some(below) => {
                    for (victim, slot) in shard.registry.evict(missing, limit, Registry::victim) {
                        evicted.push(victim.key.sequence);
                        blocks.push(MutableBlock::new(below.leave(victim, slot)));
                    }
                }
            }
            shard.evicted_total += evicted.len() as u64;
            self.publisher.removed(evicted, Tier::Host);
        }
    }

    /// Locks the shard whose next victim goes first, and says up to which rank its victims do.
    ///
    /// A shard that is busy is passed over if there is another: whoever is in there takes what goes
    /// first from it, or is about to use it.
    fn oldest(&self) -> Option<(Locked<'_>, u64)> {
        let mut ranks = [u64::MAX; SHARDS_MAX];
        ranks.iter_mut().zip(&self.shards).for_each(|(rank, shard)| *rank = shard.rank());
        let mut busy = None;
        loop {
            let (at, rank) = ranks.iter().copied().enumerate().min_by_key(|(_, rank)| *rank)?;
            if rank == u64::MAX {
                // Nobody else has any: now it is worth the wait.
                return busy.map(|at: usize| (self.shards[at].lock(), u64::MAX));
            }
            ranks[at] = u64::MAX;
            if let Some(locked) = self.shards[at].try_lock() {
                return Some((locked, ranks.into_iter().min()?));
            }
            busy = busy.or(Some(at));
        }
    }
}
