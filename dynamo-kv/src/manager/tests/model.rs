use std::collections::{BTreeMap, BTreeSet};

use super::{BlockIdentity, BlockKey, CAPACITY};

/// The pool as its contract says it, computed the slow way.
#[derive(Default)]
pub(super) struct Model {
    pub(super) blocks: BTreeMap<BlockIdentity, ModelBlock>,
    pub(super) unshared: usize,
    clock: u64,
}

pub(super) struct ModelBlock {
    pub(super) key: BlockKey,
    /// It was registered while the block before it was: else it stands alone.
    is_linked: bool,
    guards: usize,
    last_use: u64,
    pub(super) uses: u32,
}

impl Model {
    fn is_active(&self, identity: BlockIdentity) -> bool {
        self.blocks[&identity].guards > 0
            || self.followers(identity).any(|follower| self.is_active(follower))
    }

    fn followers(&self, identity: BlockIdentity) -> impl Iterator<Item = BlockIdentity> + '_ {
        let follows =
            move |block: &&ModelBlock| block.is_linked && block.key.parent == Some(identity);
        self.blocks.values().filter(follows).map(|block| block.key.identity)
    }

    pub(super) fn active(&self) -> BTreeSet<BlockIdentity> {
        self.blocks.keys().copied().filter(|&identity| self.is_active(identity)).collect()
    }

    pub(super) fn cached(&self) -> usize {
        self.blocks.len() - self.active().len()
    }

    pub(super) fn free(&self) -> usize {
        CAPACITY - self.blocks.len() - self.unshared
    }

    pub(super) fn matched(&self, keys: &[BlockKey]) -> usize {
        keys.iter().take_while(|key| self.blocks.contains_key(&key.identity)).count()
    }

    /// Registers a block that is not there, and holds it.
    pub(super) fn register(&mut self, key: &BlockKey) {
        let is_linked = key.parent.is_some_and(|parent| self.blocks.contains_key(&parent));
        let block = ModelBlock { key: *key, is_linked, guards: 1, last_use: 0, uses: 0 };
        assert!(self.blocks.insert(key.identity, block).is_none());
    }

    /// Holds a block that was found.
    pub(super) fn pin(&mut self, key: &BlockKey) {
        self.hold(key.identity);
        self.blocks.get_mut(&key.identity).unwrap().uses += 1;
    }

    /// Returns the blocks that a block keeps.
    pub(super) fn linked_before(&self, identity: BlockIdentity) -> Vec<BlockIdentity> {
        let before = |identity: &BlockIdentity| {
            let block = &self.blocks[identity];
            block.key.parent.filter(|_| block.is_linked)
        };
        std::iter::successors(before(&identity), before).collect()
    }

    /// Holds a block that is held already.
    pub(super) fn hold(&mut self, identity: BlockIdentity) {
        self.blocks.get_mut(&identity).unwrap().guards += 1;
    }

    pub(super) fn unpin(&mut self, identity: BlockIdentity) {
        self.blocks.get_mut(&identity).unwrap().guards -= 1;
        // What is released by this, leaf first: the block and then what it was alone in keeping.
        let mut next = Some(identity);
        while let Some(identity) = next {
            if !self.blocks.contains_key(&identity) || self.is_active(identity) {
                return;
            }
            self.clock += 1;
            let block = self.blocks.get_mut(&identity).unwrap();
            block.last_use = self.clock;
            next = block.key.parent.filter(|_| block.is_linked);
        }
    }

    /// Makes room for `count` blocks; false if that is impossible.
    pub(super) fn allocate(&mut self, count: usize) -> bool {
        if count > self.free() + self.cached() {
            return false;
        }
        while self.free() < count {
            let active = self.active();
            let victim = self
                .blocks
                .values()
                .filter(|block| !active.contains(&block.key.identity))
                .filter(|block| self.followers(block.key.identity).next().is_none())
                .min_by_key(|block| block.last_use)
                .map(|block| block.key.identity)
                .unwrap();
            self.blocks.remove(&victim);
        }
        self.unshared += count;
        true
    }
}
