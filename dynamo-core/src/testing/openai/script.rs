use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::cache::BlockChange;
use super::transfer::Connector;
use crate::protocol::{BlockSize, TokenId};

/// What a [`PlayedServer`](super::PlayedServer) is, and what goes wrong there.
///
/// ```
/// # use dynamo_core::testing::openai::{Fault, Script};
/// let script = Script { max_model_len: 128, ..Script::default() };
/// let script = script.with_faults([Fault::None, Fault::CloseAfter(3)]);
/// assert_eq!(script.answer(&[1, 2, 3], 8).len(), 8);
/// ```
#[derive(Clone)]
pub struct Script {
    /// The name of the one model that is served.
    pub model: String,
    /// Where to listen; port 0 takes a free one.
    pub address: SocketAddr,
    /// What must come as `authorization: Bearer …`; `None` lets everybody in.
    pub api_key: Option<String>,
    /// Whose metrics are told.
    pub metrics: MetricsOf,
    /// Tokens of a block of the prefix cache.
    pub block_size: BlockSize,
    /// Blocks of the prefix cache; what was used longest ago makes room.
    pub blocks: usize,
    /// The most tokens of a prompt and its answer.
    pub max_model_len: usize,
    /// Requests that are computed at once; more wait.
    pub running_max: usize,
    /// Tokens of the answers are from 1 to this, without it.
    pub vocabulary: TokenId,
    /// The token that ends an answer.
    pub end_token: TokenId,
    /// The length in tokens, of prompt and answer, at which the model emits its end token; `None`
    /// for never. The same length whoever wrote the tokens before: an answer that is gone on with
    /// elsewhere ends where it would have ended here.
    pub end_at: Option<usize>,
    /// New tokens of one chunk of a stream; 1 at least.
    pub tokens_per_delta: usize,
    /// The time that one chunk takes.
    pub delta_time: Duration,
    /// What goes wrong with the first requests to `/v1/completions`, one each, in order.
    pub faults: Vec<Fault>,
    /// Told of what becomes of the blocks of the prefix cache.
    pub observer: Option<Observer>,
    /// What hands its blocks over to other servers; without one, `kv_transfer_params` are passed over.
    pub connector: Option<Connector>,
}

/// Is told of changes to a prefix cache.
pub type Observer = Arc<dyn Fn(BlockChange) + Send + Sync>;

/// Whose names a metrics page has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetricsOf {
    /// vLLM's, as seen of 0.32.
    #[default]
    Vllm,
    /// SGLang's.
    Sglang,
    /// TensorRT-LLM's: JSON at `/metrics`, and text at `/prometheus/metrics`.
    TensorRtLlm,
}

/// What goes wrong with one request to `/v1/completions`.
///
/// What comes after so many tokens comes after the chunk in which they are; a chunk ends there.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Nothing: it is for a request that comes before one with a fault.
    None,
    /// No header is sent until [`release`](super::PlayedServer::release).
    HangBeforeHeaders,
    /// After so many tokens nothing is sent until [`release`](super::PlayedServer::release).
    HangAfter(usize),
    /// After so many tokens the connection is closed, in the middle of the body.
    CloseAfter(usize),
    /// After so many tokens the stream tells an error, as vLLM does, and ends.
    ErrorAfter(usize),
    /// After so many tokens comes an event that is no JSON.
    MalformedAfter(usize),
    /// After so many tokens comes a line of so many bytes without an end, and then the rest.
    LongLineAfter(usize, usize),
    /// The stream says what it is to say, but no token ids.
    WithoutIds,
    /// The stream ends after its tokens: no reason, no usage, no `[DONE]`.
    WithoutEnd,
    /// The request is refused with this status and vLLM's error body.
    Refuse(u16),
    /// The request is refused with 429, and may come again in so many seconds.
    TooMany {
        /// What the header `retry-after` says.
        retry_after_s: u32,
    },
}

impl Default for Script {
    fn default() -> Self {
        Self {
            model: "played".into(),
            address: ([127, 0, 0, 1], 0).into(),
            api_key: None,
            metrics: MetricsOf::default(),
            block_size: BlockSize::DEFAULT,
            blocks: 1024,
            max_model_len: 4096,
            running_max: 64,
            vocabulary: 256,
            end_token: 0,
            end_at: None,
            tokens_per_delta: 1,
            delta_time: Duration::ZERO,
            faults: Vec::new(),
            connector: None,
            observer: None,
        }
    }
}

impl Script {
    /// Gives the next requests to `/v1/completions` these faults, one each, in order.
    #[must_use]
    pub fn with_faults(mut self, faults: impl IntoIterator<Item = Fault>) -> Self {
        self.faults.extend(faults);
        self
    }

    /// Tells `observer` what becomes of the blocks of the prefix cache, in order, before what they
    /// hold is sent. It must not block.
    #[must_use]
    pub fn with_observer(mut self, observer: impl Fn(BlockChange) + Send + Sync + 'static) -> Self {
        self.observer = Some(Arc::new(observer));
        self
    }

    /// Pulls blocks from the servers of the same network, and keeps some for them; without a
    /// connector `kv_transfer_params` are passed over.
    #[must_use]
    pub fn with_connector(mut self, connector: &Connector) -> Self {
        self.connector = Some(connector.clone());
        self
    }

    /// Returns the token that comes after `tokens`.
    pub fn next_token(&self, tokens: &[TokenId]) -> TokenId {
        if self.end_at.is_some_and(|at| tokens.len() >= at) {
            return self.end_token;
        }
        self.word(tokens)
    }

    /// Returns the answer to `prompt`: at most `tokens_max` tokens, the end token included.
    pub fn answer(&self, prompt: &[TokenId], tokens_max: usize) -> Vec<TokenId> {
        let mut tokens = prompt.to_vec();
        while tokens.len() < prompt.len() + tokens_max {
            let next = self.next_token(&tokens);
            tokens.push(next);
            if next == self.end_token {
                break;
            }
        }
        tokens.split_off(prompt.len())
    }

    /// Returns a token that is no end.
    pub(super) fn word(&self, tokens: &[TokenId]) -> TokenId {
        let hash = tokens.iter().fold(tokens.len() as u64, |hash, token| mix(hash, *token));
        let words = u64::from(self.vocabulary.saturating_sub(1)).max(1);
        let word = TokenId::try_from(1 + hash % words).unwrap_or(1);
        if word == self.end_token { word + 1 } else { word }
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Script")
            .field("model", &self.model)
            .field("address", &self.address)
            .field("faults", &self.faults)
            .finish_non_exhaustive()
    }
}

/// Mixes a token into a hash: a step of `SplitMix64`.
pub(super) fn mix(hash: u64, token: TokenId) -> u64 {
    crate::random::Random::new(hash ^ u64::from(token).rotate_left(32)).next_u64()
}
