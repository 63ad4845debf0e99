use serde_json::Value;

use super::engine::OpenAiEngine;
use crate::error::{Error, ErrorKind, Result};

/// A model as its server lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelCard {
    /// The name to ask for it by.
    pub id: String,
    /// Tokens of prompt and answer together, if the server says so (vLLM, SGLang).
    pub max_model_len: Option<u32>,
}

impl OpenAiEngine {
    /// Asks `/health`: whether the server says that it can serve.
    ///
    /// It is a sign of the server, not of the model: a request of one token
    /// ([`Canary`](crate::Canary)) goes the whole way.
    ///
    /// Fails with [`Unavailable`](ErrorKind::Unavailable) if there is no answer in time or the
    /// server says that it cannot, and otherwise as the server refuses.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn check(&self) -> Result<()> {
        self.http().get("/health", HEALTH_BYTES_MAX, self.config().check_max).await.map(drop)
    }

    /// Asks `/v1/models` for the model of the config.
    ///
    /// Fails with [`NotFound`](ErrorKind::NotFound) if the server does not list it, and like
    /// [`check`](Self::check).
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn model(&self) -> Result<ModelCard> {
        let (url, model) = (self.http().url(), &self.config().model);
        let list = self.http().get("/v1/models", MODELS_BYTES_MAX, self.config().check_max).await?;
        let list: Value = serde_json::from_slice(&list).map_err(|error| {
            Error::new(ErrorKind::Protocol, format!("/v1/models of {url}")).with_source(error)
        })?;
        let listed = list.get("data").and_then(Value::as_array);
        listed
            .and_then(|listed| listed.iter().find_map(|entry| card(entry, model)))
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("model {model:?} at {url}")))
    }
}

/// Reads an entry of the list, if it is the one for `model`.
fn card(entry: &Value, model: &str) -> Option<ModelCard> {
    let id = entry.get("id")?.as_str().filter(|id| *id == model)?;
    let max_model_len = entry.get("max_model_len").and_then(Value::as_u64);
    let max_model_len = max_model_len.and_then(|tokens| u32::try_from(tokens).ok());
    Some(ModelCard { id: id.to_owned(), max_model_len })
}

/// An empty body, or a word.
const HEALTH_BYTES_MAX: usize = 64 << 10;

/// A model and hundreds of adapters, with their permissions.
const MODELS_BYTES_MAX: usize = 1 << 20;
