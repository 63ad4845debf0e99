//! What lends a manager's blocks to others: all that names them, and their removal.

use dynamo_core::protocol::Tier;

use super::Pool;
use super::publisher::Watcher;
use super::registry::Removed;
use super::shard::Shard;
use crate::identity::BlockKey;

impl Pool {
    /// Tells `watcher` of what changes from now on, instead of any before.
    pub(crate) fn watch(&self, watcher: Watcher) {
        // With all locks nothing is published, nor about to be without its keys.
        let _shards: Vec<_> = self.partition.shards.iter().map(Shard::lock).collect();
        self.common.publisher.watch(self.number(), watcher);
    }

    /// Returns what is there and in which tier, parents before what follows them, and what `also` makes
    /// while nothing changes.
    pub(crate) fn keys_while<T>(&self, also: impl FnOnce() -> T) -> (Vec<(BlockKey, Tier)>, T) {
        let shards: Vec<_> = self.partition.shards.iter().map(Shard::lock).collect();
        let below = self.common.below.as_ref().map(|below| below.catalog().lock());
        let here = shards.iter().flat_map(|shard| shard.registry.keys());
        let mut keys: Vec<_> = here.map(|key| (key, self.common.tier)).collect();
        keys.extend(below.iter().flat_map(|below| below.keys()));
        (keys, also())
    }

    /// Removes blocks that nobody holds and that nothing follows but what is removed too; returns which
    /// of them were there, and how many are there still.
    pub(crate) fn remove(&self, keys: &[BlockKey]) -> (Vec<bool>, usize) {
        let (mut was_there, mut kept) = (vec![false; keys.len()], 0);
        // What follows a block goes before it.
        for (key, was_there) in keys.iter().zip(&mut was_there).rev() {
            let Self { common, partition } = self;
            let mut shard = partition.shards[self.shard_of(key) as usize].lock();
            match shard.registry.remove(&key.identity) {
                Removed::Absent => {}
                Removed::Kept => kept += 1,
                Removed::Gone(slot) => {
                    common.publisher.removed(vec![key.sequence], common.tier);
                    partition.count_down(1);
                    // Free slots are in other shards.
                    drop(shard);
                    common.free(slot);
                    *was_there = true;
                }
            }
        }
        (was_there, kept)
    }
}
