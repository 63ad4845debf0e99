//! What routers over the same workers tell each other of what they have booked: pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dynamo_core::protocol::WorkerId;

use super::Load;
use super::exchange::ExchangeConfig;

/// What one router has booked, all of it: a message that is lost or told twice does no harm, the
/// next one says all there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Statement {
    /// Who says it.
    pub(crate) router: u64,
    /// Grows when a router of that name starts anew.
    pub(crate) epoch: u64,
    /// Grows with each message of an epoch.
    pub(crate) seq: u64,
    /// The workers that it has booked anything on.
    pub(crate) loads: Vec<(WorkerId, Load)>,
}

/// The form of [`Statement`] on the event plane: router, epoch, seq; per worker requests, those
/// decoding, prompt tokens to prefill, blocks.
pub(crate) type Wire = (u64, u64, u64, Vec<(WorkerId, [u64; 4])>);

impl Statement {
    pub(crate) fn to_wire(&self) -> Wire {
        let loads = self.loads.iter().map(|(worker, load)| {
            let Load { requests, decoding, prefill_tokens, blocks, .. } = *load;
            (*worker, [requests, decoding, prefill_tokens, blocks].map(|count| count as u64))
        });
        (self.router, self.epoch, self.seq, loads.collect())
    }

    /// Reads what another router says; counts beyond any real one are cut to what cannot overflow.
    pub(crate) fn from_wire((router, epoch, seq, loads): Wire) -> Self {
        let count = |count: u64| usize::try_from(count).unwrap_or(COUNT_MAX).min(COUNT_MAX);
        let loads = loads.into_iter().map(|(worker, counts)| {
            let [requests, decoding, prefill_tokens, blocks] = counts.map(count);
            (worker, Load { requests, decoding, prefill_tokens, blocks, blocks_total: 0 })
        });
        Self { router, epoch, seq, loads: loads.collect() }
    }
}

/// What a router says of itself, and when.
#[derive(Debug)]
pub(crate) struct Teller {
    interval: Duration,
    repeat_every: Duration,
    /// Something may be booked that it has not said.
    has_changed: bool,
    said_at: Instant,
    /// Before the first, that nothing is booked.
    last: Statement,
}

impl Teller {
    /// Creates the teller of the router that `config` names, at its start.
    pub(crate) fn new(config: &ExchangeConfig, now: Instant) -> Self {
        let last =
            Statement { router: config.router, epoch: config.epoch, seq: 0, loads: Vec::new() };
        let (interval, repeat_every) = (config.interval, config.repeat_every());
        Self { interval, repeat_every, has_changed: true, said_at: now, last }
    }

    /// Takes in that what is booked may have changed.
    pub(crate) fn changed(&mut self) {
        self.has_changed = true;
    }

    pub(crate) fn has_changed(&self) -> bool {
        self.has_changed
    }

    /// Returns when it is to look at what is booked.
    pub(crate) fn due(&self) -> Instant {
        self.said_at + if self.has_changed { self.interval } else { self.repeat_every }
    }

    /// Returns what to say of `booked`, if it is time to, and unless that has just been said.
    pub(crate) fn tell(
        &mut self,
        now: Instant,
        booked: impl FnOnce() -> Vec<(WorkerId, Load)>,
    ) -> Option<Wire> {
        if now < self.due() {
            return None;
        }
        let loads = booked();
        self.has_changed = false;
        (self.last.loads != loads || now >= self.due()).then(|| self.say(loads, now))
    }

    /// Returns what to say last: that nothing is booked.
    pub(crate) fn end(&mut self, now: Instant) -> Wire {
        self.say(Vec::new(), now)
    }

    fn say(&mut self, loads: Vec<(WorkerId, Load)>, now: Instant) -> Wire {
        self.last.seq += 1;
        (self.last.loads, self.said_at) = (loads, now);
        self.last.to_wire()
    }
}

/// The last that each other router has said, and the sums per worker.
///
/// A router that is silent for the TTL is forgotten, with all it has booked.
#[derive(Debug)]
pub(crate) struct Shares {
    own: u64,
    ttl: Duration,
    routers: BTreeMap<u64, Share>,
    sums: BTreeMap<WorkerId, Load>,
}

