use std::sync::Arc;

use dynamo_core::protocol::{LocalHash, PromptBlocks, SequenceHash};

use super::OutputKind;
use super::cache::{Cache, Lease};

/// Which part of a request an engine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Part {
    /// The prompt and `tokens` tokens of the answer.
    Whole { tokens: usize },
    /// `tokens` tokens after the first, which came with the prompt's blocks from another worker.
    Rest { tokens: usize },
}

/// A request inside an engine.
#[derive(Debug)]
pub(in super::super) struct Sequence {
    request: usize,
    prompt: Arc<PromptBlocks>,
    prompt_tokens: usize,
    part: Part,
    /// Tokens emitted here.
    emitted: usize,
    /// Tokens whose KV is there.
    computed: usize,
    /// Of these, the ones of this pass.
    computed_now: usize,
    /// Found as the request was last admitted.
    cached_tokens: Option<usize>,
    lease: Lease,
}

impl Sequence {
    pub(in super::super) fn new(
        request: usize,
        prompt: Arc<PromptBlocks>,
        prompt_tokens: usize,
        part: Part,
    ) -> Self {
        Self {
            request,
            prompt,
            prompt_tokens,
            part,
            emitted: 0,
            computed: 0,
            computed_now: 0,
            cached_tokens: None,
            lease: Lease::default(),
        }
    }

    pub(super) fn request(&self) -> usize {
        self.request
    }

    /// Returns how many tokens there are by now.
    pub(super) fn tokens(&self) -> usize {
        let brought = usize::from(matches!(self.part, Part::Rest { .. }));
        self.prompt_tokens + brought + self.emitted
    }

    /// Returns how many blocks these take.
    pub(super) fn blocks(&self) -> usize {
        self.prompt.block_size().blocks_for(self.tokens())
    }

    pub(super) fn begin_pass(&mut self) {
        self.computed_now = 0;
    }

    /// Takes what the cache has of the prompt, if there is room for the rest.
    pub(super) fn start(&mut self, cache: &mut Cache) -> bool {
        let block_tokens = self.prompt.block_size().tokens();
        let hashes = self.prompt.sequence();
        // The last token is always computed: its logits are what the answer starts from.
        let reusable = (self.tokens() - 1) / block_tokens;
        let hashes = &hashes[..hashes.len().min(reusable)];
        let (found, active) = cache.find(hashes);
        if self.blocks() - active > cache.available() {
            return false;
        }
        cache.share(&mut self.lease, &hashes[..found]);
        self.computed = found * block_tokens;
        let is_first_time = self.cached_tokens.replace(self.computed).is_none();
        if is_first_time && matches!(self.part, Part::Rest { .. }) {
            // What is not here has been pulled.
            let pulled = self.blocks() - self.lease.len();
            cache.allocate(&mut self.lease, pulled);
            self.advance_to(self.prompt_tokens, cache);
        }
        true
    }

    /// Computes what is left, or as much of it as the budget allows; false if there is no room.
    pub(super) fn advance(&mut self, cache: &mut Cache, budget: &mut usize) -> bool {
        let now = (self.tokens() - self.computed).min(*budget);
        let blocks = self.prompt.block_size().blocks_for(self.computed + now);
        let missing = blocks.saturating_sub(self.lease.len());
        if !cache.allocate(&mut self.lease, missing) {
            return false;
        }
        self.advance_to(self.computed + now, cache);
        self.computed_now = now;
        *budget -= now;
        true
    }

    /// Registers the blocks that are full by then.
    fn advance_to(&mut self, computed: usize, cache: &mut Cache) {
        let block_tokens = self.prompt.block_size().tokens();
        for at in self.computed / block_tokens..computed / block_tokens {
            let parent = at.checked_sub(1).map(|before| self.block(before).1);
            let (local, sequence) = self.block(at);
            cache.register(&mut self.lease, parent, local, sequence);
        }
        self.computed = computed;
    }

    /// Returns the hashes of a block; one that has tokens of the answer is like no other's.
    fn block(&self, at: usize) -> (LocalHash, SequenceHash) {
        let prompt = self.prompt.local().get(at).zip(self.prompt.sequence().get(at));
        if let Some((&local, &sequence)) = prompt {
            return (local, sequence);
        }
        let request = self.request as u64;
        let local = LocalHash(1 << 63 | request << 24 | at as u64);
        // Not the engine's recurrence, and as unique: the request is in it.
        (local, SequenceHash::chain(Some(SequenceHash(request)), local))
    }

    /// Returns the tokens of this pass that were no step of an answer.
    pub(super) fn prefilled(&self) -> usize {
        if self.is_decoded() { 0 } else { self.computed_now }
    }

    /// Tells whether this pass makes a step of an answer that has begun.
    pub(super) fn is_decoded(&self) -> bool {
        let has_begun = self.emitted > 0 || matches!(self.part, Part::Rest { .. });
        has_begun && self.computed_now == 1 && self.computed == self.tokens()
    }

    /// Returns what the pass gives, once all is computed.
    pub(super) fn emit(&mut self) -> Option<OutputKind> {
        if self.computed_now == 0 || self.computed < self.tokens() {
            return None;
        }
        self.emitted += 1;
        let (Part::Whole { tokens } | Part::Rest { tokens }) = self.part;
        let cached_tokens = self.cached_tokens.unwrap_or(0);
        Some(OutputKind::Token { cached_tokens, is_last: self.emitted >= tokens })
    }

    pub(super) fn preempt(&mut self, cache: &mut Cache) {
        self.release(cache);
        self.computed = 0;
        self.computed_now = 0;
    }

    pub(super) fn release(&mut self, cache: &mut Cache) {
        cache.release(&mut self.lease);
    }
}
