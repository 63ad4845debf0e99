use std::sync::Arc;
use std::time::Duration;

use dynamo_core::engine::layers::MigratePolicy;

/// How requests are split, and what becomes of them when a worker fails.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DisaggConfig {
    /// Whether a request is split at all.
    pub split: Split,
    /// How far a request goes when a worker fails it.
    pub fallback: Fallback,
    /// Workers that are asked for a prefill, for a hand-off or for both in one, before that has
    /// failed; 0 counts as 1.
    pub attempts_max: usize,
    /// A worker is given up that is silent for so much longer than the router expected.
    pub silence_max: Duration,
    /// How often and how fast an answer that was lost in the middle goes on elsewhere.
    pub migrate: MigratePolicy,
    /// How much rather blocks are handed to a decode worker near the prefill worker.
    pub near: Option<Near>,
}

/// What it is worth that two workers are near each other.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Near {
    /// Workers are near each other that have the same value of this label.
    pub label: Arc<str>,
    /// What it costs that they are not.
    pub worth: Duration,
}

impl Default for DisaggConfig {
    fn default() -> Self {
        Self {
            split: Split::default(),
            fallback: Fallback::default(),
            attempts_max: ATTEMPTS_MAX,
            silence_max: SILENCE_MAX,
            migrate: MigratePolicy::default(),
            near: None,
        }
    }
}

impl DisaggConfig {
    /// Splits requests by `split`.
    #[must_use]
    pub fn with_split(mut self, split: Split) -> Self {
        self.split = split;
        self
    }

    /// Goes as far as `fallback` when a worker fails.
    #[must_use]
    pub fn with_fallback(mut self, fallback: Fallback) -> Self {
        self.fallback = fallback;
        self
    }

    /// Asks at most so many workers for each part of a request.
    #[must_use]
    pub fn with_attempts_max(mut self, attempts_max: usize) -> Self {
        self.attempts_max = attempts_max;
        self
    }

    /// Gives a worker up that is silent for so much longer than the router expected.
    #[must_use]
    pub fn with_silence_max(mut self, silence_max: Duration) -> Self {
        self.silence_max = silence_max;
        self
    }

    /// Goes on with lost answers by `migrate`.
    #[must_use]
    pub fn with_migrate(mut self, migrate: MigratePolicy) -> Self {
        self.migrate = migrate;
        self
    }

    /// Rather hands blocks to a decode worker whose `label` has the same value as the prefill worker's:
    /// to go elsewhere costs `worth`.
    #[must_use]
    pub fn with_near(mut self, label: &str, worth: Duration) -> Self {
        self.near = Some(Near { label: label.into(), worth });
        self
    }

    pub(super) fn attempts(&self) -> usize {
        if self.fallback == Fallback::Fail { 1 } else { self.attempts_max.max(1) }
    }

    pub(super) fn moves(&self) -> MigratePolicy {
        match self.fallback {
            Fallback::Fail => self.migrate.with_moves_max(0),
            Fallback::OtherWorker | Fallback::LocalPrefill => self.migrate,
        }
    }
}

/// Whether requests are prefilled by one worker and decoded by another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Split {
    /// Where that costs less time than a decode worker that does both, by the routers' own costs.
    #[default]
    ByCost,
    /// Each request, as long as there is a prefill worker.
    Always,
    /// None: decode workers do both.
    Never,
}

/// How far a request goes when a worker fails it: each goes further than the one before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Fallback {
    /// The first failure is the request's.
    Fail,
    /// Another worker does the same: it prefills, redeems the same ticket, or goes on with the
    /// answer. A ticket that is of no use is replaced by the prefill of another worker.
    OtherWorker,
    /// As before, save that a decode worker prefills by itself once no prefill worker could, and
    /// where a ticket was of no use.
    #[default]
    LocalPrefill,
}

/// A worker that is gone is noticed at the first try; the third worker in a row that fails is no
/// accident.
const ATTEMPTS_MAX: usize = 3;

/// Longer than any pause of an engine that lives. Peers that die are noticed much sooner, by their
/// connection.
const SILENCE_MAX: Duration = Duration::from_secs(30);
