use std::sync::Arc;
use std::time::{Duration, Instant};

use dynamo_core::protocol::{
    GenerateChunk, GenerateRequest, HandoffReport, LoadedTokens, WorkerId,
};
use dynamo_core::time::Clock;
use dynamo_core::{Context, Error, ErrorKind, RequestId};

use crate::choose::RouteExplain;
use crate::router::Decision;

/// How one request went.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DisaggReport {
    /// The request.
    pub request: RequestId,
    /// The last choice of a prefill worker.
    pub prefill: Option<RouteExplain>,
    /// The last choice of a decode worker.
    pub decode: Option<RouteExplain>,
    /// Tokens in the prompt.
    pub prompt_tokens: usize,
    /// Prompt tokens that the prefill worker said it had cached.
    pub cached_tokens: usize,
    /// Those of them that it loaded from a tier below its memory.
    pub loaded: LoadedTokens,
    /// What the hand-off moved.
    pub handoff: Option<HandoffReport>,
    /// Time from the request to its first token.
    pub ttft: Option<Duration>,
    /// Mean time between tokens.
    pub itl: Option<Duration>,
    /// Tokens generated.
    pub completion_tokens: usize,
    /// How it ended.
    pub outcome: Outcome,
}

impl DisaggReport {
    /// Returns the last prefill worker that was tried.
    pub fn prefill_worker(&self) -> Option<WorkerId> {
        self.prefill.as_ref().map(|explain| explain.chosen.worker)
    }

    /// Returns the last decode worker that was tried.
    pub fn decode_worker(&self) -> Option<WorkerId> {
        self.decode.as_ref().map(|explain| explain.chosen.worker)
    }

    /// Returns how many prompt tokens the router expected the prefill worker to have cached.
    pub fn predicted_cached_tokens(&self) -> usize {
        self.prefill.as_ref().map_or(0, |explain| explain.chosen.cached_tokens)
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With its last token.
    Complete,
    /// With an error.
    Failed(ErrorKind),
    /// The client went away.
    Cancelled,
}

/// Is told how each request went.
pub trait Observer: Send + Sync + 'static {
    /// Called exactly once per request, when it has ended; must not block.
    fn settled(&self, report: &DisaggReport);
}

impl<F: Fn(&DisaggReport) + Send + Sync + 'static> Observer for F {
    fn settled(&self, report: &DisaggReport) {
        self(report);
    }
}

/// Gathers a report while the request runs and hands it in when dropped.
pub(super) struct Report {
    report: DisaggReport,
    ctx: Context,
    observer: Arc<dyn Observer>,
    clock: Arc<dyn Clock>,
    started: Instant,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl Report {
    pub(super) fn new(
        ctx: &Context,
        request: &GenerateRequest,
        observer: Arc<dyn Observer>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let report = DisaggReport {
            request: ctx.id().clone(),
            prefill: None,
            decode: None,
            prompt_tokens: request.token_ids.len(),
            cached_tokens: 0,
            loaded: LoadedTokens::default(),
            handoff: None,
            ttft: None,
            itl: None,
            completion_tokens: 0,
            outcome: Outcome::Cancelled,
        };
        let (ctx, started) = (ctx.clone(), clock.now());
        Self { report, ctx, observer, clock, started, first_token: None, last_token: None }
    }

    pub(super) fn prefill(&mut self, decision: &Decision) {
        self.report.prefill = Some(decision.explain.clone());
    }

    pub(super) fn decode(&mut self, decision: &Decision) {
        self.report.decode = Some(decision.explain.clone());
    }

    pub(super) fn first_token(&mut self, chunk: &GenerateChunk) {
        self.first_token = Some(self.clock.now());
        let usage = chunk.usage.unwrap_or_default();
        self.report.cached_tokens = usage.cached_tokens as usize;
        self.report.loaded = usage.loaded;
    }

    pub(super) fn chunk(&mut self, chunk: &GenerateChunk) {
        if !chunk.token_ids.is_empty() {
            self.report.completion_tokens += chunk.token_ids.len();
            self.last_token = Some(self.clock.now());
        }
        if chunk.handoff.is_some() {
            self.report.handoff = chunk.handoff;
        }
        if chunk.finish.is_some() {
            self.report.outcome = Outcome::Complete;
        }
    }

    pub(super) fn failed(&mut self, error: &Error) {
        self.report.outcome = match error.kind() {
            ErrorKind::Cancelled => Outcome::Cancelled,
            kind => Outcome::Failed(kind),
        };
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if self.report.outcome == Outcome::Cancelled
            && let Err(error) = self.ctx.check()
        {
            // The response stream obeys the deadline itself and drops what is behind it.
            self.failed(&error);
        }
        self.report.ttft = self.first_token.map(|first| first - self.started);
        let gaps = u32::try_from(self.report.completion_tokens.saturating_sub(1)).unwrap_or(0);
        let decoding = self.first_token.zip(self.last_token).map(|(first, last)| last - first);
        self.report.itl = decoding.and_then(|elapsed| elapsed.checked_div(gaps));
        self.observer.settled(&self.report);
    }
}
