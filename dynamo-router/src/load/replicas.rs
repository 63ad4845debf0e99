//! What other routers over the same workers have booked: pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dynamo_core::protocol::WorkerId;

use super::Load;

/// What one router has booked, all of it: a message that is lost or told twice does no harm, the
/// next one says all there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Booked {
    /// Who says it.
    pub(crate) router: u64,
    /// Grows when a router of that name starts anew.
    pub(crate) epoch: u64,
    /// Grows with each message of an epoch.
    pub(crate) seq: u64,
    /// The workers that it has booked anything on.
    pub(crate) loads: Vec<(WorkerId, Load)>,
}

/// The form of [`Booked`] on the event plane: router, epoch, seq; per worker requests, those
/// decoding, prompt tokens to prefill, blocks.
pub(crate) type Wire = (u64, u64, u64, Vec<(WorkerId, [u64; 4])>);

impl Booked {
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
    pub(crate) fn hear(&mut self, booked: Booked, now: Instant) -> Vec<WorkerId> {
        let Booked { router, epoch, seq, loads } = booked;
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

    /// Returns when the next router will have been silent for too long.
    pub(crate) fn next_silent(&self) -> Option<Instant> {
        self.routers.values().map(|share| share.heard + self.ttl).min()
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
mod tests {
    use dynamo_core::protocol::InstanceId;
    use dynamo_core::time::{Clock, SystemClock};
    use proptest::prelude::*;

    use super::*;

    const TTL: Duration = Duration::from_secs(3);

    fn worker(id: u64) -> WorkerId {
        WorkerId::new(InstanceId(id))
    }

    fn load(requests: usize) -> Load {
        let prefill_tokens = requests * 64;
        Load { requests, decoding: requests / 2, prefill_tokens, blocks: requests, blocks_total: 0 }
    }

    fn said(router: u64, epoch: u64, seq: u64, loads: &[(u64, usize)]) -> Booked {
        let loads = loads.iter().map(|&(id, requests)| (worker(id), load(requests))).collect();
        Booked { router, epoch, seq, loads }
    }

    #[test]
    fn the_last_word_of_each_router_counts_and_ones_own_does_not() {
        let now = SystemClock.now();
        let mut shares = Shares::new(7, TTL);
        assert_eq!(shares.hear(said(1, 0, 5, &[(1, 3), (2, 1)]), now), [worker(1), worker(2)]);
        assert_eq!(shares.hear(said(2, 0, 0, &[(1, 2)]), now), [worker(1)]);
        assert_eq!(shares.sum(worker(1)), load(3).plus(load(2)));
        assert_eq!(shares.hear(said(7, 0, 0, &[(1, 9)]), now), []);
        assert_eq!(shares.hear(said(1, 0, 5, &[(1, 9)]), now), [], "told twice");
        assert_eq!(shares.hear(said(1, 0, 4, &[(1, 9)]), now), [], "overtaken");
        assert_eq!(shares.hear(said(1, 0, 6, &[(2, 1)]), now), [worker(1)], "the rest is the same");
        assert_eq!(shares.sum(worker(1)), load(2));
        assert_eq!(shares.hear(said(1, 1, 0, &[]), now), [worker(2)], "it has started anew");
        assert_eq!(shares.sum(worker(2)), Load::default());
    }

    #[test]
    fn who_is_silent_is_forgotten_and_may_come_back() {
        let start = SystemClock.now();
        let mut shares = Shares::new(7, TTL);
        shares.hear(said(1, 4, 9, &[(1, 3)]), start);
        shares.hear(said(2, 0, 0, &[(1, 1)]), start + TTL / 2);
        assert_eq!(shares.next_silent(), Some(start + TTL));
        assert_eq!(shares.forget_silent(start + TTL / 2), []);
        // What is not news is no sign of life either: it may be a late one of a router that died.
        shares.hear(said(1, 4, 9, &[(1, 3)]), start + TTL / 2);
        assert_eq!(shares.forget_silent(start + TTL), [worker(1)]);
        assert_eq!(shares.sum(worker(1)), load(1));
        assert_eq!(shares.hear(said(1, 0, 0, &[(1, 3)]), start + TTL), [worker(1)]);
        shares.forget_silent(start + 3 * TTL);
        assert!(shares.sums.is_empty() && shares.next_silent().is_none());
    }

    #[test]
    fn counts_no_fleet_has_add_up_all_the_same() {
        let now = SystemClock.now();
        let mut shares = Shares::new(7, TTL);
        for router in 100..100 + 2 * ROUTERS_MAX as u64 {
            let wire = (router, 0, 0, vec![(worker(1), [u64::MAX; 4]); 2]);
            shares.hear(Booked::from_wire(wire), now);
        }
        assert_eq!(shares.routers.len(), ROUTERS_MAX);
        assert_eq!(shares.sum(worker(1)).requests, COUNT_MAX * ROUTERS_MAX);
        shares.forget_silent(now + TTL);
        assert!(shares.sums.is_empty());
    }

    proptest! {
        /// Whatever is lost, told twice or overtaken: once each router has been heard again, the
        /// sums are the truth, and before that what each has said at some time.
        #[test]
        fn the_sums_converge_to_the_truth(
            steps in prop::collection::vec((0..3u64, 0..4u64, 0..9usize, 0..8u8), 1..120),
            seed in any::<u64>(),
        ) {
            let mut random = dynamo_core::random::Random::new(seed);
            let now = SystemClock.now();
            let mut shares = Shares::new(99, TTL);
            let mut truth: [BTreeMap<WorkerId, Load>; 3] = Default::default();
            let mut told: [(u64, u64); 3] = Default::default();
            let mut on_the_way: Vec<Booked> = Vec::new();
            for (router, id, requests, fault) in steps {
                let at = usize::try_from(router).unwrap();
                if requests == 0 {
                    truth[at].remove(&worker(id));
                } else {
                    truth[at].insert(worker(id), load(requests));
                }
                let (epoch, seq) = &mut told[at];
                if fault == 7 {
                    // It starts anew, with nothing booked.
                    (*epoch, *seq) = (*epoch + 1, 0);
                    truth[at].clear();
                }
                *seq += 1;
                let loads = truth[at].iter().map(|(worker, load)| (*worker, *load)).collect();
                let booked = Booked { router, epoch: *epoch, seq: *seq, loads };
                let copies = match fault { 0 => 0, 1 => 2, _ => 1 };
                on_the_way.extend(std::iter::repeat_n(booked, copies));
                // Some wait and come in another order.
                while fault != 2 && let Some(next) = random.below(on_the_way.len()) {
                    shares.hear(on_the_way.swap_remove(next), now);
                }
            }
            for (at, (epoch, seq)) in told.into_iter().enumerate() {
                let loads = truth[at].iter().map(|(worker, load)| (*worker, *load)).collect();
                let booked = Booked { router: at as u64, epoch, seq: seq + 1, loads };
                shares.hear(Booked::from_wire(booked.to_wire()), now);
            }
            on_the_way.into_iter().for_each(|late| drop(shares.hear(late, now)));
            for id in 0..4 {
                let of = |loads: &BTreeMap<_, _>| loads.get(&worker(id)).copied();
                let sum = truth.iter().filter_map(of).fold(Load::default(), Load::plus);
                prop_assert_eq!(shares.sum(worker(id)), sum);
            }
        }
    }
}
