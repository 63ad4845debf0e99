//! Hashes that say "these tokens, after this prefix, in this cache".
//!
//! Both hashes are XXH3-64 and are *hints for routing*: a collision costs latency. Whoever serves
//! bytes compares an identity of its own that no one can forge (`dynamo-kv` uses BLAKE3).

use std::fmt;

use xxhash_rust::xxh3::Xxh3;

use super::token::{BlockSize, TokenId};
use super::xxh3::{self, TokenHasher};

/// What separates caches that must never share a block: tenant, model, adapter and extras.
///
/// The namespace is mixed into every hash and identity from the first block on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct CacheNamespace {
    /// The tenant; empty means the shared cache.
    pub tenant: String,
    /// The model and its revision.
    pub model: String,
    /// The adapter (LoRA) in use; empty means none.
    pub adapter: String,
    /// A digest of whatever else the KV depends on (multimodal inputs); empty means nothing.
    pub extra: Vec<u8>,
}

impl CacheNamespace {
    /// Returns the shared namespace of `model`.
    pub fn model(model: impl Into<String>) -> Self {
        Self { model: model.into(), ..Self::default() }
    }

    /// Calls `write` with an encoding that differs whenever two namespaces differ.
    ///
    /// Each field is preceded by its length as a little-endian u64.
    pub fn encode(&self, mut write: impl FnMut(&[u8])) {
        let fields: [&[u8]; 4] =
            [self.tenant.as_bytes(), self.model.as_bytes(), self.adapter.as_bytes(), &self.extra];
        for field in fields {
            write(&(field.len() as u64).to_le_bytes());
            write(field);
        }
    }
}

/// The content of one block, whatever comes before it.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct LocalHash(pub u64);

/// The content of one block together with its whole prefix and namespace.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct SequenceHash(pub u64);

impl SequenceHash {
    /// Returns the hash of a block whose parent is `parent` (`None` for the first block).
    ///
    /// The first block's hash is its local hash; block i is XXH3-64 of parent ‖ local, each as a
    /// little-endian u64 (the recurrence of NVIDIA's `dynamo-tokens`).
    pub fn chain(parent: Option<Self>, local: LocalHash) -> Self {
        let Some(parent) = parent else { return Self(local.0) };
        Self(xxh3::of_two(parent.0, local.0))
    }
}

impl fmt::Debug for LocalHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "L{:016x}", self.0)
    }
}

impl fmt::Debug for SequenceHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S{:016x}", self.0)
    }
}

/// Hashes the contents of blocks in one namespace, one after another.
#[derive(Debug)]
pub struct BlockHasher(TokenHasher);

impl BlockHasher {
    /// Hashes blocks of `namespace`.
    pub fn new(namespace: &CacheNamespace) -> Self {
        let mut seed = Xxh3::new();
        namespace.encode(|bytes| seed.update(bytes));
        Self(TokenHasher::new(seed.digest()))
    }

    /// Returns the hash of a block of these tokens.
    #[inline]
    pub fn local(&mut self, tokens: &[TokenId]) -> LocalHash {
        LocalHash(self.0.hash(tokens))
    }
}

/// The block hashes of a prompt: computed once, at tokenisation, and carried with the request.
///
/// Only full blocks are hashed: a prompt of 40 tokens with blocks of 16 has two.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PromptBlocks {
    block_size: BlockSize,
    local: Vec<LocalHash>,
    sequence: Vec<SequenceHash>,
}

impl PromptBlocks {
    /// Hashes the full blocks of `tokens`.
    pub fn new(namespace: &CacheNamespace, block_size: BlockSize, tokens: &[TokenId]) -> Self {
        Self { block_size, local: Vec::new(), sequence: Vec::new() }.extended(namespace, tokens)
    }

    /// Hashes the full blocks of `tokens`, a prompt that goes on where this one ends, as the next
    /// turn of a conversation does; only what is new is hashed.
    ///
    /// The namespace must be the same. What `tokens` start with is believed, except for the last
    /// block that both have: if that differs everything is hashed.
    #[must_use]
    pub fn extended(&self, namespace: &CacheNamespace, tokens: &[TokenId]) -> Self {
        let block_size = self.block_size;
        let block_tokens = block_size.tokens();
        let blocks = tokens.len() / block_tokens;
        let mut hasher = BlockHasher::new(namespace);
        let common = blocks.min(self.len());
        let last = tokens[..common * block_tokens].rchunks(block_tokens).next();
        let is_known = last.is_some_and(|block| self.local[common - 1] == hasher.local(block));
        let known = if is_known { common } else { 0 };
        let mut local = self.local[..known].to_vec();
        let mut sequence = self.sequence[..known].to_vec();
        let mut parent = sequence.last().copied();
        local.resize(blocks, LocalHash(0));
        sequence.resize(blocks, SequenceHash(0));
        let new = tokens[known * block_tokens..].chunks_exact(block_tokens);
        for (block, (local, sequence)) in
            new.zip(local[known..].iter_mut().zip(&mut sequence[known..]))
        {
            *local = hasher.local(block);
            *sequence = SequenceHash::chain(parent, *local);
            parent = Some(*sequence);
        }
        Self { block_size, local, sequence }
    }

