use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::{Arc, Weak};

use dynamo_core::protocol::{InstanceId, WorkerId};
use dynamo_core::{Instance, Result};

use super::{Common, Fleet, Seat, Slot};

/// Everyone a router knows something of, listed or not.
#[derive(Debug)]
pub(crate) struct Members {
    common: Arc<Common>,
    seats: BTreeMap<WorkerId, Arc<Seat>>,
    /// Forgotten ones: who comes back while something is still booked on it finds that again.
    forgotten: BTreeMap<WorkerId, Weak<Seat>>,
    listed: BTreeSet<InstanceId>,
    /// Those that something is known of and that are not listed, and since when, in nanoseconds.
    absent_since: BTreeMap<InstanceId, u64>,
    /// Those that were forgotten since they were not listed: what they say is ignored until they are.
    ignored: BTreeSet<InstanceId>,
}

impl Members {
    pub(crate) fn new(common: Arc<Common>) -> Self {
        Self {
            common,
            seats: BTreeMap::new(),
            forgotten: BTreeMap::new(),
            listed: BTreeSet::new(),
            absent_since: BTreeMap::new(),
            ignored: BTreeSet::new(),
        }
    }

    /// Returns the seat of `worker`, if it has one.
    pub(crate) fn get(&self, worker: WorkerId) -> Option<Arc<Seat>> {
        let known = self.seats.get(&worker).cloned();
        known.or_else(|| self.forgotten.get(&worker).and_then(Weak::upgrade))
    }

    /// Tells whether something is known of `worker`, or it is listed.
    pub(crate) fn knows(&self, worker: WorkerId) -> bool {
        self.seats.contains_key(&worker)
    }

    /// Returns the seat of `worker`, of whom something is said, and gives it one if it has none;
    /// `None` if there are no more, or it was forgotten and is not listed.
    pub(crate) fn hear_of(&mut self, worker: WorkerId) -> Option<Arc<Seat>> {
        if self.ignored.contains(&worker.instance) {
            return None;
        }
        let Some(seat) = self.seat(worker) else {
            tracing::warn!(%worker, "more workers than there are slots: it is not seen");
            return None;
        };
        if !self.listed.contains(&worker.instance) {
            let now = self.common.now_ns();
            self.absent_since.entry(worker.instance).or_insert(now);
        }
        Some(seat)
    }

    /// Makes a fleet of `listed`, and notes who is not in it from now on.
    ///
    /// Who is missing is not forgotten at once: it may be ahead of discovery, and two callers may
    /// hold lists of different age.
    pub(crate) fn list(&mut self, listed: &[Instance]) -> (Fleet, Result<()>) {
        let mut ordered: Vec<_> = listed.iter().collect();
        ordered.sort_by_key(|instance| (instance.id, u64::MAX - instance.incarnation));
        ordered.dedup_by_key(|instance| instance.id);
        let made = Fleet::new(listed, &ordered, |worker| self.seat(worker));
        self.listed = ordered.iter().map(|instance| instance.id).collect();
        let now = self.common.now_ns();
        self.absent_since.retain(|instance, _| !self.listed.contains(instance));
        self.ignored.retain(|instance| !self.listed.contains(instance));
        for instance in self.seats.keys().map(|worker| worker.instance) {
            if !self.listed.contains(&instance) {
                self.absent_since.entry(instance).or_insert(now);
            }
        }
        made
    }

    /// Returns the first moment at which someone will have been absent for `absent_max_ns`.
    pub(crate) fn next_due(&self, absent_max_ns: u64) -> Option<u64> {
        self.absent_since.values().min().map(|since| since.saturating_add(absent_max_ns))
    }

    /// Forgets who has been absent for `absent_max_ns`, and returns them.
    pub(crate) fn forget_absent(&mut self, now: u64, absent_max_ns: u64) -> Vec<InstanceId> {
        let is_gone = |since: &u64| now.saturating_sub(*since) >= absent_max_ns;
        let absent = self.absent_since.iter().filter(|(_, since)| is_gone(since));
        let gone: Vec<_> = absent.map(|(instance, _)| *instance).collect();
        self.absent_since.retain(|_, since| !is_gone(since));
        gone.iter().for_each(|instance| self.dismiss(*instance));
        self.ignored.extend(&gone);
        while self.ignored.len() > Slot::COUNT {
            self.ignored.pop_first();
        }
        self.forgotten.retain(|_, seat| seat.strong_count() > 0);
        gone
    }

    /// Forgets what is known of `instance`; who is listed keeps its seat.
    pub(crate) fn forget(&mut self, instance: InstanceId) {
        if self.listed.contains(&instance) {
            self.seats.range(ranks_of(instance)).for_each(|(_, seat)| seat.load.speed().forget());
        } else {
            self.absent_since.remove(&instance);
            self.ignored.remove(&instance);
            self.dismiss(instance);
        }
    }

    /// Returns all seats there are.
    pub(crate) fn all(&self) -> impl Iterator<Item = Arc<Seat>> + '_ {
        let forgotten = self.forgotten.values().filter_map(Weak::upgrade);
        self.seats.values().cloned().chain(forgotten)
    }

    fn seat(&mut self, worker: WorkerId) -> Option<Arc<Seat>> {
        if let Some(seat) = self.seats.get(&worker) {
            return Some(Arc::clone(seat));
        }
        let left = self.forgotten.remove(&worker).and_then(|seat| seat.upgrade());
        let seat = left.or_else(|| Seat::take(worker, &self.common))?;
        self.seats.insert(worker, Arc::clone(&seat));
        Some(seat)
    }

    fn dismiss(&mut self, instance: InstanceId) {
        let ranks = self.seats.range(ranks_of(instance));
        let workers: Vec<_> = ranks.map(|(worker, _)| *worker).collect();
        for worker in workers {
            let Some(seat) = self.seats.remove(&worker) else { continue };
            seat.load.speed().forget();
            self.forgotten.insert(worker, Arc::downgrade(&seat));
        }
    }
}

fn ranks_of(instance: InstanceId) -> RangeInclusive<WorkerId> {
    WorkerId::new(instance)..=WorkerId { instance, rank: u32::MAX }
}
