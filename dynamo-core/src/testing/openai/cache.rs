use std::collections::{BTreeMap, HashMap};

use super::script::mix;
use crate::protocol::{BlockSize, TokenId};

/// What became of blocks of a prefix cache; hashes are of a block and all before it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BlockChange {
    /// Blocks, one behind the other, are there.
    Stored {
        /// Their hashes.
        hashes: Vec<u64>,
        /// The hash of the block before them; `None` if the first of them is first of all.
        parent: Option<u64>,
        /// Their tokens, one block's after the other's.
        token_ids: Vec<TokenId>,
    },
    /// Blocks are there no more.
    Removed {
        /// Their hashes.
        hashes: Vec<u64>,
    },
    /// No block is there any more.
    Cleared,
}

/// The full blocks that were computed, up to a limit.
#[derive(Debug)]
pub(super) struct PrefixCache {
    block_size: BlockSize,
    blocks_max: usize,
    /// When each was used last.
    used: HashMap<u64, u64>,
    /// The other way round: the first was used longest ago.
    by_use: BTreeMap<u64, u64>,
    uses: u64,
}

impl PrefixCache {
    pub(super) fn new(block_size: BlockSize, blocks_max: usize) -> Self {
        let (used, by_use) = (HashMap::new(), BTreeMap::new());
        Self { block_size, blocks_max, used, by_use, uses: 0 }
    }

    /// Returns how many of the first tokens of a prompt need not be computed; the last one must.
    pub(super) fn cached_tokens(&self, prompt: &[TokenId]) -> usize {
        let computed = &prompt[..prompt.len().saturating_sub(1)];
        let hashes = self.hashes(computed);
        let blocks = hashes.iter().take_while(|hash| self.used.contains_key(hash)).count();
        blocks * self.block_size.tokens()
    }

    /// Keeps the full blocks of tokens that were computed, and tells what that changes.
    pub(super) fn keep(&mut self, computed: &[TokenId], mut tell: impl FnMut(BlockChange)) {
        let hashes = self.hashes(computed);
        let known = hashes.iter().take_while(|hash| self.used.contains_key(hash)).count();
        // From the last on: what others go on from is evicted after what goes on from it.
        for hash in hashes.iter().rev() {
            self.touch(*hash);
        }
        let block_tokens = self.block_size.tokens();
        if known < hashes.len() {
            tell(BlockChange::Stored {
                hashes: hashes[known..].to_vec(),
                parent: known.checked_sub(1).map(|before| hashes[before]),
                token_ids: computed[known * block_tokens..hashes.len() * block_tokens].to_vec(),
            });
        }
        let removed = self.evict();
        if !removed.is_empty() {
            tell(BlockChange::Removed { hashes: removed });
        }
    }

    pub(super) fn clear(&mut self, mut tell: impl FnMut(BlockChange)) {
        self.used.clear();
        self.by_use.clear();
        tell(BlockChange::Cleared);
    }

    fn touch(&mut self, hash: u64) {
        self.uses += 1;
        if let Some(before) = self.used.insert(hash, self.uses) {
            self.by_use.remove(&before);
        }
        self.by_use.insert(self.uses, hash);
    }

    fn evict(&mut self) -> Vec<u64> {
        let mut removed = Vec::new();
        while self.used.len() > self.blocks_max
            && let Some((_, hash)) = self.by_use.pop_first()
        {
            self.used.remove(&hash);
            removed.push(hash);
        }
        removed
    }

    fn hashes(&self, tokens: &[TokenId]) -> Vec<u64> {
        let chain = tokens.chunks_exact(self.block_size.tokens()).scan(0, |hash, block| {
            *hash = block.iter().fold(*hash, |hash, token| mix(hash, *token));
            Some(*hash)
        });
        chain.collect()
    }
}
