//! What a block manager does for an engine, a sequence at a time.

/// A block manager that is compared.
pub trait Manager: Sync {
    /// The keys of a sequence's blocks.
    type Keys: Sync;
    /// A block to be written.
    type Block;
    /// Keeps registered blocks.
    type Guards;

    /// Returns how many blocks are kept.
    fn count(guards: &Self::Guards) -> usize;

    /// Names the blocks of a sequence, whose length is a multiple of [`BLOCK_TOKENS`].
    fn keys(tokens: &[u32]) -> Self::Keys;

    /// Allocates `count` blocks at once.
    fn allocate(&self, count: usize) -> Vec<Self::Block>;

    /// Completes as many blocks as there are keys and registers them, at once if it can.
    fn register(&self, blocks: Vec<Self::Block>, keys: &Self::Keys) -> Self::Guards;

    /// Finds the blocks of a sequence.
    fn find(&self, keys: &Self::Keys) -> Self::Guards;

    /// Returns how many blocks were evicted so far.
    fn evicted(&self) -> u64;
}

/// Tokens of a block.
pub const BLOCK_TOKENS: u32 = 16;
