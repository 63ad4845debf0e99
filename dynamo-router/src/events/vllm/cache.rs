//! One engine's cache, as far as it was told: from its blocks to the router's; pure.
//!
//! An engine's block holds a multiple of the router's tokens, or a part of them. In the first case
//! it makes router blocks by itself. In the second one a router block is a path of engine blocks,
//! which are a tree: those of one content are shared by all that goes on differently. The router's
//! block is there while its whole path is, tier by tier.
//!
//! ```text
//! router's blocks  |       R       |       S       |
//! engine's blocks  |   a   |   b   |   c   |   d   |
//!                          |   x   |  a and x are another of the router's
//! ```
//!
//! An engine's block is forgotten when no tier has it and none of the same path follows it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use dynamo_core::protocol::{BlockHasher, BlockSize, CacheNamespace, Tier, TokenId};

use super::batch::{EngineHash, Stored};
use super::changes::Changes;
use super::entry::{Entry, Part, TIERS, made};
use super::extra::{extended, without_adapter};
use super::held::Held;
use super::problem::Problem;

/// What one rank of an engine holds.
#[derive(Debug)]
pub(super) struct EngineCache {
    block_size: BlockSize,
    blocks_max: usize,
    blocks: HashMap<EngineHash, Entry>,
}

impl EngineCache {
    /// Knows nothing yet, and will know `blocks_max` of the engine's blocks at most.
    pub(super) fn new(block_size: BlockSize, blocks_max: usize) -> Self {
        Self { block_size, blocks_max, blocks: HashMap::new() }
    }

    /// Takes in a run of blocks; `root` is the namespace of a sequence that starts with it.
    pub(super) fn store(
        &mut self,
        run: &Stored,
        root: &Arc<CacheNamespace>,
        changes: &mut Changes,
    ) -> Result<(), Problem> {
        if run.tokens.is_empty() {
            return self.store_known(run, changes);
        }
        self.check(run)?;
        let mut previous = run.parent;
        let mut hasher = None;
        let mut extra = run.extra.iter().peekable();
        let blocks = run.tokens.chunks_exact(run.block_size.tokens());
        for (place, (hash, tokens)) in run.hashes.iter().zip(blocks).enumerate() {
            let keys = extra.next_if(|(of, _)| *of == place).map_or(&[][..], |(_, keys)| keys);
            if !self.blocks.contains_key(hash) {
                let keys = without_adapter(keys, &run.adapter);
                let (engine, router) = (run.block_size, self.block_size);
                let entry = self
                    .entry(previous, tokens, root, keys, &mut hasher)
                    .ok_or(Problem::BlockSizeMismatch { engine, router })?;
                self.insert(*hash, entry)?;
            }
            self.gain(*hash, run.tier, changes);
            previous = Some(*hash);
        }
        Ok(())
    }

    /// Takes in that `tier` no longer has these blocks, or one copy less of each.
    pub(super) fn remove(&mut self, hashes: &[EngineHash], tier: Tier, changes: &mut Changes) {
        for hash in hashes {
            self.lose(*hash, tier, changes);
            self.forget_unused(*hash);
        }
    }

    /// Returns what it holds, tier by tier.
    pub(super) fn held(&self) -> Held {
        let mut held = Held::default();
        self.blocks.values().for_each(|entry| {
            for tier in Tier::ALL.into_iter().filter(|tier| self.is_whole(entry, *tier)) {
                held.add(entry.before, entry.made.blocks(), tier);
            }
        });
        held
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.blocks = HashMap::new();
    }

    /// Returns how many of the engine's blocks are known.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Takes in a run that comes without tokens: only blocks that are known can be placed.
    fn store_known(&mut self, run: &Stored, changes: &mut Changes) -> Result<(), Problem> {
        let mut unknown = 0;
        for hash in &run.hashes {
            if self.blocks.contains_key(hash) {
                self.gain(*hash, run.tier, changes);
            } else {
                unknown += 1;
            }
        }
        if unknown == 0 { Ok(()) } else { Err(Problem::UnknownBlocks { blocks: unknown }) }
    }

    fn check(&self, run: &Stored) -> Result<(), Problem> {
        let (engine, router) = (run.block_size, self.block_size);
        let (tokens, blocks) = (run.tokens.len(), run.hashes.len());
        if blocks.checked_mul(engine.tokens()) != Some(tokens) {
            return Err(Problem::TokenCount { tokens, blocks, block_size: engine });
        }
        if engine.tokens() % router.tokens() != 0 && router.tokens() % engine.tokens() != 0 {
            return Err(Problem::BlockSizeMismatch { engine, router });
        }
        match (run.parent, run.hashes.first()) {
            (Some(parent), Some(first))
                if !self.blocks.contains_key(&parent) && !self.blocks.contains_key(first) =>
            {
                Err(Problem::UnknownParent { parent })
            }
            _ => Ok(()),
        }
    }

