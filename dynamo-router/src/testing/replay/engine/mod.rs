//! One engine: continuous batching with chunked prefill over a finite cache; pure.

mod cache;
mod sequence;
mod timing;

use std::collections::VecDeque;
use std::time::Duration;

pub use timing::Timing;

pub(super) use cache::{Cache, Change};
pub(super) use sequence::{Part, Sequence};
use timing::Batch;

/// What an engine can do; the defaults are those of vLLM and of the mocker that imitates it.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct EngineConfig {
    /// How long a pass takes.
    pub timing: Timing,
    /// Tokens that the cache holds.
    pub cache_tokens: usize,
    /// Tokens that one pass computes at most, those of steps included.
    pub pass_tokens_max: usize,
    /// Requests that run at once at most.
    pub running_max: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            timing: Timing::Polynomial,
            cache_tokens: 1 << 20,
            pass_tokens_max: 8192,
            running_max: 256,
        }
    }
}

impl EngineConfig {
    /// Has passes take what `timing` says.
    #[must_use]
    pub fn with_timing(mut self, timing: Timing) -> Self {
        self.timing = timing;
        self
    }

    /// Has a cache of `cache_tokens` tokens.
    #[must_use]
    pub fn with_cache_tokens(mut self, cache_tokens: usize) -> Self {
        self.cache_tokens = cache_tokens;
        self
    }
}

/// A worker's engine: requests come in, passes are made, tokens come out.
#[derive(Debug)]
pub(super) struct Engine {
    config: EngineConfig,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    preemptions: u64,
}

/// One pass over the model.
#[derive(Debug)]
pub(super) struct Pass {
    pub(super) takes: Duration,
    /// What comes of it when it ends.
    pub(super) outputs: Vec<Output>,
}

/// What a pass did for one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Output {
    /// The number of the request.
    pub(super) request: usize,
    pub(super) kind: OutputKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OutputKind {
    /// A token; the first one says how much of the prompt was found.
    Token { cached_tokens: usize, is_last: bool },
    /// The prompt does not fit into the cache.
    Refused,
}

impl Engine {
    pub(super) fn new(config: EngineConfig) -> Self {
        Self { config, waiting: VecDeque::new(), running: Vec::new(), preemptions: 0 }
    }

    pub(super) fn submit(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    pub(super) fn has_work(&self) -> bool {
        !self.waiting.is_empty() || !self.running.is_empty()
    }

    pub(super) fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// Makes the next pass, or none if there is nothing to do.
    pub(super) fn pass(&mut self, cache: &mut Cache) -> Option<Pass> {
        let mut outputs = Vec::new();
        let mut budget = self.config.pass_tokens_max;
        let preempted = self.schedule_running(cache, &mut budget);
        if !preempted {
            self.admit(cache, &mut budget, &mut outputs);
        }
        let new_tokens = self.running.iter().map(Sequence::prefilled).sum();
        let decoding = self.running.iter().filter(|sequence| sequence.is_decoded());
        let batch = decoding.fold(Batch::default(), |batch, sequence| Batch {
            requests: batch.requests + 1,
            context_tokens: batch.context_tokens + sequence.tokens(),
        });
        let takes = self.config.timing.pass(new_tokens, batch, self.config.cache_tokens);
        self.emit(cache, &mut outputs);
        (!outputs.is_empty() || !takes.is_zero()).then_some(Pass { takes, outputs })
    }

    /// Goes on with those that run, in the order they came, and tells whether one had to go.
    fn schedule_running(&mut self, cache: &mut Cache, budget: &mut usize) -> bool {
        let mut preempted = false;
        let mut at = 0;
        self.running.iter_mut().for_each(Sequence::begin_pass);
        while at < self.running.len() && *budget > 0 {
            if self.running[at].advance(cache, budget) {
                at += 1;
                continue;
            }
            // The cache is full: the youngest goes back to the queue and starts anew.
            preempted = true;
            self.preemptions += 1;
            if let Some(mut youngest) = self.running.pop() {
                youngest.preempt(cache);
                self.waiting.push_front(youngest);
            }
        }
        preempted
    }

    /// Starts those that wait, as long as the first of them fits.
    fn admit(&mut self, cache: &mut Cache, budget: &mut usize, outputs: &mut Vec<Output>) {
        while *budget > 0 && self.running.len() < self.config.running_max {
            let Some(mut first) = self.waiting.pop_front() else { return };
            if first.blocks() > cache.blocks_max() {
                outputs.push(Output { request: first.request(), kind: OutputKind::Refused });
            } else if first.start(cache) {
                first.begin_pass();
                first.advance(cache, budget);
                self.running.push(first);
            } else {
                self.waiting.push_front(first);
                return;
            }
        }
    }

    fn emit(&mut self, cache: &mut Cache, outputs: &mut Vec<Output>) {
        self.running.retain_mut(|sequence| {
            let Some(kind) = sequence.emit() else { return true };
            outputs.push(Output { request: sequence.request(), kind });
            let is_last = matches!(kind, OutputKind::Token { is_last: true, .. });
            if is_last {
                sequence.release(cache);
            }
            !is_last
        });
    }
}
