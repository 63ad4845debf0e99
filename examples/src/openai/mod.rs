//! An OpenAI-compatible HTTP front end over any engine.
//!
//! `/v1/models`, `/v1/chat/completions` and `/v1/completions` (streaming by server-sent events or
//! whole), `/health`, `/metrics`. A client that hangs up drops the response stream, and with it
//! everything the graph does for the request.

mod answer;
mod error;
mod metrics;
mod neutral;
mod request;
mod routes;
mod stop;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use dynamo_core::SharedEngine;
use dynamo_core::protocol::{BlockSize, GenerateChunk, GenerateRequest, TokenId};
use tokio::net::TcpListener;

pub use metrics::Metrics;

use crate::model::Message;

/// What the front end needs to know of a model: text ↔ tokens, and its limits.
pub trait TextModel: Send + Sync + 'static {
    /// Returns the name that clients ask for.
    fn id(&self) -> &str;

    /// Returns the longest sequence in tokens, prompt and answer together.
    fn context_len(&self) -> usize;

    /// Returns the prompt that is this text, or why there is none.
    fn encode(&self, text: &str) -> Result<Vec<TokenId>, String>;

    /// Returns the prompt for the assistant's next message, or why there is none.
    fn encode_chat(&self, messages: &[Message]) -> Result<Vec<TokenId>, String>;

    /// Returns the tokens that end an answer, as far as its engine has to be told.
    fn end_tokens(&self) -> &[TokenId] {
        &[]
    }

    /// Starts to turn the tokens of the answer to `prompt` into text, or says why that cannot be.
    fn detokenizer(&self, prompt: &[TokenId]) -> Result<Box<dyn Detokenize>, String>;
}

/// Turns the tokens of one answer into text.
pub trait Detokenize: Send {
    /// Adds a token; returns the text that is certain by it.
    fn push(&mut self, token: TokenId) -> Result<String, String>;

    /// Returns what was held back.
    fn finish(&mut self) -> Result<String, String>;
}

/// The state behind the routes.
pub struct Server {
    engine: SharedEngine<GenerateRequest, GenerateChunk>,
    model: Arc<dyn TextModel>,
    block_size: BlockSize,
    is_ready: Box<dyn Fn() -> bool + Send + Sync>,
    request_timeout: Duration,
    metrics: Metrics,
}

impl Server {
    /// Creates a server of `model` that asks `engine`, hashing prompts in blocks of `block_size`.
    pub fn new(
        engine: SharedEngine<GenerateRequest, GenerateChunk>,
        model: Arc<dyn TextModel>,
        block_size: BlockSize,
    ) -> Self {
        Self {
            engine,
            model,
            block_size,
            is_ready: Box::new(|| true),
            request_timeout: REQUEST_TIMEOUT,
            metrics: Metrics::default(),
        }
    }

    /// Answers `/health` with 503 while `is_ready` says no.
    #[must_use]
    pub fn with_readiness(mut self, is_ready: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.is_ready = Box::new(is_ready);
        self
    }

    /// Ends requests that take longer than `request_timeout`.
    #[must_use]
    pub fn with_request_timeout(mut self, request_timeout: Duration) -> Self {
        self.request_timeout = request_timeout;
        self
    }

    /// Returns the routes.
    pub fn into_router(self) -> Router {
        Router::new()
            .route("/v1/models", get(routes::models))
            .route("/v1/models/{*model}", get(routes::model))
            .route("/v1/chat/completions", post(routes::chat_completions))
            .route("/v1/completions", post(routes::completions))
            .route("/health", get(routes::health))
            .route("/metrics", get(routes::metrics))
            .fallback(routes::not_found)
            .method_not_allowed_fallback(routes::method_not_allowed)
            .layer(DefaultBodyLimit::max(routes::BODY_BYTES_MAX))
            .with_state(Arc::new(self))
    }
}

/// Serves `router` until `shutdown` completes, then lets connections finish for `patience`.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
    patience: Duration,
) -> std::io::Result<()> {
    let (stopping, stopped) = tokio::sync::oneshot::channel();
    let shutdown = async move {
        shutdown.await;
        // The receiver lives in the select below, or serving is over.
        let _ = stopping.send(());
    };
    let serving = axum::serve(listener, router).with_graceful_shutdown(shutdown);
    let out_of_patience = async {
        match stopped.await {
            Ok(()) => tokio::time::sleep(patience).await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        result = serving => result,
        () = out_of_patience => Ok(()),
    }
}

/// A long answer on a slow CPU, with room to spare.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(600);

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("model", &self.model.id()).finish_non_exhaustive()
    }
}
