use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dynamo_core::protocol::{InstanceId, KvEvent, SequenceHash, SnapshotRequest, WorkerId};

use super::check::{Check, Resync};
use super::config::ResyncConfig;
use super::diagnosis::Diagnoses;
use super::sequencer::{Heard, Sequencer, Snapshot};
use super::stats::EventStats;
use super::table::Table;
use crate::index::{PrefixIndex, PrefixReader};
use crate::workers::Seat;

/// The writing side of a router's index: what workers say, in order.
///
/// Time is a parameter, and who feeds it asks for the snapshots that are [`due`](Self::due).
#[derive(Debug, Default)]
pub(crate) struct Intake {
    state: Mutex<State>,
    diagnoses: Mutex<Diagnoses>,
}

#[derive(Debug, Default)]
struct State {
    index: PrefixIndex,
    publishers: BTreeMap<WorkerId, Publisher>,
    feeds: BTreeMap<FeedId, Resync>,
    feeds_opened: u64,
    hashes: Vec<SequenceHash>,
    totals: EventStats,
}

/// One feed with snapshots, of those that a router has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FeedId(u64);

/// One worker: its seat, by whose slot the index knows it, and what was heard of it.
#[derive(Debug)]
struct Publisher {
    seat: Arc<Seat>,
    sequencer: Sequencer,
    /// The feed that can ask for its snapshots, and when that is to be done.
    feed: Option<(FeedId, Check)>,
    /// It has said something, other than in answers.
    is_heard: bool,
}

/// A snapshot to be asked for; the answer is for [`Intake::settle`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Question {
    pub(super) request: SnapshotRequest,
    feed: FeedId,
    number: u64,
}

