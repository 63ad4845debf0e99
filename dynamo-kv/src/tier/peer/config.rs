use std::time::Duration;

use dynamo_core::{Error, Result};

use crate::time::TIME_MAX;

/// What an [`Owner`](super::Owner) lends, and for how long.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct OwnerConfig {
    /// How long a lease lasts; a client that has died by then is forgotten.
    pub ttl: Duration,
    /// Blocks that are lent at once, in all.
    pub blocks_max: usize,
    /// Blocks that one lease may be about; clients learn it, and ask for no more.
    pub lease_blocks_max: usize,
    /// Leases that one client may have at once.
    pub client_leases_max: usize,
    /// Clients may have blocks removed, which are there for others too.
    pub is_removable: bool,
    /// Clients that are told at once what is there.
    pub watchers_max: usize,
}

impl OwnerConfig {
    /// Lends up to `blocks_max` blocks at once: what the owner itself is to have in any case is left.
    pub fn new(blocks_max: usize) -> Self {
        Self {
            // Moving the blocks of a lease takes a tenth of a second.
            ttl: Duration::from_secs(10),
            blocks_max,
            lease_blocks_max: 256,
            client_leases_max: 16,
            is_removable: false,
            // As many workers as a host has, and those that come after them.
            watchers_max: 64,
        }
    }

    /// Sets how long a lease lasts.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Limits the blocks of a lease, and the leases of a client.
    #[must_use]
    pub fn with_client_limits(mut self, lease_blocks_max: usize, leases_max: usize) -> Self {
        (self.lease_blocks_max, self.client_leases_max) = (lease_blocks_max, leases_max);
        self
    }

    /// Lets clients have blocks removed.
    #[must_use]
    pub fn with_removable(mut self, is_removable: bool) -> Self {
        self.is_removable = is_removable;
        self
    }

    /// Limits the clients that are told at once what is there.
    #[must_use]
    pub fn with_watchers_max(mut self, watchers_max: usize) -> Self {
        self.watchers_max = watchers_max;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        time("ttl", self.ttl)?;
        count("blocks_max", self.blocks_max)?;
        count("lease_blocks_max", self.lease_blocks_max)?;
        count("client_leases_max", self.client_leases_max)
    }
}

/// How a [`PeerTier`](super::PeerTier) asks.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PeerConfig {
    /// Blocks that are moved under one lease, if the owner lends so many.
    pub batch_blocks: usize,
    /// Batches under way at once; others wait, in order.
    pub in_flight: usize,
    /// How long the owner may take to answer, loading from its own tier included, and how long it may be
    /// silent: then what it had is taken to be out of reach, at most as long again later.
    pub request_timeout: Duration,
    /// How long it may take to say what is there; no answer means nothing is, and that it is not asked for
    /// four times as long at first.
    pub match_timeout: Duration,
    /// How long a block is taken to load until loads were measured.
    pub load_time: Duration,
}

impl Default for PeerConfig {
    fn default() -> Self {
        Self {
            // The first bytes arrive early, and an answer is worth its way.
            batch_blocks: 32,
            in_flight: 4,
            request_timeout: Duration::from_secs(5),
            // The first token waits for it.
            match_timeout: Duration::from_millis(250),
            // What a block takes from a process of the same host.
            load_time: Duration::from_micros(500),
        }
    }
}

impl PeerConfig {
    /// Sets how many blocks are moved under one lease, and how many leases there are at once.
    #[must_use]
    pub fn with_batches(mut self, batch_blocks: usize, in_flight: usize) -> Self {
        (self.batch_blocks, self.in_flight) = (batch_blocks, in_flight);
        self
    }

    /// Limits the time of an answer.
    #[must_use]
    pub fn with_request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Limits the time of an answer to what is there.
    #[must_use]
    pub fn with_match_timeout(mut self, timeout: Duration) -> Self {
        self.match_timeout = timeout;
        self
    }

    /// Says how long a block is taken to load until loads were measured.
    #[must_use]
    pub fn with_load_time(mut self, load_time: Duration) -> Self {
        self.load_time = load_time;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        time("request_timeout", self.request_timeout)?;
        time("match_timeout", self.match_timeout)?;
        count("batch_blocks", self.batch_blocks)?;
        count("in_flight", self.in_flight)
    }
}

fn time(name: &str, time: Duration) -> Result<()> {
    if time > TIME_MAX { Err(Error::invalid(format!("{name} of {time:?}"))) } else { Ok(()) }
}

fn count(name: &str, count: usize) -> Result<()> {
    let is_sound = (1..=COUNT_MAX).contains(&count);
    if is_sound { Ok(()) } else { Err(Error::invalid(format!("{name} of {count}"))) }
}

/// As many blocks as a pool may have.
const COUNT_MAX: usize = u32::MAX as usize;
