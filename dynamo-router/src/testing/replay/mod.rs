//! A fleet that replays a trace in virtual time, with the router that serves in real time.
//!
//! Engines are simulated: continuous batching with chunked prefill, a finite cache of blocks, and a
//! time for each pass. The choice of workers is not: [`Policy::Kv`] is a
//! [`KvRouter`](crate::KvRouter) under a clock that is moved from event to event.

mod agenda;
mod engine;
mod fleet;
mod policy;
mod published;
mod report;
mod trace;

use std::time::Duration;

use dynamo_core::Result;

pub use engine::{EngineConfig, Timing};
pub use policy::Policy;
pub use report::{Report, Times};
pub use trace::Trace;

/// The workers that a trace is replayed over.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Fleet {
    /// Who does what.
    pub roles: Roles,
    /// What each of them can do.
    pub engine: EngineConfig,
    /// How long a worker's event is on its way to the router.
    pub event_lag: Duration,
}

/// Who does what in a fleet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Roles {
    /// All workers do all of a request.
    Aggregated {
        /// How many there are.
        workers: usize,
    },
    /// Prompts and answers have workers of their own.
    Disaggregated {
        /// Workers for prompts.
        prefill: usize,
        /// Workers for answers.
        decode: usize,
        /// What the KV of one token takes, in bytes.
        token_bytes: f64,
        /// What the link of a decode worker carries, in bytes per second.
        link_bytes_per_s: f64,
    },
}

impl Fleet {
    /// Returns a fleet of `workers` that do all of a request.
    pub fn aggregated(workers: usize) -> Self {
        Self::new(Roles::Aggregated { workers })
    }

    /// Returns a fleet of `prefill` and `decode` workers over links of 25 GB/s, with the 320 KiB a
    /// token of a 70B model with grouped-query attention in 16 bits.
    pub fn disaggregated(prefill: usize, decode: usize) -> Self {
        let (token_bytes, link_bytes_per_s) = (327_680.0, 25e9);
        Self::new(Roles::Disaggregated { prefill, decode, token_bytes, link_bytes_per_s })
    }

    fn new(roles: Roles) -> Self {
        Self { roles, engine: EngineConfig::default(), event_lag: Duration::ZERO }
    }

    /// Has workers like `engine`.
    #[must_use]
    pub fn with_engine(mut self, engine: EngineConfig) -> Self {
        self.engine = engine;
        self
    }

    /// Lets the router hear of caches `lag` later.
    #[must_use]
    pub fn with_event_lag(mut self, lag: Duration) -> Self {
        self.event_lag = lag;
        self
    }

    /// Returns how many workers there are, in all roles.
    pub fn workers(&self) -> usize {
        match self.roles {
            Roles::Aggregated { workers } => workers,
            Roles::Disaggregated { prefill, decode, .. } => prefill + decode,
        }
    }

    /// Returns how long the KV of `tokens` is on its way.
    fn link_time(&self, tokens: usize) -> Duration {
        match self.roles {
            Roles::Aggregated { .. } => Duration::ZERO,
            Roles::Disaggregated { token_bytes, link_bytes_per_s, .. } => {
                Duration::from_secs_f64(tokens as f64 * token_bytes / link_bytes_per_s)
            }
        }
    }
}

/// Replays `trace` over `fleet`.
///
/// Fails as [`KvRouter::route`](crate::KvRouter::route) does.
pub fn replay(trace: &Trace, fleet: &Fleet, policy: &Policy) -> Result<Report> {
    fleet::Running::new(trace, fleet, policy)?.run()
}

#[cfg(test)]
mod tests;
