use std::fmt;
use std::sync::Arc;

use super::config::OpenAiConfig;
use super::http::Http;
use crate::error::Result;

/// An engine behind an OpenAI-compatible server.
#[derive(Clone)]
pub struct OpenAiEngine(Arc<Shared>);

struct Shared {
    config: OpenAiConfig,
    http: Http,
}

impl OpenAiEngine {
    /// Takes the server that `config` names; it is not asked for anything yet.
    ///
    /// Fails with [`InvalidArgument`](crate::ErrorKind::InvalidArgument) if the URL or the key can
    /// not be used.
    pub fn new(config: OpenAiConfig) -> Result<Self> {
        let http = Http::new(&config.url, config.api_key.as_deref())?;
        let http = http.with_connect_max(config.connect_max);
        Ok(Self(Arc::new(Shared { config, http })))
    }

    /// Returns what the engine was made of.
    pub fn config(&self) -> &OpenAiConfig {
        &self.0.config
    }

    pub(super) fn http(&self) -> &Http {
        &self.0.http
    }

    /// Closes all connections, and waits for all tasks; answers that are read end with
    /// [`Closed`](crate::ErrorKind::Closed).
    ///
    /// # Cancel safety
    /// Cancel safe; they end all the same.
    pub async fn shutdown(&self) {
        self.0.http.shutdown().await;
    }
}

impl fmt::Debug for OpenAiEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenAiEngine").field("config", &self.0.config).finish_non_exhaustive()
    }
}
