use std::fmt;
use std::num::NonZeroU32;

/// A token of a model's vocabulary.
pub type TokenId = u32;

/// How many tokens one KV block holds; all workers of a pool share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct BlockSize(NonZeroU32);

impl BlockSize {
    /// The usual block size of paged attention.
    pub const DEFAULT: Self = match Self::new(16) {
        Some(size) => size,
        None => unreachable!(),
    };

    /// Returns a block size of `tokens`, or `None` for zero.
    pub const fn new(tokens: u32) -> Option<Self> {
        match NonZeroU32::new(tokens) {
            Some(tokens) => Some(Self(tokens)),
            None => None,
        }
    }

    /// Returns the number of tokens in a block.
    pub const fn tokens(self) -> usize {
        self.0.get() as usize
    }

    /// Returns how many blocks hold `tokens` tokens, the last one perhaps in part.
    pub const fn blocks_for(self, tokens: usize) -> usize {
        tokens.div_ceil(self.tokens())
    }
}

impl Default for BlockSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Display for BlockSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
