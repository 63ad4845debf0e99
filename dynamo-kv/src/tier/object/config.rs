use std::time::Duration;

use dynamo_core::{Error, Result};
use object_store::path::Path;

use super::format::Format;

/// What becomes of blocks beyond those that a tier keeps in mind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnFull {
    /// They stay in the store, and are looked for again when they are asked for.
    #[default]
    Forget,
    /// They are deleted from the store: it is bounded by this tier.
    Delete,
}

/// How blocks are kept in an object store.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ObjectConfig {
    /// What the names of all objects begin with; parts are separated by `/`.
    pub prefix: String,
    /// The size of every block in bytes.
    pub block_bytes: usize,
    /// What blocks must share to be interchangeable, such as
    /// [`RankLayout::fingerprint`](crate::layout::RankLayout::fingerprint).
    pub fingerprint: u64,
    /// Requests under way at once; others wait, in order.
    pub in_flight: usize,
    /// How long an attempt at a request may take, its body included.
    pub request_timeout: Duration,
    /// Attempts at a request that loads, stores or deletes, from 1 on.
    pub attempts: u32,
    /// The pause behind the first attempt; it doubles behind each further one.
    pub backoff: Duration,
    /// How long a question whether a block is there may take; no answer means that it is not.
    pub probe_timeout: Duration,
    /// How long a block is taken to load until loads were measured.
    pub load_time: Duration,
    /// How long a block that was not there is taken not to be.
    pub absent_for: Duration,
    /// Blocks that are kept in mind, about 300 bytes each.
    pub known_max: usize,
    /// What becomes of those beyond, the ones that this process used longest ago.
    pub on_full: OnFull,
}

impl ObjectConfig {
    /// Describes blocks of `block_bytes` bytes each under `prefix`.
    pub fn new(prefix: impl Into<String>, block_bytes: usize, fingerprint: u64) -> Self {
        Self {
            prefix: prefix.into(),
            block_bytes,
            fingerprint,
            // Latency, not bandwidth, bounds a request: as many connections as a host may well have.
            in_flight: 32,
            // Far above what a block takes; below what anybody waits for one.
            request_timeout: Duration::from_secs(5),
            attempts: 3,
            backoff: Duration::from_millis(50),
            // The first token waits for it.
            probe_timeout: Duration::from_millis(250),
            // What one takes from a store in the same region.
            load_time: Duration::from_millis(10),
            absent_for: Duration::from_secs(1),
            known_max: 1 << 17,
            on_full: OnFull::default(),
        }
    }

    /// Limits the requests that are under way at once.
    #[must_use]
    pub fn with_in_flight(mut self, in_flight: usize) -> Self {
        self.in_flight = in_flight;
        self
    }

    /// Limits the time of an attempt.
    #[must_use]
    pub fn with_request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Sets how often a request is tried, and the pause behind the first attempt.
    #[must_use]
    pub fn with_attempts(mut self, attempts: u32, backoff: Duration) -> Self {
        (self.attempts, self.backoff) = (attempts, backoff);
        self
    }

    /// Limits the time of a question whether a block is there.
    #[must_use]
    pub fn with_probe_timeout(mut self, timeout: Duration) -> Self {
        self.probe_timeout = timeout;
        self
    }

    /// Says how long a block is taken to load until loads were measured.
    #[must_use]
    pub fn with_load_time(mut self, load_time: Duration) -> Self {
        self.load_time = load_time;
        self
    }

    /// Sets how long a block that was not there is taken not to be.
    #[must_use]
    pub fn with_absent_for(mut self, absent_for: Duration) -> Self {
        self.absent_for = absent_for;
        self
    }

    /// Limits the blocks that are kept in mind, and says what becomes of those beyond.
    #[must_use]
    pub fn with_known_max(mut self, known_max: usize, on_full: OnFull) -> Self {
        (self.known_max, self.on_full) = (known_max, on_full);
        self
    }

    /// Checks the numbers and the prefix.
    pub(super) fn format(&self) -> Result<Format> {
        let Self { block_bytes, in_flight, attempts, known_max, .. } = *self;
        let counts = [block_bytes, in_flight, attempts as usize, known_max];
        if counts.contains(&0) || in_flight > tokio::sync::Semaphore::MAX_PERMITS {
            return Err(Error::invalid(format!(
                "an object tier of blocks of {block_bytes} bytes, {in_flight} requests at once, \
                 {attempts} attempts, {known_max} blocks kept in mind"
            )));
        }
        let prefix = Path::parse(&self.prefix).map_err(|error| {
            Error::invalid(format!("prefix {:?} of an object tier", self.prefix)).with_source(error)
        })?;
        Ok(Format::new(&prefix, self.fingerprint, block_bytes))
    }
}