impl Intake {
    /// Takes in an event that `feed` heard; `take_seat` finds a seat for a worker that is new.
    pub(crate) fn apply(
        &self,
        event: &KvEvent,
        feed: Option<FeedId>,
        now: Instant,
        take_seat: impl FnOnce(WorkerId) -> Option<Arc<Seat>>,
    ) {
        let mut state = self.lock();
        state.totals.events_total += 1;
        if state.meet(event.worker, feed, now, take_seat) && state.hear(event, now) {
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
            for (worker, publisher) in publishers {
                if let Some((by, check)) = &mut publisher.feed
                    && *by == feed
                    && let Some(number) = resync.ask(check, now)
                {
                    publisher.sequencer.asked();
                    let known = publisher.sequencer.known();
                    let request = SnapshotRequest { worker: *worker, known };
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
        let first = WorkerId { instance, rank: 0 };
        let last = WorkerId { instance, rank: u32::MAX };
        let workers: Vec<_> = state.publishers.range(first..=last).map(|(id, _)| *id).collect();
        let gone: Vec<_> =
            workers.iter().filter_map(|worker| state.publishers.remove(worker)).collect();
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

    /// Tells whether a worker is known, if only to be asked.
    pub(super) fn knows(&self, worker: WorkerId) -> bool {
        self.lock().publishers.contains_key(&worker)
    }

    /// Returns what events have come to.
    pub(crate) fn stats(&self) -> EventStats {
        let state = self.lock();
        let behind = state.publishers.values().filter(|known| known.sequencer.is_behind());
        EventStats {
            workers: state.publishers.len(),
            suspect: behind.count(),
            blocks: state.index.len(),
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

impl State {
    /// Makes sure that a worker is known, and who asks it; `false` if there is no place for it.
    fn meet(
        &mut self,
        worker: WorkerId,
        feed: Option<FeedId>,
        now: Instant,
        take_seat: impl FnOnce(WorkerId) -> Option<Arc<Seat>>,
    ) -> bool {
        let publisher = match self.publishers.entry(worker) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let Some(seat) = take_seat(worker) else {
                    tracing::warn!(%worker, "more workers than there are slots: its cache is not seen");
                    return false;
                };
                let sequencer = Sequencer::default();
                place.insert(Publisher { seat, sequencer, feed: None, is_heard: false })
            }
        };
        let is_new = |feed| publisher.feed.as_ref().is_none_or(|(by, _)| *by != feed);
        if let Some(feed) = feed.filter(|feed| is_new(*feed))
            && let Some(resync) = self.feeds.get_mut(&feed)
        {
            let is_whole = publisher.sequencer.is_whole();
            publisher.feed = Some((feed, resync.check(now)));
            if !is_whole {
                self.doubt(worker, now);
            }
        }
        true
    }

    /// Takes in an event of a worker that is known; tells whether it is the first.
    fn hear(&mut self, event: &KvEvent, now: Instant) -> bool {
        let Self { index, publishers, hashes, totals, .. } = self;
        let Some(publisher) = publishers.get_mut(&event.worker) else { return false };
        let Publisher { seat, sequencer, feed, is_heard } = publisher;
        let is_first = !std::mem::replace(is_heard, true);
        let mut table = Table { index, slot: seat.slot(), hashes };
        let was_behind = sequencer.is_behind();
        match sequencer.hear(event, feed.is_some(), |step| table.follow(step)) {
            Heard::Ignored => totals.ignored_total += 1,
            Heard::Applied if !sequencer.is_whole() => {}
            Heard::Applied => feed.iter_mut().for_each(|(_, check)| check.right(now)),
            Heard::Lost => {
                totals.gaps_total += 1;
                totals.dropped_total += 1;
            }
            Heard::Held if was_behind => {}
            Heard::Held => {
                totals.gaps_total += 1;
                let is_late = sequencer.missing() <= LATE_MAX;
                let pause = if is_late { LATE } else { Duration::ZERO };
                self.doubt(event.worker, now + pause);
            }
        }
        is_first
    }

    /// Takes in the answer to a question.
    fn settle(&mut self, question: Question, answer: Option<&Snapshot>, now: Instant) {
        let Self { index, publishers, feeds, hashes, totals, .. } = self;
        let Question { request: SnapshotRequest { worker, .. }, feed, number } = question;
        match answer {
            Some(_) => totals.snapshots_total += 1,
            None => totals.snapshots_failed_total += 1,
        }
        let Some(resync) = feeds.get_mut(&feed) else { return };
        resync.settled();
        // It may have been forgotten, and be another one meanwhile.
        let Some(publisher) = publishers.get_mut(&worker) else { return };
        let Publisher { seat, sequencer, feed: Some((by, check)), .. } = publisher else { return };
        if *by != feed || !check.is_answered(number) {
            return;
        }
        let mut table = Table { index, slot: seat.slot(), hashes };
        answer.into_iter().for_each(|its| sequencer.splice(its, |step| table.follow(step)));
        sequencer.answered();
        let is_over = if answer.is_some() && sequencer.is_whole() {
            check.was_right(now);
            false
        } else {
            !check.failed(&resync.config, &mut resync.random, now)
        };
        check.due().into_iter().for_each(|at| resync.plan(at));
        if is_over {
            self.give_up(worker);
        }
    }

    /// Has a worker asked at `at`.
    fn doubt(&mut self, worker: WorkerId, at: Instant) {
        let publisher = self.publishers.get_mut(&worker);
        if let Some((feed, check)) = publisher.and_then(|known| known.feed.as_mut())
            && let Some(resync) = self.feeds.get_mut(feed)
        {
            check.wrong(at);
            resync.plan(at);
        }
    }

    /// Drops what is known of a worker if events are missing.
    fn give_up(&mut self, worker: WorkerId) {
        let Self { index, publishers, hashes, totals, .. } = self;
        let Some(publisher) = publishers.get_mut(&worker) else { return };
        totals.dropped_total += u64::from(publisher.sequencer.is_behind());
        let mut table = Table { index, slot: publisher.seat.slot(), hashes };
        publisher.sequencer.answered();
        publisher.sequencer.give_up(|step| table.follow(step));
    }

    fn heard_by(&self, feed: FeedId) -> Vec<WorkerId> {
        let is_its = |known: &Publisher| known.feed.as_ref().is_some_and(|(by, _)| *by == feed);
        self.publishers.iter().filter(|(_, known)| is_its(known)).map(|(id, _)| *id).collect()
    }
}

/// So few missing events may be late only, and are waited for.
const LATE_MAX: u64 = 64;

/// Longer than two events take that overtake each other.
const LATE: Duration = Duration::from_millis(20);

/// A busy worker has said something by then.
const DOUBT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