    /// Chains blocks whose content is hashed already, as a trace tells them.
    ///
    /// No namespace is mixed in: whoever hashed the content has done that, or has none.
    pub fn from_local(block_size: BlockSize, local: Vec<LocalHash>) -> Self {
        let chained = local.iter().scan(None, |parent, &local| {
            *parent = Some(SequenceHash::chain(*parent, local));
            *parent
        });
        let sequence = chained.collect();
        Self { block_size, local, sequence }
    }

    /// Returns how many tokens a block holds.
    pub fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// Returns the number of full blocks.
    pub fn len(&self) -> usize {
        self.local.len()
    }

    /// Tells whether the prompt is shorter than one block.
    pub fn is_empty(&self) -> bool {
        self.local.is_empty()
    }

    /// Returns the content hash of each full block.
    pub fn local(&self) -> &[LocalHash] {
        &self.local
    }

    /// Returns the content-and-prefix hash of each full block.
    pub fn sequence(&self) -> &[SequenceHash] {
        &self.sequence
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hash(namespace: &CacheNamespace, tokens: &[TokenId]) -> PromptBlocks {
        PromptBlocks::new(namespace, BlockSize::new(4).unwrap(), tokens)
    }

    #[test]
    fn namespaces_never_share_a_hash() {
        let tokens = [1, 2, 3, 4];
        let ab = CacheNamespace { tenant: "a".into(), model: "b".into(), ..Default::default() };
        let joined = CacheNamespace { tenant: "ab".into(), ..Default::default() };
        let adapter = CacheNamespace { adapter: "ab".into(), ..Default::default() };
        let hashes: std::collections::HashSet<_> = [CacheNamespace::default(), ab, joined, adapter]
            .iter()
            .map(|namespace| hash(namespace, &tokens).sequence()[0])
            .collect();
        assert_eq!(hashes.len(), 4);
    }

    #[test]
    fn hashes_stay_what_they_were() {
        // Workers and routers of different versions meet.
        const EXPECTED: &str = "[L6cabe978f11a7397, L8a346c1bd565e00c, L4564fbd2689b743d] \
            [S6cabe978f11a7397, Sd8abfb3c169d2871, Sa15c18d23580250f]";
        let tokens: Vec<_> = (0..12).collect();
        let blocks = hash(&CacheNamespace::model("m"), &tokens);
        assert_eq!(format!("{:?} {:?}", blocks.local(), blocks.sequence()), EXPECTED);
    }

    proptest! {
        #[test]
        fn a_prompt_that_goes_on_has_the_hashes_of_one_that_is_hashed_whole(
            tokens in prop::collection::vec(0u32..3, 0..40), known in 0usize..44, other: bool,
        ) {
            let namespace = CacheNamespace::model("m");
            let mut earlier = tokens[..known.min(tokens.len())].to_vec();
            if other {
                earlier.iter_mut().for_each(|token| *token += 1);
            }
            earlier.resize(known, 9);
            let earlier = hash(&namespace, &earlier);
            prop_assert_eq!(earlier.extended(&namespace, &tokens), hash(&namespace, &tokens));
        }

        #[test]
        fn prompts_share_exactly_the_hashes_of_their_common_full_blocks(
            a in prop::collection::vec(0u32..3, 0..40), b in prop::collection::vec(0u32..3, 0..40),
        ) {
            let namespace = CacheNamespace::model("m");
            let (ha, hb) = (hash(&namespace, &a), hash(&namespace, &b));
            let common = a.iter().zip(&b).take_while(|(x, y)| x == y).count() / 4;
            prop_assert_eq!(ha.len(), a.len() / 4);
            let shared =
                ha.sequence().iter().zip(hb.sequence()).take_while(|(x, y)| x == y).count();
            prop_assert_eq!(shared, common);
            prop_assert_eq!(PromptBlocks::from_local(ha.block_size(), ha.local().to_vec()), ha);
        }
    }
}
