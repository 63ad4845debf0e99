//! What groups need of a prefix, brought up from the tiers below their managers.

use std::ops::Range;

use dynamo_core::protocol::BlockSize;
use futures::future::join_all;

use super::{Attention, BlockGroups, Found, Group, GroupedPrefix, Looked};
use crate::block::RegisteredBlock;
use crate::identity::BlockKey;

impl BlockGroups {
    /// Returns the longest run of `keys`, from the first on, of which every group has what it reads, in
    /// memory or in a tier below its manager, from where it is loaded first, as by
    /// [`BlockManager::acquire`](crate::BlockManager::acquire).
    ///
    /// Groups that attend to all tokens come first, and a window loads no more than what it reads of the
    /// prefix that they have. Windows together take no longer than the longest
    /// [`acquire_timeout`](crate::TiersConfig::acquire_timeout) of a manager; then what is in memory stands.
    ///
    /// # Cancel safety
    /// As of [`BlockManager::acquire`](crate::BlockManager::acquire).
    pub async fn acquire(&self, keys: &[BlockKey]) -> GroupedPrefix {
        let mut found: Vec<_> = self.groups.iter().map(|_| Found::not_yet(keys)).collect();
        let mut blocks = keys.len();
        for (group, found) in self.groups.iter().zip(&mut found) {
            if group.attention == Attention::Full {
                let acquired = group.manager.acquire(&keys[..blocks]).await.blocks;
                blocks = acquired.len();
                *found = Found::Prefix(acquired.into());
            }
        }
        // Without tiers there is nothing to wait for.
        let within = self.groups.iter().filter_map(|group| group.manager.acquire_timeout()).max();
        let Some(within) = within else { return self.bring(keys, blocks, found).await };
        let brought = tokio::time::timeout(within, self.bring(keys, blocks, found)).await;
        brought.unwrap_or_else(|_| self.match_prefix(&keys[..blocks]))
    }

    /// Brings up what windows read of the first `blocks`, or of fewer if that is not there.
    async fn bring(
        &self,
        keys: &[BlockKey],
        mut blocks: usize,
        mut found: Vec<Found>,
    ) -> GroupedPrefix {
        loop {
            let before = blocks;
            for (group, found) in self.groups.iter().zip(&mut found) {
                blocks = found.bring_longest(group, &keys[..blocks], self.block_size).await;
            }
            // Whoever had less has the others look again.
            if blocks == before {
                return self.grouped(blocks, found);
            }
        }
    }
}

impl Found {
    /// Returns how many blocks, at most all of `keys`, the group has what it reads of, once that has come
    /// up.
    async fn bring_longest(&mut self, group: &Group, keys: &[BlockKey], size: BlockSize) -> usize {
        let each = match self {
            Self::Prefix(blocks) => return blocks.len().min(keys.len()),
            Self::Each(each) => each,
        };
        let mut end = keys.len();
        loop {
            let range = group.attention.reads(end, size);
            let is_missing = |each: &[Looked], at: &usize| matches!(each[*at], Looked::Missing);
            if let Some(at) = range.clone().rev().find(|at| is_missing(each, at)) {
                end = at;
                continue;
            }
            bring(each, group, keys, range.clone()).await;
            if !range.clone().any(|at| is_missing(each, &at)) {
                return end;
            }
        }
    }
}

/// Brings up the blocks of a window that were not looked at, each by itself: they stand alone.
async fn bring(each: &mut [Looked], group: &Group, keys: &[BlockKey], range: Range<usize>) {
    let not_yet = range.filter(|at| matches!(each[*at], Looked::NotYet));
    let brought = not_yet.map(async |at| {
        let key = group.attention.key(keys[at]);
        let acquired = group.manager.acquire(&[key]).await;
        (at, Vec::<RegisteredBlock>::from(acquired.blocks).pop())
    });
    for (at, block) in join_all(brought).await {
        each[at] = block.map_or(Looked::Missing, Looked::Held);
    }
}
