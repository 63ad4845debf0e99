use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::discovery::Instance;
use crate::error::{Error, ErrorKind};
use crate::metrics::Counter;
use crate::protocol::InstanceId;
use crate::random::Random;
use crate::time::{Clock, SystemClock};

/// What the calls of one client have learned of its instances.
#[derive(Debug, Default)]
pub(super) struct Health {
    ejections: Mutex<Ejections>,
    /// Nothing is known against anyone: the usual case, told without the lock.
    is_troubled: AtomicBool,
    /// Wakes whoever probes: somebody did not answer.
    suspected: Notify,
}

impl Health {
    /// Knows nothing of anyone yet; counts by `ejected` how often an instance is left out.
    pub(super) fn new(ejected: Arc<Counter>) -> Self {
        let ejections = Ejections { ejected, ..Ejections::default() };
        Self { ejections: Mutex::new(ejections), ..Self::default() }
    }

    /// Notes how a call of `instance` failed, `live` being the number of instances there are.
    pub(super) fn failed(&self, instance: &Instance, live: usize, error: &Error) {
        let now = SystemClock.now();
        match error.kind() {
            ErrorKind::Unavailable => {
                if self.lock().failed(instance, live, now) {
                    tracing::debug!(%instance, %error, "to be probed");
                    self.suspected.notify_one();
                }
            }
            ErrorKind::Overloaded if error.is_retryable() => {
                let until = now + error.retry_after().unwrap_or(FULL_FOR).min(FULL_MAX);
                self.lock().full(instance, until);
            }
            _ => return,
        }
        self.is_troubled.store(true, Ordering::Release);
    }

    /// Notes that a call of an instance was started.
    pub(super) fn worked(&self, id: InstanceId) {
        if self.is_troubled.load(Ordering::Acquire) {
            let mut ejections = self.lock();
            ejections.worked(id, SystemClock.now());
            // Under the lock, and looked at anew: who fails meanwhile is not forgotten.
            self.is_troubled.store(!ejections.entries.is_empty(), Ordering::Release);
        }
    }

    /// Forgets an instance that discovery does not know any more.
    pub(super) fn forget(&self, id: InstanceId) {
        self.lock().entries.remove(&id);
    }

    /// Returns those of `instances` that requests should go to.
    pub(super) fn candidates(&self, instances: Arc<[Instance]>) -> Arc<[Instance]> {
        if !self.is_troubled.load(Ordering::Acquire) {
            return instances;
        }
        self.lock().candidates(instances, SystemClock.now())
    }

    /// Forgets who is not in `instances`, or is there anew.
    pub(super) fn keep(&self, instances: &[Instance]) {
        if self.is_troubled.load(Ordering::Acquire) {
            self.lock().keep(instances);
        }
    }

    /// Waits until an instance is to be probed. Cancel safe.
    pub(super) async fn due(&self) {
        loop {
            let due = self.lock().due();
            let suspected = self.suspected.notified();
            match due {
                Some(due) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(due.into()) => return,
                        () = suspected => {}
                    }
                }
                None => suspected.await,
            }
        }
    }

    /// Returns whom to probe now; each is told of once, until [`probed`](Self::probed) says how it
    /// went.
    pub(super) fn take_due(&self) -> Vec<InstanceId> {
        self.lock().take_due(SystemClock.now())
    }

    pub(super) fn probed(&self, id: InstanceId, is_there: bool) {
        self.lock().probed(id, is_there, SystemClock.now());
    }

    fn lock(&self) -> MutexGuard<'_, Ejections> {
        self.ejections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who is left out, and for how long; pure.
