use std::time::Duration;

use dynamo_core::{Error, Result};

use super::hold::Terms;
use crate::tier::Pace;
use crate::time::TIME_MAX;

/// How hand-offs are held and pulled.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HandoffConfig {
    /// How long staged blocks are held for a puller that does not come.
    pub ttl: Duration,
    /// How long they stay reserved for a puller that does not move along: another one may have them then,
    /// and behind the TTL the hold ends.
    pub claim_ttl: Duration,
    /// How long they are held in all, if pullers move along; never less than `ttl`.
    pub ttl_max: Duration,
    /// How long a pull may take, its transfer included. Who pulls from this worker may ask as long whether it
    /// has, or for `ttl_max` if that is more: keep it alike where workers hand off to each other.
    pub pull_timeout: Duration,
    /// How long a block is taken to pull until pulls were measured; a gigabyte per second if `None`. What a
    /// tier below memory gives sooner is not pulled.
    pub pull_time: Option<Duration>,
}

impl Default for HandoffConfig {
    fn default() -> Self {
        // A decode worker pulls at once or never; serving research puts the peers' 480 s at the
        // root of stranded caches. Bytes that move do so at 1 MiB/s at least: two seconds without one is
        // a worker that has died or hangs.
        Self {
            ttl: Duration::from_secs(30),
            claim_ttl: Duration::from_secs(2),
            ttl_max: Duration::from_secs(120),
            pull_timeout: Duration::from_secs(10),
            pull_time: None,
        }
    }
}

impl HandoffConfig {
    /// Holds staged blocks for `ttl`.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Reserves them for a puller until it has not moved along for `claim_ttl`.
    #[must_use]
    pub fn with_claim_ttl(mut self, claim_ttl: Duration) -> Self {
        self.claim_ttl = claim_ttl;
        self
    }

    /// Limits the time that they are held in all.
    #[must_use]
    pub fn with_ttl_max(mut self, ttl_max: Duration) -> Self {
        self.ttl_max = ttl_max;
        self
    }

    /// Limits the time a pull may take.
    #[must_use]
    pub fn with_pull_timeout(mut self, pull_timeout: Duration) -> Self {
        self.pull_timeout = pull_timeout;
        self
    }

    /// Says how long a block is taken to pull until pulls were measured.
    #[must_use]
    pub fn with_pull_time(mut self, pull_time: Duration) -> Self {
        self.pull_time = Some(pull_time);
        self
    }

    pub(super) fn terms(&self) -> Terms {
        // A puller goes by its own limit, which is this one's or nearly so: the most of all is ample.
        let pull = self.pull_timeout.max(self.ttl_max).max(self.ttl);
        Terms { ttl: self.ttl, claim_ttl: self.claim_ttl, max: self.ttl_max, pull }
    }

    pub(super) fn check(&self) -> Result<()> {
        let Self { ttl, claim_ttl, ttl_max, pull_timeout, .. } = *self;
        let times = [("ttl_max", ttl_max), ("ttl", ttl), ("pull_timeout", pull_timeout)];
        for (name, time) in times.into_iter().chain([("claim_ttl", claim_ttl)]) {
            if time > TIME_MAX {
                return Err(Error::invalid(format!("hand-off {name} of {time:?}")));
            }
        }
        if claim_ttl.is_zero() {
            return Err(Error::invalid("hand-off claim_ttl of no time"));
        }
        Ok(())
    }

    /// Returns how long a pull of blocks of so many bytes takes, as far as is known without one.
    pub(super) fn pace(&self, block_bytes: usize) -> Pace {
        let assumed = Duration::from_nanos(block_bytes as u64);
        Pace::new(self.pull_time.unwrap_or(assumed))
    }
}
