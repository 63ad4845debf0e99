//! What serving bytes relies on: an identity that no one can forge.

use std::fmt;

use dynamo_core::protocol::{CacheNamespace, LocalHash, SequenceHash, TokenId};
use serde::{Deserialize, Serialize};

/// BLAKE3-256 of a block's namespace, its whole prefix and its tokens.
///
/// Two blocks with the same identity hold the same KV (of the same model and layout, which the
/// namespace and the pool fix). The 64-bit hashes beside it in [`BlockKey`] are for routing only.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BlockIdentity(pub [u8; 32]);

impl BlockIdentity {
    /// Returns the identity that stands before the first block of `namespace`.
    pub fn root(namespace: &CacheNamespace) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(ROOT_CONTEXT);
        namespace.encode(|bytes| {
            hasher.update(bytes);
        });
        Self(*hasher.finalize().as_bytes())
    }

    /// Returns what the blocks of sequences that begin with this one have in common.
    pub(crate) fn chain(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    /// Returns the identity of the block of `tokens` that follows this one.
    ///
    /// BLAKE3 keyed with this identity over the tokens as little-endian u32.
    #[must_use]
    pub fn follow(&self, tokens: &[TokenId]) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        Self(*hasher.finalize().as_bytes())
    }
}

impl fmt::Debug for BlockIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("B")?;
        self.0[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Everything that names one full block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockKey {
    /// What serving bytes relies on.
    pub identity: BlockIdentity,
    /// The identity of the block before it; `None` for a sequence's first block.
    pub parent: Option<BlockIdentity>,
    /// The content-and-prefix hash that events carry.
    pub sequence: SequenceHash,
    /// The sequence hash of the block before it.
    pub parent_sequence: Option<SequenceHash>,
    /// The content hash that events carry.
    pub local: LocalHash,
    /// How many blocks stand before it in its sequence.
    pub position: u32,
    /// The first 8 bytes of the identity of its sequence's first block: blocks that may follow each
    /// other have it in common.
    pub chain: u64,
}

impl BlockKey {
    /// Names the block as one that no block before it is needed for: it is kept, found and evicted
    /// without them.
    #[must_use]
    pub fn alone(self) -> Self {
        Self { parent: None, ..self }
    }
}

/// Domain separation in BLAKE3's form: application, date, purpose.
const ROOT_CONTEXT: &str = "dynamo-kv 2026-11 cache namespace root";