///
/// ```text
/// in ──failed──► out, probe due ──probe fails──► gone, probe due later (doubled)
///  ▲                 └──probe succeeds──► in, on trial ──failed──► out, probe due later
///  └──────────────── works for as long as it was out ◄─┘
/// ```
///
/// A failed request is a suspicion, which may be the request's own doing: at most half of those who
/// are not gone are out for it, the rest stays in while it is probed. A probe that fails is proof:
/// any number may be gone, such as those that died one after the other and are still listed.
#[derive(Debug)]
struct Ejections {
    entries: BTreeMap<InstanceId, Record>,
    /// How often one was left out.
    ejected: Arc<Counter>,
    random: Random,
}

#[derive(Debug)]
struct Record {
    incarnation: u64,
    standing: Standing,
    probe: Option<Probe>,
    /// How often in a row it was ejected or did not answer a probe.
    failures: u32,
    back_since: Option<Instant>,
    full_until: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    In,
    Out,
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Probe {
    Due(Instant),
    Running,
}

impl Default for Ejections {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), ejected: Arc::default(), random: Random::unseeded() }
    }
}

impl Ejections {
    /// Has `instance` probed, and leaves it out unless half of those `listed` are who are not gone;
    /// tells whether that is news.
    fn failed(&mut self, instance: &Instance, listed: usize, now: Instant) -> bool {
        let count =
            |standing| self.entries.values().filter(|entry| entry.standing == standing).count();
        let (out, gone) = (count(Standing::Out), count(Standing::Gone));
        let entry = Self::entry(&mut self.entries, instance);
        if entry.probe.is_some() {
            return false;
        }
        if (out + 1) * 2 <= listed.saturating_sub(gone) {
            entry.standing = Standing::Out;
            self.ejected.add(1);
        }
        let wait = back_off(entry.failures, &mut self.random);
        entry.failures += 1;
        entry.probe = Some(Probe::Due(now + wait));
        true
    }

    fn full(&mut self, instance: &Instance, until: Instant) {
        Self::entry(&mut self.entries, instance).full_until = Some(until);
    }

    /// Returns what is known of the instance; of an older incarnation nothing counts.
    fn entry<'a>(
        entries: &'a mut BTreeMap<InstanceId, Record>,
        instance: &Instance,
    ) -> &'a mut Record {
        let incarnation = instance.incarnation;
        let (standing, probe) = (Standing::In, None);
        let (failures, back_since, full_until) = (0, None, None);
        let new = || Record { incarnation, standing, probe, failures, back_since, full_until };
        let entry = entries.entry(instance.id).or_insert_with(new);
        if entry.incarnation < incarnation {
            *entry = new();
        }
        entry
    }

    fn worked(&mut self, id: InstanceId, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if entry.standing == Standing::Gone {
            // Nobody was left, and so it was asked: a request that starts is as good as a probe.
            return entry.came_back(now);
        }
        if entry.full_until.is_some_and(|until| until <= now) {
            entry.full_until = None;
        }
        // Who came back has to last before its failures are forgotten.
        let trial = back_off_max(entry.failures);
        let has_lasted = entry.back_since.is_none_or(|since| now >= since + trial);
        if entry.probe.is_none() && entry.full_until.is_none() && has_lasted {
            self.entries.remove(&id);
        }
    }

    fn candidates(&self, instances: Arc<[Instance]>, now: Instant) -> Arc<[Instance]> {
        let entry = |instance: &Instance| self.entries.get(&instance.id);
        let is_out = |instance: &Instance| {
            entry(instance).is_some_and(|entry| entry.standing != Standing::In)
        };
        let is_full = |instance: &Instance| {
            entry(instance).is_some_and(|entry| entry.full_until.is_some_and(|until| until > now))
        };
        let keep = |keep: &dyn Fn(&Instance) -> bool| -> Option<Arc<[Instance]>> {
            let kept: Arc<[Instance]> =
                instances.iter().filter(|instance| keep(instance)).cloned().collect();
            (!kept.is_empty()).then_some(kept)
        };
        if !instances.iter().any(|instance| is_out(instance) || is_full(instance)) {
            return instances;
        }
        keep(&|instance| !is_out(instance) && !is_full(instance))
            .or_else(|| keep(&|instance| !is_out(instance)))
            .unwrap_or(instances)
    }

    fn keep(&mut self, instances: &[Instance]) {
        self.entries.retain(|id, entry| {
            let at = instances.binary_search_by_key(id, |instance| instance.id);
            at.is_ok_and(|at| instances[at].incarnation == entry.incarnation)
        });
    }

    fn due(&self) -> Option<Instant> {
        let due = |entry: &Record| match entry.probe {
            Some(Probe::Due(due)) => Some(due),
            _ => None,
        };
        self.entries.values().filter_map(due).min()
    }

    fn take_due(&mut self, now: Instant) -> Vec<InstanceId> {
        let mut taken = Vec::new();
        for (id, entry) in &mut self.entries {
            if matches!(entry.probe, Some(Probe::Due(due)) if due <= now) {
                entry.probe = Some(Probe::Running);
                taken.push(*id);
            }
        }
        taken
    }

    fn probed(&mut self, id: InstanceId, is_there: bool, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if is_there {
            entry.came_back(now);
        } else {
            let wait = back_off(entry.failures, &mut self.random);
            entry.failures += 1;
            self.ejected.add(u64::from(entry.standing == Standing::In));
            (entry.standing, entry.probe) = (Standing::Gone, Some(Probe::Due(now + wait)));
        }
    }
}