#[derive(Debug)]
struct Share {
    epoch: u64,
    seq: u64,
    heard: Instant,
    loads: BTreeMap<WorkerId, Load>,
}

impl Shares {
    /// Creates the shares as the router `own` sees them, whose messages are ignored.
    pub(crate) fn new(own: u64, ttl: Duration) -> Self {
        Self { own, ttl, routers: BTreeMap::new(), sums: BTreeMap::new() }
    }

    /// Takes in a message; returns the workers whose sum has changed.
    ///
    /// What is not newer than the last of its router changes nothing.
    pub(crate) fn hear(&mut self, statement: Statement, now: Instant) -> Vec<WorkerId> {
        let Statement { router, epoch, seq, loads } = statement;
        let known = self.routers.get(&router);
        let is_old = known.is_some_and(|known| (epoch, seq) <= (known.epoch, known.seq));
        let is_too_many = known.is_none() && self.routers.len() >= ROUTERS_MAX;
        if router == self.own || is_old || is_too_many {
            return Vec::new();
        }
        let loads: BTreeMap<_, _> = loads.into_iter().take(WORKERS_MAX).collect();
        let share = Share { epoch, seq, heard: now, loads: loads.clone() };
        let before = self.routers.insert(router, share).map(|share| share.loads);
        self.replace(&before.unwrap_or_default(), &loads)
    }

    /// Forgets routers that have been silent; returns the workers whose sum has changed.
    pub(crate) fn forget_silent(&mut self, now: Instant) -> Vec<WorkerId> {
        let ttl = self.ttl;
        let is_silent = |share: &Share| now.saturating_duration_since(share.heard) >= ttl;
        let silent: Vec<_> =
            self.routers.iter().filter(|(_, share)| is_silent(share)).map(|(id, _)| *id).collect();
        let gone = silent.into_iter().filter_map(|router| self.routers.remove(&router));
        let gone: Vec<_> = gone.collect();
        gone.iter().flat_map(|share| self.replace(&share.loads, &BTreeMap::new())).collect()
    }

    /// Returns what all other routers together have booked on `worker`.
    pub(crate) fn sum(&self, worker: WorkerId) -> Load {
        self.sums.get(&worker).copied().unwrap_or_default()
    }

    /// Returns the sums, of each worker that others have booked anything on.
    pub(crate) fn sums(&self) -> impl Iterator<Item = (WorkerId, Load)> + '_ {
        self.sums.iter().map(|(worker, load)| (*worker, *load))
    }

    /// Returns when the next router will have been silent for too long.
    pub(crate) fn next_silent(&self) -> Option<Instant> {
        self.routers.values().filter_map(|share| share.heard.checked_add(self.ttl)).min()
    }

    /// Puts `after` in the place of `before` in the sums.
    fn replace(
        &mut self,
        before: &BTreeMap<WorkerId, Load>,
        after: &BTreeMap<WorkerId, Load>,
    ) -> Vec<WorkerId> {
        let gone = before.keys().filter(|worker| !after.contains_key(worker));
        let mut changed = Vec::new();
        for worker in after.keys().chain(gone) {
            let of = |loads: &BTreeMap<_, _>| loads.get(worker).copied().unwrap_or_default();
            let (old, new): (Load, Load) = (of(before), of(after));
            if old == new {
                continue;
            }
            let sum = self.sums.entry(*worker).or_default();
            *sum = sum.less(old).plus(new);
            if *sum == Load::default() {
                self.sums.remove(worker);
            }
            changed.push(*worker);
        }
        changed
    }
}

/// More routers over the same workers are not counted.
const ROUTERS_MAX: usize = 1024;
/// More workers of one router are not counted.
const WORKERS_MAX: usize = 65_536;
/// As much as all routers together cannot add up to an overflow.
const COUNT_MAX: usize = usize::MAX / (2 * ROUTERS_MAX);

#[cfg(test)]
mod tests;
