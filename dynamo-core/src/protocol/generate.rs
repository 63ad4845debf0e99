//! The default messages of a language-model graph; a graph may use its own.

use std::sync::Arc;

use super::handoff::HandoffTicket;
use super::hash::{CacheNamespace, PromptBlocks};
use super::token::{BlockSize, TokenId};

/// A request to continue a prompt.
///
/// Cheap to clone: the prompt and its hashes are shared.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct GenerateRequest {
    /// The prompt.
    pub token_ids: Arc<[TokenId]>,
    /// The hashes of the prompt's full blocks, computed once in [`GenerateRequest::new`].
    pub blocks: Arc<PromptBlocks>,
    /// The cache the prompt may share blocks with.
    pub namespace: Arc<CacheNamespace>,
    /// How tokens are chosen and when generation ends.
    pub sampling: Sampling,
    /// Which part of the work is asked for.
    pub stage: Stage,
}

impl GenerateRequest {
    /// Creates a request for the whole work, hashing the prompt's blocks.
    pub fn new(
        namespace: impl Into<Arc<CacheNamespace>>,
        block_size: BlockSize,
        token_ids: impl Into<Arc<[TokenId]>>,
        sampling: Sampling,
    ) -> Self {
        let (namespace, token_ids) = (namespace.into(), token_ids.into());
        let blocks = Arc::new(PromptBlocks::new(&namespace, block_size, &token_ids));
        Self { token_ids, blocks, namespace, sampling, stage: Stage::Full }
    }

    /// Returns the same request with a prompt that goes on where this one ends, as the next turn of
    /// a conversation does; only what is new is hashed ([`PromptBlocks::extended`]).
    #[must_use]
    pub fn with_prompt(&self, token_ids: impl Into<Arc<[TokenId]>>) -> Self {
        let token_ids = token_ids.into();
        let blocks = Arc::new(self.blocks.extended(&self.namespace, &token_ids));
        Self { token_ids, blocks, ..self.clone() }
    }

    /// Returns the same request for another part of the work.
    #[must_use]
    pub fn with_stage(&self, stage: Stage) -> Self {
        Self { stage, ..self.clone() }
    }
}

/// Which part of a generation a worker is asked to do.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Stage {
    /// Prefill and decode.
    #[default]
    Full,
    /// Prefill the prompt, emit the first token with a [`HandoffTicket`], and hold the KV blocks
    /// until they are pulled, the stream is dropped or the hold expires.
    Prefill,
    /// Pull the KV blocks named by the ticket and go on after `first_token`.
    ///
    /// The first token is part of the answer already: it counts towards `max_tokens` and is not
    /// emitted again.
    Decode {
        /// What the prefill worker staged.
        ticket: HandoffTicket,
        /// The token that the prefill worker emitted.
        first_token: TokenId,
    },
}

/// How tokens are chosen and when generation ends.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Sampling {
    /// The most tokens to generate; at least 1.
    pub max_tokens: u32,
    /// 0 is greedy; larger values flatten the distribution. Range 0 to 2.
    pub temperature: f32,
    /// The probability mass sampled from, in (0, 1]; 1 is all of it.
    pub top_p: f32,
    /// The seed of the sampler; the same request with the same seed gives the same tokens.
    pub seed: u64,
    /// Tokens that end the answer; they are not part of it.
    pub stop_token_ids: Vec<TokenId>,
    /// Whether the model's own end tokens are tokens like any other, so that only `max_tokens`, the
    /// model's context or `stop_token_ids` end the answer: for measuring, with answers of one length.
    pub ignore_end: bool,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            max_tokens: 16,
            temperature: 0.0,
            top_p: 1.0,
            seed: 0,
            stop_token_ids: Vec::new(),
            ignore_end: false,
        }
    }
}

/// One item of the stream that answers a [`GenerateRequest`].
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct GenerateChunk {
    /// The new tokens, in order; may be empty in the last chunk.
    pub token_ids: Vec<TokenId>,
    /// Why generation ended; set in the last chunk of an answer only.
    pub finish: Option<FinishReason>,
    /// Counts; set in the last chunk, and in the first chunk of [`Stage::Prefill`].
    pub usage: Option<Usage>,
    /// The claim on staged blocks; set by [`Stage::Prefill`] unless the answer is over already.
    pub ticket: Option<HandoffTicket>,
    /// What a decode worker pulled; set in the first chunk of [`Stage::Decode`].
    pub handoff: Option<HandoffReport>,
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum FinishReason {
    /// The model emitted a stop token.
    Stop,
    /// `max_tokens` or the model's context was reached.
    Length,
}

/// Token counts of one answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Usage {
    /// Tokens in the prompt.
    pub prompt_tokens: u32,
    /// Prompt tokens whose KV was found in the worker's cache; `None` if the worker does not say.
    pub cached_tokens: Option<u32>,
    /// Tokens generated.
    pub completion_tokens: u32,
    /// Those of the cached tokens that were not in the worker's memory.
    pub loaded: LoadedTokens,
}

/// Cached tokens whose KV came from a tier below a worker's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LoadedTokens {
    /// From a disk.
    pub disk: u32,
    /// From another agent or an object store.
    pub remote: u32,
}

/// What a hand-off moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct HandoffReport {
    /// Blocks pulled from the prefill worker.
    pub blocks_pulled: u32,
    /// Blocks the decode worker held already.
    pub blocks_cached: u32,
    /// Bytes moved.
    pub bytes: u64,
    /// Wall time of the pull in microseconds.
    pub micros: u64,
}
