//! `dynamo-kv`.

use anyhow::{Context as _, Result};
use dynamo_core::protocol::{BlockSize, CacheNamespace, InstanceId, KvEvent, WorkerId};
use dynamo_kv::{
    BlockLayout, BlockManager, BlockRun, DType, ManagerConfig, MutableBlock, TokenSequence,
};

use crate::manager::{BLOCK_TOKENS, Manager};

const BLOCK_SIZE: BlockSize = BlockSize::new(BLOCK_TOKENS).expect("more than 0");

/// Creates a manager whose blocks are as small as there are.
pub fn manager(blocks: usize) -> Result<BlockManager> {
    let layout = BlockLayout::new(1, 1, 1, BLOCK_SIZE, DType::Byte)?;
    let worker = WorkerId::new(InstanceId(1));
    let sink = |event: KvEvent| drop(std::hint::black_box(event));
    BlockManager::new(ManagerConfig::new(layout, blocks), worker, Box::new(sink))
        .context("a block manager")
}

impl Manager for BlockManager {
    type Keys = TokenSequence;
    type Block = MutableBlock;
    type Guards = BlockRun;

    fn count(guards: &BlockRun) -> usize {
        guards.len()
    }

    fn keys(tokens: &[u32]) -> TokenSequence {
        TokenSequence::new(&CacheNamespace::default(), BLOCK_SIZE, tokens)
    }

    fn allocate(&self, count: usize) -> Vec<MutableBlock> {
        self.allocate(count).expect("as many can be evicted")
    }

    fn register(&self, blocks: Vec<MutableBlock>, keys: &TokenSequence) -> BlockRun {
        let complete = blocks.into_iter().zip(keys.keys()).map(|(block, key)| block.complete(*key));
        self.register_all(complete.collect())
    }

    fn find(&self, keys: &TokenSequence) -> BlockRun {
        self.match_prefix(keys.keys())
    }

    fn evicted(&self) -> u64 {
        self.stats().evicted_total
    }
}
