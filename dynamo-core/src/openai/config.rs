use std::fmt;
use std::time::Duration;

use super::tokens::TokenSource;
use crate::protocol::TokenId;

/// Which server an [`OpenAiEngine`](super::OpenAiEngine) asks, and how.
#[derive(Clone)]
#[non_exhaustive]
pub struct OpenAiConfig {
    /// Where the server is: `http://host[:port][/path]`, without `/v1`.
    pub url: String,
    /// The name by which the server knows the model.
    pub model: String,
    /// Sent as a bearer token with every request, if there is one.
    pub api_key: Option<String>,
    /// How the ids of the answer's tokens are had.
    pub tokens: TokenSource,
    /// The tokens by which the model ends an answer (EOS); they are not part of it.
    pub end_tokens: Vec<TokenId>,
    /// Whether requests carry their priority: vLLM refuses one unless it schedules by it.
    pub has_priority: bool,
    /// How long a connection may take to be there.
    pub connect_max: Duration,
    /// How long the first item may take, from the request on: queue and prefill.
    pub first_max: Duration,
    /// How long each further item may take.
    pub idle_max: Duration,
    /// How long `/health` and `/v1/models` may take.
    pub check_max: Duration,
    /// How long the server keeps a prefilled prompt's blocks for another server, for sure.
    pub hold_max: Duration,
}

impl OpenAiConfig {
    /// Takes the server at `url` (`http://host[:port][/path]`, without `/v1`) and the name by which
    /// it knows the model.
    pub fn new(url: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            model: model.into(),
            api_key: None,
            tokens: TokenSource::TokenIds,
            end_tokens: Vec::new(),
            has_priority: false,
            connect_max: CONNECT_MAX,
            first_max: FIRST_MAX,
            idle_max: IDLE_MAX,
            check_max: CHECK_MAX,
            hold_max: HOLD_MAX,
        }
    }

    /// Sends `api_key` as a bearer token with every request.
    #[must_use]
    pub fn with_api_key(mut self, api_key: impl Into<String>) -> Self {
        self.api_key = Some(api_key.into());
        self
    }

    /// Has the ids of the answer's tokens by `tokens`.
    #[must_use]
    pub fn with_tokens(mut self, tokens: TokenSource) -> Self {
        self.tokens = tokens;
        self
    }

    /// Takes `end_tokens` for those by which the model ends an answer (EOS).
    #[must_use]
    pub fn with_end_tokens(mut self, end_tokens: Vec<TokenId>) -> Self {
        self.end_tokens = end_tokens;
        self
    }

    /// Sends the priority of requests, or not.
    #[must_use]
    pub fn with_priority(mut self, has_priority: bool) -> Self {
        self.has_priority = has_priority;
        self
    }

    /// Gives up a connection that is not there within `connect_max`.
    #[must_use]
    pub fn with_connect_max(mut self, connect_max: Duration) -> Self {
        self.connect_max = connect_max;
        self
    }

    /// Gives up an answer whose first item is not there within `first_max`.
    #[must_use]
    pub fn with_first_max(mut self, first_max: Duration) -> Self {
        self.first_max = first_max;
        self
    }

    /// Gives up an answer that brings no item for `idle_max`.
    #[must_use]
    pub fn with_idle_max(mut self, idle_max: Duration) -> Self {
        self.idle_max = idle_max;
        self
    }

    /// Waits `check_max` for `/health` and `/v1/models`.
    #[must_use]
    pub fn with_check_max(mut self, check_max: Duration) -> Self {
        self.check_max = check_max;
        self
    }

    /// Relies for `hold_max` on the blocks that the server keeps of a prefilled prompt: less than its
    /// `kv_lease_duration`, by what a message may take from here to a decode server.
    #[must_use]
    pub fn with_hold_max(mut self, hold_max: Duration) -> Self {
        self.hold_max = hold_max;
        self
    }
}

impl fmt::Debug for OpenAiConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the key: logs are read by many.
        f.debug_struct("OpenAiConfig")
            .field("url", &self.url)
            .field("model", &self.model)
            .field("tokens", &self.tokens)
            .field("end_tokens", &self.end_tokens)
            .finish_non_exhaustive()
    }
}

/// A host that is there takes a connection at once.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// A long prompt behind a long queue; who wants less sets a deadline.
const FIRST_MAX: Duration = Duration::from_secs(120);

/// Steps take milliseconds; an engine that preempts a request may need seconds to come back to it.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// Servers answer these without the engine's step.
const CHECK_MAX: Duration = Duration::from_secs(5);

/// vLLM's lease is 30 s from the end of the prefill on; a decode server renews it that has the request.
const HOLD_MAX: Duration = Duration::from_secs(25);
