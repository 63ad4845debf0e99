use std::time::Duration;

use dynamo_core::random::Random;

/// How a router gets snapshots of workers whose events were lost.
///
/// A snapshot is asked for when events are missing, when the event plane tells that some may be,
/// when a worker is new here, and now and then of each: a loss behind which nothing follows shows no
/// gap.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ResyncConfig {
    /// Workers that are asked at once.
    pub at_once: usize,
    /// Times a worker whose events are missing is asked, before what is known of it is dropped.
    pub attempts: u32,
    /// The time for one answer.
    pub timeout: Duration,
    /// The wait behind the first failed attempt; it doubles with each, up to five seconds.
    pub back_off: Duration,
    /// How long a worker may be silent before it is asked whether it has said anything.
    pub audit_every: Duration,
    /// Blocks of one snapshot, over all its tiers; a larger one is refused.
    pub blocks_max: usize,
    /// Spreads attempts of many routers and workers in time.
    pub seed: u64,
}

impl Default for ResyncConfig {
    fn default() -> Self {
        Self {
            at_once: 8,
            attempts: 6,
            timeout: Duration::from_secs(10),
            back_off: Duration::from_millis(200),
            audit_every: Duration::from_secs(30),
            blocks_max: 1 << 22,
            seed: Random::unseeded().next_u64(),
        }
    }
}

impl ResyncConfig {
    /// Asks at most `at_once` workers at a time, and one at least.
    #[must_use]
    pub fn with_at_once(mut self, at_once: usize) -> Self {
        self.at_once = at_once.max(1);
        self
    }

    /// Asks a worker `attempts` times, and once at least.
    #[must_use]
    pub fn with_attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// Waits `timeout` for an answer.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Asks a worker that has been silent for about `audit_every`, a day at most.
    #[must_use]
    pub fn with_audit_every(mut self, audit_every: Duration) -> Self {
        self.audit_every = audit_every.min(AUDIT_MAX);
        self
    }

    /// Spreads attempts by `seed`.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }
}

/// Longer would be never.
const AUDIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);
