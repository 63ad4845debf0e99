use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::answer::Reading;
use super::config::OpenAiConfig;
use super::http::{Answer, Http};
use super::live::Live;
use super::request::{self, PATH};
use super::transfer;
use crate::engine::{Context, Engine, ResponseStream};
use crate::error::{Error, Result};
use crate::protocol::{GenerateChunk, GenerateRequest, Stage};

/// An engine behind an OpenAI-compatible server; clones share its connections.
///
/// An answer is read by a task of its own, a few items ahead of whoever takes them. Being stopped,
/// killed, dropped or out of time closes the connection, by which the server knows that it need not
/// go on. [`shutdown`](Self::shutdown) ends all of it and waits; an engine that is dropped lets what is
/// being read come to its end.
#[derive(Clone)]
pub struct OpenAiEngine(Arc<Shared>);

struct Shared {
    config: OpenAiConfig,
    http: Http,
}

impl OpenAiEngine {
    /// Takes the server that `config` names; it is not asked for anything yet.
    ///
    /// Fails with [`InvalidArgument`](crate::ErrorKind::InvalidArgument) if the URL or the key cannot be
    /// used.
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
        self.http().shutdown().await;
    }

    /// Asks, and waits until the server begins to answer.
    async fn ask(&self, ctx: &Context, request: &GenerateRequest, by: Instant) -> Result<Answer> {
        let (config, http) = (self.config(), self.http());
        let body = request::body(config, ctx, request)?;
        let asked = http.post(PATH, request::headers(ctx), body);
        let answer =
            timeout_at(by, asked).await.unwrap_or_else(|_| Err(late(http, config.first_max)))?;
        if !answer.status().is_success() {
            let refusal = answer.refusal(PATH).await;
            let is_decode = matches!(request.stage, Stage::Decode { .. });
            return Err(if is_decode { transfer::not_pulled(refusal) } else { refusal });
        }
        Ok(answer)
    }

    /// Asks for a prefill, and waits for all of the answer.
    async fn prefill(
        &self,
        ctx: &Context,
        request: &GenerateRequest,
        reading: &mut Reading,
        by: Instant,
    ) -> Result<GenerateChunk> {
        let mut answer = self.ask(ctx, request, by).await?;
        let all = timeout_at(by, answer.all(transfer::ANSWER_BYTES_MAX)).await;
        let body = all.unwrap_or_else(|_| Err(late(self.http(), self.config().first_max)))?;
        transfer::prefilled(reading, &body, request.sampling.max_tokens)
    }
}

impl Engine for OpenAiEngine {
    type Request = GenerateRequest;
    type Response = GenerateChunk;

    async fn generate(
        &self,
        ctx: Context,
        request: GenerateRequest,
    ) -> Result<ResponseStream<GenerateChunk>> {
        let config = self.config();
        let by = Instant::now() + config.first_max;
        let url = self.http().url();
        let mut reading = Reading::new(url, config.tokens.clone(), &config.end_tokens, &request);
        if request.stage == Stage::Prefill {
            let chunk = tokio::select! {
                biased;
                chunk = ctx.bound(self.prefill(&ctx, &request, &mut reading, by)) => chunk?,
                () = ctx.stopped() => reading.stop(),
            };
            return Ok(transfer::held(&ctx, chunk, config.hold_max));
        }
        let answer = tokio::select! {
            biased;
            answer = ctx.bound(self.ask(&ctx, &request, by)) => answer?,
            () = ctx.stopped() => return Ok(ResponseStream::from_items(&ctx, [reading.stop()])),
        };
        let (items, stream) = ResponseStream::channel(&ctx, ITEMS_MAX);
        let live = Live {
            http: self.http().clone(),
            answer,
            reading,
            by,
            first_max: config.first_max,
            idle_max: config.idle_max,
        };
        self.http().spawn(live.run(items));
        Ok(stream)
    }
}

impl fmt::Debug for OpenAiEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenAiEngine").field("config", &self.0.config).finish_non_exhaustive()
    }
}

/// Returns that nothing came within `max`.
pub(super) fn late(http: &Http, max: Duration) -> Error {
    http.unavailable(&format!("no item within {max:?}"))
}

/// Items that an answer is read ahead of whoever takes them; then its server waits.
const ITEMS_MAX: usize = 16;
