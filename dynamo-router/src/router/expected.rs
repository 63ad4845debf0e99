//! What workers are expected to hold, by what was sent to them: beside what they said themselves.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dynamo_core::Instance;
use dynamo_core::protocol::{InstanceId, SequenceHash};

use super::config::{PrefixSource, RouterConfig};
use crate::index::{
    ApproximateIndex, ApproximateReader, IndexConfig, Matches, ProvisionalCoverage,
};
use crate::workers::{Slot, as_ns};

/// What was sent where.
#[derive(Debug)]
pub(crate) enum Expected {
    Nothing,
    /// Until the worker says so, which it does soon.
    Provisional(ProvisionalCoverage),
    /// As long as the worker is likely to have it: it says nothing.
    Decided(Box<Decided>),
}

/// The index of a router's own decisions: written by whoever sends a request, read without a lock.
pub(crate) struct Decided {
    state: Mutex<State>,
    reader: ApproximateReader,
    begun: Instant,
    /// When something becomes too old, in nanoseconds from the beginning.
    due: AtomicU64,
}

struct State {
    index: ApproximateIndex,
    /// With its life ends what an instance had.
    incarnations: BTreeMap<InstanceId, u64>,
}

impl Expected {
    pub(crate) fn new(config: &RouterConfig, now: Instant) -> Self {
        match (config.source, config.provisional_ttl) {
            (PrefixSource::Decisions { ttl }, _) => {
                Self::Decided(Box::new(Decided::new(config.index, ttl, now)))
            }
            (PrefixSource::Events, Some(ttl)) => {
                Self::Provisional(ProvisionalCoverage::new(ttl, now))
            }
            (PrefixSource::Events, None) => Self::Nothing,
        }
    }

    /// Tells whether it is all that is known.
    pub(crate) fn is_decided(&self) -> bool {
        matches!(self, Self::Decided(_))
    }

    /// Lets `matches` say that workers hold what was sent to them, where it says less; `room` is for
    /// what is found on the way.
    pub(crate) fn expect(
        &self,
        hashes: &[SequenceHash],
        now: Instant,
        room: &mut Matches,
        matches: &mut Matches,
    ) {
        match self {
            Self::Nothing => {}
            Self::Provisional(sent) => sent.expect(hashes, now, matches),
            Self::Decided(decided) => {
                decided.advance(now);
                decided.reader.expect(hashes, room, matches);
            }
        }
    }

    /// Notes that a prompt with these hashes was sent to `worker`.
    pub(crate) fn note(&self, hashes: &[SequenceHash], worker: Slot, now: Instant) {
        match self {
            Self::Nothing => {}
            Self::Provisional(sent) => sent.note(hashes, worker, now),
            Self::Decided(decided) => {
                decided.lock().index.routed(worker, hashes, now);
            }
        }
    }

    /// Takes back that such a prompt was sent to `worker`, but for its first `depth` blocks.
    pub(crate) fn withdraw(&self, hashes: &[SequenceHash], depth: usize, worker: Slot) {
        match self {
            Self::Nothing => {}
            Self::Provisional(sent) => sent.withdraw(hashes, depth, worker),
            Self::Decided(decided) => {
                decided.lock().index.withdraw(worker, hashes.get(depth..).unwrap_or_default());
            }
        }
    }

    /// Forgets what was sent to `worker`, because it is gone or has lost its cache.
    pub(crate) fn forget(&self, worker: Slot, now: Instant) {
        match self {
            Self::Nothing => {}
            Self::Provisional(sent) => sent.forget(worker, now),
            Self::Decided(decided) => decided.lock().index.clear(worker),
        }
    }

    /// Takes note of who there is, and returns who of them has begun anew: nothing of what was sent
    /// there is left.
    pub(crate) fn begun_anew(&self, listed: &[Instance]) -> Vec<InstanceId> {
        let Self::Decided(decided) = self else { return Vec::new() };
        let known = &mut decided.lock().incarnations;
        let mut ids: Vec<_> =
            listed.iter().map(|instance| (instance.id, instance.incarnation)).collect();
        // Of two lives of one the later counts.
        ids.sort_unstable();
        let listed: BTreeMap<_, _> = ids.into_iter().collect();
        let is_other =
            |(id, life): &(&InstanceId, &u64)| known.get(id).is_some_and(|was| was != *life);
        let anew = listed.iter().filter(is_other).map(|(id, _)| *id).collect();
        // Who is missing may be back as the same.
        known.extend(listed);
        while known.len() > INSTANCES_MAX {
            known.pop_first();
        }
        anew
    }

    /// Returns how many different blocks anyone is taken to hold for good, and how many were dropped for
    /// want of room.
    pub(crate) fn counts(&self) -> (usize, u64) {
        let Self::Decided(decided) = self else { return (0, 0) };
        let state = decided.lock();
        (state.index.len(), state.index.dropped_total())
    }
}

impl Decided {
    fn new(config: IndexConfig, ttl: Duration, now: Instant) -> Self {
        let index = ApproximateIndex::new(config, ttl, now);
        let (reader, due) = (index.reader(), AtomicU64::new(0));
        let state = Mutex::new(State { index, incarnations: BTreeMap::new() });
        Self { state, reader, begun: now, due }
    }

    /// Forgets what has become too old, if it is time to and nobody else is at it: nobody waits.
    fn advance(&self, now: Instant) {
        let since = |at: Instant| as_ns(at.saturating_duration_since(self.begun));
        if since(now) < self.due.load(Ordering::Relaxed) {
            return;
        }
        if let Ok(mut state) = self.state.try_lock() {
            state.index.advance(now);
            self.due.store(since(state.index.next_turn()), Ordering::Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Decided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decided").field("index", &self.lock().index).finish_non_exhaustive()
    }
}

/// More than there are at a time: who was forgotten here counts as never seen.
const INSTANCES_MAX: usize = 2 * Slot::COUNT;