    /// Makes what is known of a block of `tokens` behind `previous`; `None` if its end is on no
    /// path to a router's block, because sizes change on the way.
    fn entry(
        &self,
        previous: Option<EngineHash>,
        tokens: &[TokenId],
        root: &Arc<CacheNamespace>,
        keys: &[Vec<u8>],
        hasher: &mut Option<(Arc<CacheNamespace>, BlockHasher)>,
    ) -> Option<Entry> {
        let (before, parent, open, namespace) = match previous {
            None => (None, None, &[][..], root),
            Some(previous) => {
                let parent = self.blocks.get(&previous)?;
                let (before, open) = parent.end();
                (before, Some(previous).filter(|_| !open.is_empty()), open, &parent.namespace)
            }
        };
        let namespace = extended(namespace, keys);
        let size = self.block_size.tokens();
        let tokens = if open.is_empty() { tokens } else { &[open, tokens].concat() };
        let (full, rest) = tokens.split_at(tokens.len() / size * size);
        if parent.is_some() && tokens.len() > size || !full.is_empty() && !rest.is_empty() {
            return None;
        }
        let made = made(full, size, before, &namespace, hasher);
        let is_part = parent.is_some() || !rest.is_empty();
        let part = Part { parent, children: BTreeSet::new(), tokens: rest.to_vec() };
        let part = is_part.then(|| Box::new(part));
        Some(Entry { copies: [0; TIERS], made, before, namespace, part })
    }

    fn insert(&mut self, hash: EngineHash, entry: Entry) -> Result<(), Problem> {
        if self.blocks.len() >= self.blocks_max {
            return Err(Problem::TooManyBlocks { limit: self.blocks_max });
        }
        if let Some(parent) = entry.parent()
            && let Some(part) = self.blocks.get_mut(&parent).and_then(|it| it.part.as_mut())
        {
            part.children.insert(hash);
        }
        self.blocks.insert(hash, entry);
        Ok(())
    }

    fn gain(&mut self, hash: EngineHash, tier: Tier, changes: &mut Changes) {
        let Some(entry) = self.blocks.get_mut(&hash) else { return };
        let copies = &mut entry.copies[tier as usize];
        *copies = copies.saturating_add(1);
        if *copies == 1 {
            let store = |entry: &Entry| changes.store(entry.before, entry.made.blocks(), tier);
            self.for_made(hash, tier, store);
        }
    }

    fn lose(&mut self, hash: EngineHash, tier: Tier, changes: &mut Changes) {
        let Some(entry) = self.blocks.get_mut(&hash) else { return };
        let copies = &mut entry.copies[tier as usize];
        let was_last = *copies == 1;
        *copies = copies.saturating_sub(1);
        if was_last {
            self.for_made(hash, tier, |entry| changes.remove(entry.made.blocks(), tier));
        }
    }

    /// Calls `change` with every entry that makes router blocks whose path leads over `hash` and
    /// is in `tier` but for that one.
    fn for_made(&self, hash: EngineHash, tier: Tier, mut change: impl FnMut(&Entry)) {
        let Some(entry) = self.blocks.get(&hash) else { return };
        if !self.is_whole_above(entry, tier) {
            return;
        }
        change(entry);
        let mut below: Vec<_> = entry.children().collect();
        while let Some(hash) = below.pop() {
            if let Some(entry) = self.blocks.get(&hash).filter(|entry| entry.is_in(tier)) {
                change(entry);
                below.extend(entry.children());
            }
        }
    }

    /// Tells whether `tier` has an entry and all the parts before it.
    fn is_whole(&self, entry: &Entry, tier: Tier) -> bool {
        entry.is_in(tier) && self.is_whole_above(entry, tier)
    }

    fn is_whole_above(&self, entry: &Entry, tier: Tier) -> bool {
        let parent = |entry: &&Entry| entry.parent().and_then(|parent| self.blocks.get(&parent));
        let mut parts = std::iter::successors(parent(&entry), parent);
        parts.all(|entry| entry.is_in(tier))
    }

    /// Forgets a block that no tier has, and the parts before it that only it had need of.
    fn forget_unused(&mut self, hash: EngineHash) {
        let mut next = Some(hash);
        while let Some(hash) = next {
            let is_used = |it: &Entry| it.copies != [0; TIERS] || it.children().next().is_some();
            if self.blocks.get(&hash).is_none_or(is_used) {
                return;
            }
            next = self.blocks.remove(&hash).and_then(|entry| entry.parent());
            if let Some(parent) = next
                && let Some(part) = self.blocks.get_mut(&parent).and_then(|it| it.part.as_mut())
            {
                part.children.remove(&hash);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_remembered_in_72_bytes() {
        assert_eq!(size_of::<(EngineHash, Entry)>(), 72);
    }
}
