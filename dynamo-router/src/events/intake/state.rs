//! What an intake knows of those whose events it takes in.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dynamo_core::protocol::{InstanceId, KvEvent, SequenceHash, SnapshotRequest, WorkerId};

use super::super::check::{Check, Resync};
use super::super::sequencer::{Heard, Reached, Sequencer, Snapshot};
use super::super::stats::EventStats;
use super::super::table::Table;
use super::{FeedId, Question};
use crate::index::PrefixIndex;
use crate::workers::Seat;

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) index: PrefixIndex,
    pub(super) publishers: BTreeMap<WorkerId, Publisher>,
    pub(super) feeds: BTreeMap<FeedId, Resync>,
    pub(super) feeds_opened: u64,
    pub(super) hashes: Vec<SequenceHash>,
    pub(super) totals: EventStats,
}

/// One worker: its seat, by whose slot the index knows it, and what was heard of it.
#[derive(Debug)]
pub(super) struct Publisher {
    pub(super) seat: Arc<Seat>,
    pub(super) sequencer: Sequencer,
    /// The feed that can ask for its snapshots, and when that is to be done.
    pub(super) feed: Option<(FeedId, Check)>,
    /// It has said something, other than in answers.
    pub(super) is_heard: bool,
}

impl Publisher {
    fn new(seat: Arc<Seat>, sequencer: Sequencer) -> Self {
        Self { seat, sequencer, feed: None, is_heard: false }
    }

    /// One of which another intake has heard.
    pub(super) fn resumed(seat: Arc<Seat>, reached: Reached) -> Self {
        Self::new(seat, Sequencer::resumed(reached))
    }
}

impl State {
    /// Makes sure that a worker is known, and who asks it; `false` if there is no place for it.
    pub(super) fn meet(
        &mut self,
        worker: WorkerId,
        feed: Option<FeedId>,
        now: Instant,
        take_seat: impl FnOnce(WorkerId) -> Option<Arc<Seat>>,
    ) -> bool {
        let publisher = match self.publishers.entry(worker) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let Some(seat) = take_seat(worker) else { return false };
                place.insert(Publisher::new(seat, Sequencer::default()))
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
    pub(super) fn hear(&mut self, event: &KvEvent, now: Instant) -> bool {
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
    pub(super) fn settle(&mut self, question: Question, answer: Option<&Snapshot>, now: Instant) {
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
    pub(super) fn doubt(&mut self, worker: WorkerId, at: Instant) {
        let publisher = self.publishers.get_mut(&worker);
        if let Some((feed, check)) = publisher.and_then(|known| known.feed.as_mut())
            && let Some(resync) = self.feeds.get_mut(feed)
        {
            check.wrong(at);
            resync.plan(at);
        }
    }

    /// Drops what is known of a worker if events are missing.
    pub(super) fn give_up(&mut self, worker: WorkerId) {
        let Self { index, publishers, hashes, totals, .. } = self;
        let Some(publisher) = publishers.get_mut(&worker) else { return };
        totals.dropped_total += u64::from(publisher.sequencer.is_behind());
        let mut table = Table { index, slot: publisher.seat.slot(), hashes };
        publisher.sequencer.answered();
        publisher.sequencer.give_up(|step| table.follow(step));
    }

    /// Returns the ranks of an instance that are known.
    pub(super) fn workers_of(&self, instance: InstanceId) -> Vec<WorkerId> {
        let (first, last) = (WorkerId::new(instance), WorkerId { instance, rank: u32::MAX });
        self.publishers.range(first..=last).map(|(id, _)| *id).collect()
    }

    pub(super) fn heard_by(&self, feed: FeedId) -> Vec<WorkerId> {
        let is_its = |known: &Publisher| known.feed.as_ref().is_some_and(|(by, _)| *by == feed);
        self.publishers.iter().filter(|(_, known)| is_its(known)).map(|(id, _)| *id).collect()
    }
}

/// So few missing events may be late only, and are waited for.
pub(super) const LATE_MAX: u64 = 64;

/// Longer than two events take that overtake each other.
pub(super) const LATE: Duration = Duration::from_millis(20);
