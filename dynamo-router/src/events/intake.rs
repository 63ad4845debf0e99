mod state;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dynamo_core::protocol::{InstanceId, KvEvent, SnapshotRequest, WorkerId};
use state::{Publisher, State};

use super::check::Resync;
use super::config::ResyncConfig;
use super::diagnosis::Diagnoses;
use super::sequencer::{Reached, Snapshot};
use super::stats::EventStats;
use crate::index::{IndexConfig, PrefixIndex, PrefixReader, SnapshotError};
use crate::workers::Seat;

/// The writing side of a router's index: what workers say, in order.
///
/// Time is a parameter, and who feeds it asks for the snapshots that are [`due`](Self::due).
#[derive(Debug, Default)]
pub(crate) struct Intake {
    state: Mutex<State>,
    diagnoses: Mutex<Diagnoses>,
}

/// One feed with snapshots, of those that a router has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FeedId(u64);

/// A snapshot to be asked for; the answer is for [`Intake::settle`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Question {
    pub(super) request: SnapshotRequest,
    feed: FeedId,
    number: u64,
}

impl Intake {
    /// Creates one that has heard nothing, and whose index is set up by `config`.
    pub(crate) fn new(config: IndexConfig) -> Self {
        let state = State { index: PrefixIndex::new(config), ..State::default() };
        Self { state: Mutex::new(state), ..Self::default() }
    }

    /// Creates one that goes on where another one was: each of `workers` that `take_seat` finds a seat
    /// for holds what `index` says.
    pub(crate) fn resumed(
        config: IndexConfig,
        workers: &BTreeMap<WorkerId, Reached>,
        index: &[u8],
        mut take_seat: impl FnMut(WorkerId) -> Option<Arc<Seat>>,
    ) -> Result<Self, SnapshotError> {
        let resume = |(worker, reached): (&WorkerId, &Reached)| {
            Some((*worker, Publisher::resumed(take_seat(*worker)?, *reached)))
        };
        let publishers: BTreeMap<_, _> = workers.iter().filter_map(resume).collect();
        let place = |worker| publishers.get(&worker).map(|known| known.seat.slot());
        let index = PrefixIndex::restore(config, index, place)?;
        let state = State { index, publishers, ..State::default() };
        Ok(Self { state: Mutex::new(state), ..Self::default() })
    }

    /// Returns how far the events of each worker were let through, and the index as it was just then.
    pub(crate) fn snapshot(&self) -> (BTreeMap<WorkerId, Reached>, Vec<u8>) {
        let State { publishers, index, .. } = &*self.lock();
        let names: BTreeMap<_, _> =
            publishers.iter().map(|(worker, known)| (known.seat.slot(), *worker)).collect();
        let reached = |(worker, known): (&WorkerId, &Publisher)| {
            known.sequencer.reached().map(|reached| (*worker, reached))
        };
        let workers = publishers.iter().filter_map(reached).collect();
        (workers, index.snapshot(|slot| names.get(&slot).copied()))
    }

    /// Takes in an event that `feed` heard; `take_seat` finds a seat for a worker that is new, unless
    /// there is none for it.
    pub(crate) fn apply(
        &self,
        event: &KvEvent,
        feed: Option<FeedId>,
        now: Instant,
        take_seat: impl FnOnce(WorkerId) -> Option<Arc<Seat>>,
    ) {
        let mut state = self.lock();
        state.totals.events_total += 1;
        if !state.meet(event.worker, feed, now, take_seat) {
            state.totals.ignored_total += 1;
        } else if state.hear(event, now) {
            self.diagnoses().hear(event.worker, now);
        }
    }

    /// Has `feed` ask a worker for a snapshot, of which it need not have heard yet.
    pub(super) fn expect(
        &self,
        worker: WorkerId,
        feed: FeedId,
        now: Instant,
        take_seat: impl FnOnce(WorkerId) -> Option<Arc<Seat>>,
    ) {
        let mut state = self.lock();
        if state.meet(worker, Some(feed), now, take_seat) {
            state.doubt(worker, now);
        }
    }

    /// Events of any worker that `feed` hears of may be lost, the last one too.
    pub(super) fn lost(&self, feed: FeedId, now: Instant) {
        let state = &mut *self.lock();
        for worker in state.heard_by(feed) {
            // One that goes on in order meanwhile has lost nothing, and is not asked.
            let pause = state.feeds.get_mut(&feed).map(|resync| resync.random.around(DOUBT));
            state.doubt(worker, now + pause.unwrap_or_default());
        }
    }

