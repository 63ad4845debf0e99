use serde::Deserialize;
use serde_json::Value;

use super::answer::Refusal;
use super::script::Script;
use crate::protocol::TokenId;

/// What is read of the body of a request to `/v1/completions`.
#[derive(Debug, Deserialize)]
pub(super) struct Ask {
    model: Option<String>,
    pub(super) prompt: Vec<TokenId>,
    #[serde(default = "default_max_tokens")]
    pub(super) max_tokens: usize,
    #[serde(default)]
    pub(super) stream: bool,
    stream_options: Option<StreamOptions>,
    return_token_ids: Option<bool>,
    stop_token_ids: Option<Vec<TokenId>>,
    ignore_eos: Option<bool>,
    kv_transfer_params: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

/// What the protocol says where a request says nothing.
const fn default_max_tokens() -> usize {
    16
}

impl Ask {
    /// Reads a request as vLLM does, as far as it is played.
    pub(super) fn read(body: &[u8], script: &Script) -> Result<Self, Refusal> {
        let ask: Self =
            serde_json::from_slice(body).map_err(|error| Refusal::bad(&error.to_string(), None))?;
        if let Some(model) = ask.model.as_ref().filter(|its| **its != script.model) {
            return Err(Refusal::no_model(model));
        }
        if ask.prompt.is_empty() {
            return Err(Refusal::bad("prompt is empty", Some("prompt")));
        }
        if ask.max_tokens == 0 {
            return Err(Refusal::bad("max_tokens must be at least 1, got 0.", Some("max_tokens")));
        }
        let (length, length_max) = (ask.prompt.len(), script.max_model_len);
        if length.saturating_add(ask.max_tokens) > length_max {
            let message = format!(
                "maximum context length is {length_max} tokens: {length} of the prompt and {} of \
                 the answer are too many",
                ask.max_tokens
            );
            return Err(Refusal::bad(&message, Some("input_tokens")));
        }
        Ok(ask)
    }

    pub(super) fn includes_usage(&self) -> bool {
        self.stream_options.as_ref().is_some_and(|options| options.include_usage == Some(true))
    }

    pub(super) fn returns_token_ids(&self) -> bool {
        self.return_token_ids == Some(true)
    }

    /// Returns where the prompt's blocks are to be pulled from.
    pub(super) fn pulls(&self) -> Option<&Value> {
        self.kv_transfer_params.as_ref().filter(|params| params["do_remote_prefill"] == true)
    }

    /// Tells whether the prompt's blocks are to be kept for another server.
    pub(super) fn keeps(&self) -> bool {
        let params = self.kv_transfer_params.as_ref();
        params.is_some_and(|params| params["do_remote_decode"] == true)
    }

    pub(super) fn ignores_end(&self) -> bool {
        self.ignore_eos == Some(true)
    }

    pub(super) fn stops_at(&self, token: TokenId) -> bool {
        self.stop_token_ids.as_ref().is_some_and(|stops| stops.contains(&token))
    }
}
