use std::sync::Arc;
use std::time::{Duration, Instant};

use dynamo_core::protocol::{
    GenerateChunk, GenerateRequest, HandoffReport, LoadedTokens, WorkerId,
};
use dynamo_core::time::Clock;
use dynamo_core::{Context, Error, ErrorKind, RequestId};

use super::decide::{PrefillPlace, SplitExplain};
use super::journey::Role;
use crate::choose::RouteExplain;
use crate::router::Decision;

/// How one request went.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DisaggReport {
    /// The request.
    pub request: RequestId,
    /// The last decision where to prefill.
    pub split: Option<SplitExplain>,
    /// The last choice of a prefill worker.
    pub prefill: Option<RouteExplain>,
    /// The last choice of a decode worker.
    pub decode: Option<RouteExplain>,
    /// Tokens in the prompt.
    pub prompt_tokens: usize,
    /// Prompt tokens that the worker that prefilled them said it had cached, if it did.
    pub cached_tokens: Option<usize>,
    /// Those of them that it loaded from a tier below its memory.
    pub loaded: LoadedTokens,
    /// What the hand-off moved.
    pub handoff: Option<HandoffReport>,
    /// Time from the request to its first token.
    pub ttft: Option<Duration>,
    /// Mean time between tokens.
    pub itl: Option<Duration>,
    /// Tokens generated and delivered.
    pub completion_tokens: usize,
    /// How often the rest of the answer was asked for elsewhere after it had begun.
    pub moves: usize,
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

    /// Returns how many prompt tokens the router expected the worker that prefills to have cached.
    pub fn predicted_cached_tokens(&self) -> usize {
        let is_local = self.split.is_some_and(|split| split.place == PrefillPlace::Local);
        let explain = if is_local { &self.decode } else { &self.prefill };
        explain.as_ref().map_or(0, |explain| explain.chosen.cached_tokens)
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
            split: None,
            prefill: None,
            decode: None,
            prompt_tokens: request.token_ids.len(),
            cached_tokens: None,
            loaded: LoadedTokens::default(),
            handoff: None,
            ttft: None,
            itl: None,
            completion_tokens: 0,
            moves: 0,
            outcome: Outcome::Cancelled,
        };
        let started = clock.now();
        Self { report, observer, clock, started, first_token: None, last_token: None }
    }

    pub(super) fn split(&mut self, explain: SplitExplain) {
        self.report.split = Some(explain);
    }

    pub(super) fn chose(&mut self, role: Role, decision: &Decision) {
        let explain = Some(decision.explain.clone());
        match role {
            Role::Prefill => self.report.prefill = explain,
            Role::Decode => self.report.decode = explain,
        }
    }

    /// Notes that the first chunk of the answer, or of a later part of it, is there.
    pub(super) fn first_chunk(&mut self) {
        self.first_token.get_or_insert_with(|| self.clock.now());
    }

    pub(super) fn moved(&mut self) {
        self.report.moves += 1;
    }

    pub(super) fn chunk(&mut self, chunk: &GenerateChunk) {
        if !chunk.token_ids.is_empty() {
            self.report.completion_tokens += chunk.token_ids.len();
            self.last_token = Some(self.clock.now());
        }
        if let Some(usage) = chunk.usage {
            self.report.cached_tokens = usage.cached_tokens.map(|tokens| tokens as usize);
            self.report.loaded = usage.loaded;
        }
        if chunk.handoff.is_some() {
            self.report.handoff = chunk.handoff;
        }
        if chunk.finish.is_some() {
            self.report.outcome = Outcome::Complete;
        }
    }

    /// Notes what ended the answer, unless that was its last chunk.
    pub(super) fn failed(&mut self, error: &Error) {
        self.report.outcome = match (self.report.outcome, error.kind()) {
            (Outcome::Complete, _) => Outcome::Complete,
            (_, ErrorKind::Cancelled) => Outcome::Cancelled,
            (_, kind) => Outcome::Failed(kind),
        };
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.report.ttft = self.first_token.map(|first| first - self.started);
        let gaps = u32::try_from(self.report.completion_tokens.saturating_sub(1)).unwrap_or(0);
        let decoding = self.first_token.zip(self.last_token).map(|(first, last)| last - first);
        self.report.itl = decoding.and_then(|elapsed| elapsed.checked_div(gaps));
        self.observer.settled(&self.report);
    }
}