    /// Opens a feed that asks for snapshots.
    pub(super) fn open(&self, config: ResyncConfig) -> FeedId {
        let state = &mut *self.lock();
        state.feeds_opened += 1;
        let feed = FeedId(state.feeds_opened);
        state.feeds.insert(feed, Resync::new(config));
        feed
    }

    /// Closes a feed: nobody asks any more for what is missing of the workers that it heard of.
    pub(super) fn close(&self, feed: FeedId) {
        let state = &mut *self.lock();
        for worker in state.heard_by(feed) {
            state.give_up(worker);
            if let Some(publisher) = state.publishers.get_mut(&worker) {
                publisher.feed = None;
            }
        }
        state.feeds.remove(&feed);
    }

    /// Returns whom `feed` is to ask at this moment, and when there is more to ask; to be called again
    /// then, and when an answer was settled.
    pub(super) fn due(&self, feed: FeedId, now: Instant) -> (Vec<Question>, Option<Instant>) {
        let State { publishers, feeds, .. } = &mut *self.lock();
        let Some(resync) = feeds.get_mut(&feed) else { return (Vec::new(), None) };
        let mut questions = Vec::new();
        if resync.is_due(now) {
            let its = publishers.iter_mut().filter_map(|(worker, publisher)| {
                let (_, check) = publisher.feed.as_mut().filter(|(by, _)| *by == feed)?;
                Some((check.due()?, *worker, check, &mut publisher.sequencer))
            });
            let mut its: Vec<_> = its.collect();
            // Who has waited longest is first: of many that do not answer none keeps others waiting.
            its.sort_unstable_by_key(|(at, worker, ..)| (*at, *worker));
            for (_, worker, check, sequencer) in its {
                if let Some(number) = resync.ask(check, now) {
                    sequencer.asked();
                    let request = SnapshotRequest { worker, known: sequencer.known() };
                    questions.push(Question { request, feed, number });
                }
            }
        }
        (questions, resync.next_due())
    }

    /// Takes in the answer to a question; `None` if it failed.
    pub(super) fn settle(&self, question: Question, answer: Option<&Snapshot>, now: Instant) {
        self.lock().settle(question, answer, now);
        self.sweep();
    }

    /// Forgets the workers of an instance.
    pub(crate) fn forget(&self, instance: InstanceId) {
        let mut locked = self.lock();
        let state = &mut *locked;
        let workers = state.workers_of(instance).into_iter();
        let gone: Vec<_> = workers.filter_map(|worker| state.publishers.remove(&worker)).collect();
        state.index.clear_all(gone.iter().map(|publisher| publisher.seat.slot()));
        // Before any event of a next life is heard.
        self.diagnoses().forget(instance);
        drop(locked);
        self.sweep();
    }

    /// Gives back the memory of what workers hold no more, and lets others write between times.
    fn sweep(&self) {
        while self.lock().index.sweep_more() {}
    }

    /// Returns the workers of an instance that are known.
    pub(super) fn workers_of(&self, instance: InstanceId) -> Vec<WorkerId> {
        self.lock().workers_of(instance)
    }

    /// Tells whether a worker is known, if only to be asked.
    pub(super) fn knows(&self, worker: WorkerId) -> bool {
        self.lock().publishers.contains_key(&worker)
    }

    /// Tells whether everything is known that a worker has said and holds.
    #[cfg(feature = "vllm")]
    pub(super) fn has_whole(&self, worker: WorkerId) -> bool {
        let state = self.lock();
        state.publishers.get(&worker).is_some_and(|known| known.sequencer.is_whole())
    }

    /// Returns what events have come to.
    pub(crate) fn stats(&self) -> EventStats {
        let state = self.lock();
        let behind = state.publishers.values().filter(|known| known.sequencer.is_behind());
        EventStats {
            workers: state.publishers.len(),
            suspect: behind.count(),
            blocks: state.index.len(),
            blocks_dropped_total: state.index.dropped_total(),
            ..state.totals
        }
    }

    /// Returns what finds prefixes in the index.
    pub(crate) fn reader(&self) -> PrefixReader {
        self.lock().index.reader()
    }

    pub(super) fn diagnoses(&self) -> MutexGuard<'_, Diagnoses> {
        self.diagnoses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A busy worker has said something by then.
const DOUBT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
