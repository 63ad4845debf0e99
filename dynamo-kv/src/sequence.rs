//! Tokens → keys of their full blocks, extended token by token.

use dynamo_core::protocol::{BlockSize, CacheNamespace, PromptBlocks, SequenceHash, TokenId};

use crate::identity::{BlockIdentity, BlockKey};

/// The tokens of one sequence and the keys of its full blocks.
#[derive(Debug, Clone)]
pub struct TokenSequence {
    namespace: CacheNamespace,
    block_size: BlockSize,
    tokens: Vec<TokenId>,
    keys: Vec<BlockKey>,
    root: BlockIdentity,
}

impl TokenSequence {
    /// Computes the keys of the full blocks of `tokens`.
    pub fn new(namespace: &CacheNamespace, block_size: BlockSize, tokens: &[TokenId]) -> Self {
        let root = BlockIdentity::root(namespace);
        let mut this = Self {
            namespace: namespace.clone(),
            block_size,
            tokens: tokens.to_vec(),
            keys: Vec::with_capacity(tokens.len() / block_size.tokens()),
            root,
        };
        this.extend_keys();
        this
    }

    /// Appends a token; every `block_size` tokens a key is added.
    pub fn push(&mut self, token: TokenId) {
        self.tokens.push(token);
        self.extend_keys();
    }

    /// Returns the tokens.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// Returns the keys of the full blocks, first block first.
    pub fn keys(&self) -> &[BlockKey] {
        &self.keys
    }

    /// Returns how many tokens a block holds.
    pub fn block_size(&self) -> BlockSize {
        self.block_size
    }

    fn extend_keys(&mut self) {
        let size = self.block_size.tokens();
        let from = self.keys.len() * size;
        if self.tokens.len() < from + size {
            return;
        }
        let locals = PromptBlocks::new(&self.namespace, self.block_size, &self.tokens[from..]);
        for (tokens, &local) in self.tokens[from..].chunks_exact(size).zip(locals.local()) {
            let parent = self.keys.last();
            let parent_identity = parent.map(|key| key.identity);
            let parent_sequence = parent.map(|key| key.sequence);
            let identity = parent_identity.as_ref().unwrap_or(&self.root).follow(tokens);
            self.keys.push(BlockKey {
                identity,
                parent: parent_identity,
                sequence: SequenceHash::chain(parent_sequence, local),
                parent_sequence,
                local,
                position: u32::try_from(self.keys.len()).unwrap_or(u32::MAX),
                chain: self.keys.first().map_or_else(|| identity.chain(), |first| first.chain),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_agree_with_the_prompts_hashes_and_do_not_depend_on_how_tokens_came() {
        let namespace = CacheNamespace::model("m");
        let tokens: Vec<TokenId> = (0..70).collect();
        let whole = TokenSequence::new(&namespace, BlockSize::DEFAULT, &tokens);
        let mut grown = TokenSequence::new(&namespace, BlockSize::DEFAULT, &tokens[..5]);
        tokens[5..].iter().for_each(|&token| grown.push(token));
        assert_eq!(whole.keys(), grown.keys());
        let hashes = PromptBlocks::new(&namespace, BlockSize::DEFAULT, &tokens);
        let sequence: Vec<_> = whole.keys().iter().map(|key| key.sequence).collect();
        assert_eq!(sequence, hashes.sequence());
        assert_eq!(whole.keys().len(), 4);
    }

    #[test]
    fn an_identity_depends_on_namespace_and_prefix() {
        let tokens: Vec<TokenId> = (0..32).collect();
        let of = |model: &str, tokens: &[TokenId]| {
            TokenSequence::new(&CacheNamespace::model(model), BlockSize::DEFAULT, tokens).keys()[1]
        };
        let base = of("a", &tokens);
        assert_ne!(base.identity, of("b", &tokens).identity);
        let mut other = tokens;
        other[0] = 99;
        let other = of("a", &other);
        assert_eq!(base.local, other.local);
        assert_ne!(base.identity, other.identity);
    }
}
