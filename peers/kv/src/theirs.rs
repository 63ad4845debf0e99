//! kvbm-logical.

use anyhow::Result;
use dynamo_tokens::TokenBlockSequence;
use kvbm_logical::manager::{BlockManagerConfigBuilder, LineageEviction};
use kvbm_logical::{
    BlockManager, BlockRegistry, ImmutableBlock, KvbmSequenceHashProvider as _, MutableBlock,
    SequenceHash,
};

use crate::manager::{BLOCK_TOKENS, Manager};

/// Nothing is said of a block's tier.
type Kvbm = BlockManager<()>;

pub fn lru(blocks: usize) -> Result<Kvbm> {
    Ok(builder(blocks).with_lru_backend().build()?)
}

pub fn lineage(blocks: usize) -> Result<Kvbm> {
    Ok(builder(blocks).with_lineage_backend().build()?)
}

pub fn lineage_fifo(blocks: usize) -> Result<Kvbm> {
    Ok(builder(blocks).with_lineage_backend_eviction(LineageEviction::Fifo).build()?)
}

fn builder(blocks: usize) -> BlockManagerConfigBuilder<()> {
    let builder = Kvbm::builder().registry(BlockRegistry::new()).block_count(blocks);
    builder.block_size(BLOCK_TOKENS as usize)
}

impl Manager for Kvbm {
    type Keys = Vec<SequenceHash>;
    type Block = MutableBlock<()>;
    type Guards = Vec<ImmutableBlock<()>>;

    fn count(guards: &Vec<ImmutableBlock<()>>) -> usize {
        guards.len()
    }

    fn keys(tokens: &[u32]) -> Vec<SequenceHash> {
        let sequence = TokenBlockSequence::from_slice(tokens, BLOCK_TOKENS, None);
        sequence.blocks().iter().map(|block| block.kvbm_sequence_hash()).collect()
    }

    fn allocate(&self, count: usize) -> Vec<MutableBlock<()>> {
        self.allocate_blocks(count).expect("as many can be evicted")
    }

    fn register(
        &self,
        blocks: Vec<MutableBlock<()>>,
        keys: &Vec<SequenceHash>,
    ) -> Vec<ImmutableBlock<()>> {
        let staged = blocks.into_iter().zip(keys).map(|(block, key)| {
            block.stage(*key, BLOCK_TOKENS as usize).expect("one size of block")
        });
        self.register_blocks(staged.collect())
    }

    fn find(&self, keys: &Vec<SequenceHash>) -> Vec<ImmutableBlock<()>> {
        self.match_blocks(keys)
    }

    fn evicted(&self) -> u64 {
        self.metrics().snapshot().evictions
    }
}
