//! Where slots for an allocation come from: those that are free, then those of victims.

use std::sync::{Arc, PoisonError};

use super::Pool;
use super::partition::Among;
use super::registry::Registry;
use super::sync::Ordering;
use crate::block::MutableBlock;
use crate::manager::{AllocateError, Limit};

impl Pool {
    pub(crate) fn allocate(&self, count: usize) -> Result<Vec<MutableBlock>, AllocateError> {
        self.check(count)?;
        let (mut blocks, mut room) = (Vec::with_capacity(count), 0);
        self.take(count, &mut blocks, &mut room);
        if blocks.len() < count {
            // Others were faster, and may lack what this one has: whoever comes last finds all that those
            // before it gave back.
            let turn = self.common.turns.lock();
            let _turn = turn.unwrap_or_else(PoisonError::into_inner);
            self.take(count, &mut blocks, &mut room);
            if blocks.len() < count {
                return Err(self.give_back(count, blocks, room));
            }
        }
        if self.common.zero_on_allocate {
            blocks.iter_mut().for_each(|block| block.fill(0));
        }
        Ok(blocks)
    }

    /// Allocates so many blocks, or as many as there are.
    pub(crate) fn allocate_up_to(&self, count: usize) -> Vec<MutableBlock> {
        let blocks = self.allocate(count);
        let blocks = blocks.or_else(|error| self.allocate(error.available.min(count)));
        blocks.unwrap_or_default()
    }

    /// Allocates so many blocks, or as many as there are, once those that have to go down have gone.
    pub(crate) async fn reserve_up_to(self: &Arc<Self>, count: usize) -> Vec<MutableBlock> {
        let Some(below) = self.below() else { return self.allocate_up_to(count) };
        let blocks = match below.reserve(self, count).await {
            Err(error) => below.reserve(self, error.available.min(count)).await,
            blocks => blocks,
        };
        blocks.unwrap_or_default()
    }

    /// Takes what there is until there are so many; `room` are those of them that the quota has room for
    /// and that are not there yet.
    fn take(&self, count: usize, blocks: &mut Vec<MutableBlock>, room: &mut usize) {
        *room += self.partition.count_up(count - blocks.len() - *room);
        // What it has no room for takes the place of its own.
        self.take_own(count - *room, blocks);
        let all = blocks.len() + *room;
        self.take_free(all, blocks);
        self.take_cached(all, blocks);
        *room = all - blocks.len();
        self.common.notes.set_quota(blocks.iter().map(MutableBlock::slot), self.number());
    }

    /// Frees what was taken, and says what there is too little of.
    fn give_back(&self, count: usize, blocks: Vec<MutableBlock>, room: usize) -> AllocateError {
        self.partition.count_down(room);
        let limit = if room > 0 { Limit::Pool } else { self.limit() };
        self.lacks(count, blocks.len(), limit)
    }

    pub(crate) fn check(&self, requested: usize) -> Result<(), AllocateError> {
        let available = self.available(requested);
        if let Some(quota) = &self.partition.quota {
            let own = quota.blocks - quota.taken() + self.partition.cached();
            if own < requested && own <= available {
                return Err(self.lacks(requested, own, Limit::Quota));
            }
        }
        if available < requested {
            return Err(self.lacks(requested, available, Limit::Pool));
        }
        Ok(())
    }

    /// Returns how many slots an allocation gets without evicting, as it was a moment ago.
    pub(crate) fn free_count(&self) -> usize {
        let room = self.partition.quota.as_ref().map(|quota| quota.blocks - quota.taken());
        self.common.root.free().min(room.unwrap_or(usize::MAX))
    }

    /// Returns how many blocks of all partitions are free or cached, or as many as suffice.
    fn available(&self, enough: usize) -> usize {
        let root = &self.common.root;
        let mut available = 0;
        for shard in &root.shards {
            let counts = &shard.counts;
            available +=
                counts.free.load(Ordering::Relaxed) + counts.cached.load(Ordering::Relaxed);
            if available >= enough {
                return available;
            }
        }
        if !self.common.quotas.is_empty() {
            let quotas = self.common.quotas.partitions();
            available += quotas.iter().map(|partition| partition.cached()).sum::<usize>();
        }
        available
    }

    fn take_free(&self, count: usize, blocks: &mut Vec<MutableBlock>) {
        let shards = &self.common.root.shards;
        let is_free = |shard: usize| shards[shard].counts.free.load(Ordering::Relaxed) > 0;
        if blocks.len() == count || !(0..shards.len()).any(is_free) {
            return;
        }
        let first = self.common.next.fetch_add(1, Ordering::Relaxed) % shards.len();
        for shard in (first..shards.len()).chain(0..first).filter(|shard| is_free(*shard)) {
            let mut shard = shards[shard].lock();
            let some = shard.free.by_ref().take(count - blocks.len());
            blocks.extend(some.map(MutableBlock::new));
            shard.free.shrink();
            if blocks.len() == count {
                return;
            }
        }
    }

    /// Evicts blocks of all partitions until there are so many.
    fn take_cached(&self, count: usize, blocks: &mut Vec<MutableBlock>) {
        if blocks.len() == count {
            return;
        }
        let quotas = (!self.common.quotas.is_empty()).then(|| self.common.quotas.partitions());
        let quotas = quotas.as_ref().map_or(&[][..], |quotas| &quotas[..]);
        let evicted = |from: &super::Partition, count| from.count_down(count);
        self.evict(self.common.all(quotas), count, blocks, evicted);
    }

    /// Evicts blocks of its own until there are so many, which its quota goes on counting.
    fn take_own(&self, count: usize, blocks: &mut Vec<MutableBlock>) {
        self.evict(Among::one(&self.partition), count, blocks, |_, _| ());
    }

    /// Evicts until there are so many, from the shard whose next victim goes first; says how many from
    /// which partition.
    fn evict(
        &self,
        among: Among<'_>,
        count: usize,
        blocks: &mut Vec<MutableBlock>,
        say: impl Fn(&super::Partition, usize),
    ) {
        while blocks.len() < count
            && let Some((from, mut shard, limit)) = among.oldest()
        {
            let missing = count - blocks.len();
            let mut evicted = Vec::with_capacity(missing);
            match &self.common.below {
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
            say(from, evicted.len());
            shard.evicted_total += evicted.len() as u64;
            self.common.publisher.removed(evicted, self.common.tier);
        }
    }

    /// Returns the number of its quota, or 0.
    pub(super) fn number(&self) -> u32 {
        self.partition.quota.as_ref().map_or(0, |quota| quota.number)
    }

    /// Returns what bounds it first.
    fn limit(&self) -> Limit {
        self.partition.quota.as_ref().map_or(Limit::Pool, |_| Limit::Quota)
    }

    fn lacks(&self, requested: usize, available: usize, limit: Limit) -> AllocateError {
        let quota = self.partition.quota.as_ref().filter(|_| limit == Limit::Quota);
        let capacity = quota.map_or(self.common.capacity, |quota| quota.blocks);
        AllocateError { requested, available, capacity, limit }
    }
}
