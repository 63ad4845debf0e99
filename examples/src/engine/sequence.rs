use std::ops::Range;

use dynamo_core::protocol::LoadedTokens;
use dynamo_core::{Error, ErrorKind, Result};
use dynamo_kv::{
    BlockKey, BlockLayout, BlockManager, MutableBlock, PartialBlock, Pulled, RegisteredBlock,
    Sources, TokenSequence,
};

use tokio::runtime::Handle;

use crate::model::PagedKv;

/// The KV of one sequence: shared blocks at the front, blocks of its own behind them.
///
/// The forward pass reads and writes block memory in place through [`PagedKv`].
#[derive(Debug)]
pub(super) struct SequenceKv {
    manager: BlockManager,
    registered: Vec<RegisteredBlock>,
    own: Vec<MutableBlock>,
    /// Tokens whose K and V are there.
    tokens: usize,
    /// Those of them that came from a tier below memory.
    loaded: LoadedTokens,
}

impl SequenceKv {
    /// Starts from the longest prefix that the manager holds, in memory or below.
    pub(super) async fn acquire(manager: &BlockManager, sequence: &TokenSequence) -> Self {
        let block_tokens = sequence.block_size().tokens();
        let acquired = manager.acquire(reusable(sequence)).await;
        let registered = Vec::from(acquired.blocks);
        let tokens = registered.len() * block_tokens;
        let loaded = loaded(acquired.sources, block_tokens);
        Self { manager: manager.clone(), registered, own: Vec::new(), tokens, loaded }
    }

    /// Starts from what a hand-off brought.
    pub(super) fn pulled(manager: BlockManager, pulled: Pulled) -> Self {
        let block_tokens = manager.layout().block_size().tokens();
        let tokens = pulled.blocks.len() * block_tokens + pulled.tail_tokens;
        let (registered, own) = (pulled.blocks, pulled.tail.into_iter().collect());
        Self { manager, registered, own, tokens, loaded: loaded(pulled.sources, block_tokens) }
    }

    /// Returns how many of the tokens it began with came from a tier below memory.
    pub(super) fn loaded(&self) -> LoadedTokens {
        self.loaded
    }

    /// Returns the number of tokens whose K and V are there.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Makes room for `tokens` tokens in all; blocks, while what has to make room goes down a tier.
    pub(super) fn reserve(&mut self, tokens: usize) -> Result<()> {
        let needed = tokens.div_ceil(self.block_tokens());
        let missing = needed.saturating_sub(self.registered.len() + self.own.len());
        if missing == 0 {
            return Ok(());
        }
        let reserved = Handle::current().block_on(self.manager.reserve(missing));
        let blocks = reserved.map_err(|error| {
            Error::new(ErrorKind::Overloaded, "KV blocks for the sequence").with_source(error)
        })?;
        self.own.extend(blocks);
        Ok(())
    }

    /// Records that the forward pass wrote K and V up to `tokens`, and shares the blocks that
    /// are full.
    pub(super) fn commit(&mut self, tokens: usize, keys: &[BlockKey]) {
        self.tokens = tokens;
        let full = (tokens / self.block_tokens()).min(keys.len());
        let count = full.saturating_sub(self.registered.len()).min(self.own.len());
        let shared = self.registered.len();
        let complete: Vec<_> = self
            .own
            .drain(..count)
            .zip(&keys[shared..])
            .map(|(block, key)| block.complete(*key))
            .collect();
        self.registered.extend(self.manager.register_all(complete));
    }

    /// Gives the blocks up for a hand-off: the full ones and the partly filled last one.
    pub(super) fn into_staged(self) -> (Vec<RegisteredBlock>, Option<PartialBlock>) {
        let tail_tokens = self.tokens - self.registered.len() * self.block_tokens();
        let tail = self.own.into_iter().next().filter(|_| tail_tokens > 0);
        (self.registered, tail.map(|block| block.into_partial(tail_tokens)))
    }

    /// Returns where K and V of each layer are in a block, which has all heads.
    fn layout(&self) -> BlockLayout {
        BlockLayout::of(*self.manager.layout().shape())
    }
}

/// Returns the blocks of a prompt that need not be computed if they are there: short of the last token, whose
/// logits have to be.
pub(super) fn reusable(sequence: &TokenSequence) -> &[BlockKey] {
    let count = sequence.tokens().len().saturating_sub(1) / sequence.block_size().tokens();
    &sequence.keys()[..count.min(sequence.keys().len())]
}

fn loaded(sources: Sources, block_tokens: usize) -> LoadedTokens {
    let count = |blocks: usize| u32::try_from(blocks * block_tokens).unwrap_or(u32::MAX);
    LoadedTokens { disk: count(sources.disk), remote: count(sources.remote) }
}

impl PagedKv for SequenceKv {
    fn block_tokens(&self) -> usize {
        self.manager.layout().block_size().tokens()
    }

    fn planes(&self, layer: usize, block: usize) -> (&[f32], &[f32]) {
        let bytes: &[u8] = match block.checked_sub(self.registered.len()) {
            None => &self.registered[block],
            Some(own) => &self.own[own],
        };
        let layout = self.layout();
        let plane = |range: Range<usize>| bytemuck::cast_slice(&bytes[range]);
        (plane(layout.keys(layer)), plane(layout.values(layer)))
    }

    fn planes_mut(&mut self, layer: usize, block: usize) -> (&mut [f32], &mut [f32]) {
        let layout = self.layout();
        let (keys, values) = (layout.keys(layer), layout.values(layer));
        // The forward pass writes behind what is shared: positions past `tokens` only.
        let bytes: &mut [u8] = &mut self.own[block - self.registered.len()];
        let (head, tail) = bytes.split_at_mut(values.start);
        let length = values.len();
        (bytemuck::cast_slice_mut(&mut head[keys]), bytemuck::cast_slice_mut(&mut tail[..length]))
    }
}
