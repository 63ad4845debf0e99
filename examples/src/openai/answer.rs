//! One answer: the graph's chunks turned into text.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use dynamo_core::protocol::{FinishReason, GenerateChunk, GenerateRequest, Usage};
use dynamo_core::{Context, Engine, RequestId, ResponseStream};
use tokio::time::Instant;

use super::error::ApiError;
use super::request::Parsed;
use super::stop::{Found, StopTexts};
use super::{Detokenize, Server};
use dynamo_core::protocol::CacheNamespace;

/// What an answer consists of.
pub(super) enum Piece {
    Text(String),
    End { finish_reason: &'static str, usage: Usage },
}

/// An answer on its way; dropping it stops the work behind it.
pub(super) struct Answer {
    stream: ResponseStream<GenerateChunk>,
    ready: VecDeque<Result<Piece, ApiError>>,
    detokenizer: Box<dyn Detokenize>,
    stop: StopTexts,
    usage: Usage,
    times: Times,
    /// Why the text is over, and how long the stream may take to end as well.
    ending: Option<(&'static str, Instant)>,
    over: bool,
    server: Arc<Server>,
}

struct Times {
    started: Instant,
    last_token: Option<Instant>,
}

impl Answer {
    /// Asks the graph and waits for the first text, so that an early failure is an HTTP status.
    pub(super) async fn start(server: &Arc<Server>, parsed: Parsed) -> Result<Self, ApiError> {
        let started = Instant::now();
        let prompt_tokens = u32::try_from(parsed.prompt.len()).unwrap_or(u32::MAX);
        let detokenizer = server.model.detokenizer(&parsed.prompt).map_err(ApiError::internal)?;
        let mut namespace = CacheNamespace::model(server.model.id());
        namespace.extra = parsed.cache_salt.into_bytes();
        let request =
            GenerateRequest::new(namespace, server.block_size, parsed.prompt, parsed.sampling);
        let ctx = Context::new().with_timeout(server.request_timeout);
        let counted = Counted::new(server);
        let stream = server.engine.generate(ctx, request).await?.with_guard(counted);
        let mut answer = Self {
            stream,
            ready: VecDeque::new(),
            detokenizer,
            stop: StopTexts::new(parsed.stop),
            usage: Usage { prompt_tokens, ..Usage::default() },
            times: Times { started, last_token: None },
            ending: None,
            over: false,
            server: Arc::clone(server),
        };
        answer.fill().await;
        match answer.ready.pop_front() {
            Some(Err(error)) => Err(error),
            first => {
                answer.ready.extend(first);
                answer.ready.rotate_right(1.min(answer.ready.len()));
                Ok(answer)
            }
        }
    }

    /// Returns the id of the request.
    pub(super) fn id(&self) -> &RequestId {
        self.stream.context().id()
    }

    /// Returns the next piece; the last one is an end or an error.
    pub(super) async fn next(&mut self) -> Option<Result<Piece, ApiError>> {
        self.fill().await;
        self.ready.pop_front()
    }

    /// Waits until there is a piece, or the answer is over.
    async fn fill(&mut self) {
        while self.ready.is_empty() && !self.over {
            let next = self.stream.next();
            let next = match self.ending {
                Some((_, latest)) => tokio::time::timeout_at(latest, next).await.unwrap_or(None),
                None => next.await,
            };
            match (next, self.ending) {
                (Some(Ok(chunk)), None) => {
                    if let Err(error) = self.take(&chunk) {
                        self.fail(error);
                    }
                }
                // The text is over: what still comes only counts.
                (Some(Ok(chunk)), Some(_)) => self.count(&chunk),
                // The answer is complete however its stream ends.
                (_, Some((finish_reason, _))) => self.end(finish_reason),
                (Some(Err(error)), None) => self.fail(error.into()),
                (None, None) => {
                    self.fail(ApiError::internal("the answer ended without a reason"));
                }
            }
        }
    }

    fn take(&mut self, chunk: &GenerateChunk) -> Result<(), ApiError> {
        self.count(chunk);
        for &token in &chunk.token_ids {
            self.count_token();
            let text = self.detokenizer.push(token).map_err(ApiError::internal)?;
            match self.stop.push(&text) {
                Found::Text(text) => self.text(text),
                Found::Stop(text) => {
                    self.text(text);
                    // The rest of the answer is of no use; its end brings the counts.
                    self.stream.context().stop();
                    self.ending = Some(("stop", Instant::now() + ENDING_MAX));
                    return Ok(());
                }
            }
        }
        if let Some(finish) = chunk.finish {
            let held = self.detokenizer.finish().map_err(ApiError::internal)?;
            let (text, stopped) = match self.stop.push(&held) {
                Found::Text(text) => (text + &self.stop.finish(), false),
                Found::Stop(text) => (text, true),
            };
            self.text(text);
            let stopped = stopped || finish == FinishReason::Stop;
            let finish_reason = if stopped { "stop" } else { "length" };
            self.ending = Some((finish_reason, Instant::now() + ENDING_MAX));
        }
        Ok(())
    }

    /// Takes over the graph's counts, save that of the tokens: those are counted as they come.
    fn count(&mut self, chunk: &GenerateChunk) {
        if let Some(usage) = chunk.usage {
            let completion_tokens = self.usage.completion_tokens;
            self.usage = Usage { completion_tokens, ..usage };
        }
    }

    fn text(&mut self, text: String) {
        if !text.is_empty() {
            self.ready.push_back(Ok(Piece::Text(text)));
        }
    }

    fn fail(&mut self, error: ApiError) {
        self.over = true;
        self.ready.push_back(Err(error));
    }

    fn end(&mut self, finish_reason: &'static str) {
        self.over = true;
        self.server.metrics.usage(self.usage);
        self.ready.push_back(Ok(Piece::End { finish_reason, usage: self.usage }));
    }

    fn count_token(&mut self) {
        self.usage.completion_tokens += 1;
        let now = Instant::now();
        match self.times.last_token.replace(now) {
            None => self.server.metrics.first_token(now - self.times.started),
            Some(last) => self.server.metrics.next_token(now - last),
        }
    }
}

/// An engine that is asked to stop ends after the token it computes.
const ENDING_MAX: Duration = Duration::from_secs(5);

/// Counts a request as in flight for as long as its stream lives.
struct Counted(Arc<Server>);

impl Counted {
    fn new(server: &Arc<Server>) -> Self {
        server.metrics.started();
        Self(Arc::clone(server))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.metrics.ended();
    }
}