impl Record {
    fn came_back(&mut self, now: Instant) {
        (self.standing, self.probe, self.back_since) = (Standing::In, None, Some(now));
    }
}

/// Returns how long to wait before the next probe, about: at once for the first failure, for it may
/// have been the request's own; doubled from there on.
fn back_off(failures: u32, random: &mut Random) -> Duration {
    match failures {
        0 => Duration::ZERO,
        _ => random.around(back_off_max(failures)),
    }
}

fn back_off_max(failures: u32) -> Duration {
    BACK_OFF_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(BACK_OFF_MAX)
}

const BACK_OFF_FIRST: Duration = Duration::from_millis(250);
const BACK_OFF_MAX: Duration = Duration::from_secs(30);

/// An instance without room is left out this long if it says nothing, and no longer than that
/// whatever it says.
const FULL_FOR: Duration = Duration::from_millis(50);
const FULL_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::Address;
    use crate::name::{EndpointPath, Name};

    fn fleet(count: u64) -> Arc<[Instance]> {
        let name = |name| Name::new(name).unwrap();
        let endpoint =
            EndpointPath { namespace: name("n"), component: name("c"), endpoint: name("e") };
        let instance = |id| Instance {
            id: InstanceId(id),
            incarnation: 0,
            endpoint: endpoint.clone(),
            address: Address(String::new()),
            labels: BTreeMap::new(),
        };
        (0..count).map(instance).collect()
    }

    fn ids(instances: &[Instance]) -> Vec<u64> {
        instances.iter().map(|instance| instance.id.0).collect()
    }

    #[test]
    fn who_failed_is_out_until_a_probe_succeeds_and_probes_get_rarer() {
        let (mut ejections, fleet, mut now) = (Ejections::default(), fleet(3), SystemClock.now());
        assert!(ejections.failed(&fleet[1], 3, now));
        assert!(!ejections.failed(&fleet[1], 3, now), "it is out already");
        assert_eq!(ids(&ejections.candidates(Arc::clone(&fleet), now)), [0, 2]);
        let mut waits = Vec::new();
        for _ in 0..12 {
            let due = ejections.due().unwrap();
            waits.push(due - now);
            now = due;
            assert_eq!(ejections.take_due(now), [InstanceId(1)]);
            assert!(ejections.due().is_none() && ejections.take_due(now).is_empty());
            ejections.probed(InstanceId(1), false, now);
        }
        assert_eq!(waits[0], Duration::ZERO);
        assert!(waits[1] <= BACK_OFF_FIRST * 3 / 2 && waits[11] >= BACK_OFF_MAX / 2, "{waits:?}");
        assert_eq!(ids(&ejections.candidates(Arc::clone(&fleet), now)), [0, 2]);
        now = ejections.due().unwrap();
        ejections.take_due(now);
        ejections.probed(InstanceId(1), true, now);
        assert_eq!(ids(&ejections.candidates(Arc::clone(&fleet), now)), [0, 1, 2]);
        // On trial: one that fails again is not probed at once.
        assert!(ejections.failed(&fleet[1], 3, now));
        assert!(ejections.due().unwrap() > now);
    }

    #[test]
    fn who_lasts_is_as_good_as_new_and_so_is_a_new_incarnation() {
        let (mut ejections, fleet, now) = (Ejections::default(), fleet(3), SystemClock.now());
        ejections.failed(&fleet[1], 3, now);
        ejections.take_due(now);
        ejections.probed(InstanceId(1), true, now);
        ejections.worked(InstanceId(1), now);
        assert_eq!(ejections.entries.len(), 1);
        ejections.worked(InstanceId(1), now + BACK_OFF_FIRST);
        assert!(ejections.entries.is_empty());

        ejections.failed(&fleet[2], 3, now);
        let mut next = fleet.to_vec();
        next[2].incarnation = 1;
        ejections.keep(&next);
        assert!(ejections.entries.is_empty());
    }

    #[test]
    fn at_most_half_are_out_on_suspicion() {
        for (live, out_max) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)] {
            let (mut ejections, fleet, now) =
                (Ejections::default(), fleet(live), SystemClock.now());
            let count = fleet.len();
            fleet.iter().for_each(|i| assert!(ejections.failed(i, count, now), "all are probed"));
            let is_out = |entry: &&Record| entry.standing == Standing::Out;
            let out = ejections.entries.values().filter(is_out).count();
            assert_eq!(out, out_max, "of {live}");
        }
    }

    #[test]
    fn any_number_is_left_out_that_did_not_answer_a_probe_and_all_are_asked_if_nobody_is_left() {
        let (mut ejections, fleet, now) = (Ejections::default(), fleet(6), SystemClock.now());
        let dies = |ejections: &mut Ejections, at: usize| {
            ejections.failed(&fleet[at], 6, now);
            assert_eq!(ejections.take_due(now), [fleet[at].id]);
            ejections.probed(fleet[at].id, false, now);
        };
        (0..4).for_each(|at| dies(&mut ejections, at));
        assert_eq!(ids(&ejections.candidates(Arc::clone(&fleet), now)), [4, 5]);
        // Of the two who are there, half may be out on suspicion.
        ejections.failed(&fleet[4], 6, now);
        assert_eq!(ids(&ejections.candidates(Arc::clone(&fleet), now)), [5]);
        ejections.take_due(now);
        ejections.probed(InstanceId(4), false, now);
        dies(&mut ejections, 5);
        assert_eq!(ids(&ejections.candidates(Arc::clone(&fleet), now)), [0, 1, 2, 3, 4, 5]);
        ejections.worked(InstanceId(2), now);
        assert_eq!(ids(&ejections.candidates(Arc::clone(&fleet), now)), [2]);
    }

    #[test]
    fn who_is_full_is_left_out_as_long_as_it_asked_if_another_has_room() {
        let (mut ejections, fleet, now) = (Ejections::default(), fleet(2), SystemClock.now());
        let until = now + Duration::from_secs(1);
        ejections.full(&fleet[0], until);
        assert_eq!(ids(&ejections.candidates(Arc::clone(&fleet), now)), [1]);
        assert_eq!(ids(&ejections.candidates(Arc::clone(&fleet), until)), [0, 1]);
        ejections.full(&fleet[1], until);
        assert_eq!(ids(&ejections.candidates(Arc::clone(&fleet), now)), [0, 1]);
        ejections.worked(InstanceId(0), until);
        ejections.worked(InstanceId(1), until);
        assert!(ejections.entries.is_empty());
    }
}
