//! Workers with caches, a router's intake, and between them a network that loses, repeats and delays.

use std::collections::{BTreeMap, BTreeSet};

use dynamo_core::protocol::{KvChange, KvCursor, SequenceHash, Tier};
use dynamo_core::random::Random;
use dynamo_core::time::{Clock, SystemClock};

use super::super::*;
use crate::fixtures::block;
use crate::index::Matches;
use crate::router::RouterConfig;
use crate::workers::{Common, Members};

/// How often what goes wrong, in percent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Faults {
    pub(super) lost: usize,
    /// Of what is lost how much the plane tells.
    pub(super) told: usize,
    pub(super) repeated: usize,
    pub(super) late: usize,
    pub(super) restarts: usize,
    pub(super) unanswered: usize,
}

pub(super) const NO_FAULTS: Faults =
    Faults { lost: 0, told: 0, repeated: 0, late: 0, restarts: 0, unanswered: 0 };

/// A worker's cache as its events say it, computed the slow way.
#[derive(Debug, Default)]
struct Cache {
    cursor: Option<KvCursor>,
    held: BTreeSet<(SequenceHash, Tier)>,
    /// What it held at each cursor.
    history: BTreeMap<KvCursor, BTreeSet<SequenceHash>>,
}

enum Message {
    Event(KvEvent),
    Question(Question),
    Answer(Question, Option<Snapshot>),
}

impl Message {
    /// Returns whom it is about.
    fn worker(&self) -> WorkerId {
        match self {
            Self::Event(event) => event.worker,
            Self::Question(question) | Self::Answer(question, _) => question.request.worker,
        }
    }
}

pub(super) struct World {
    pub(super) intake: Intake,
    feed: Option<FeedId>,
    workers: Members,
    caches: Vec<Cache>,
    /// By the time of their arrival, and in order.
    messages: BTreeMap<(Instant, u64), Message>,
    sent: u64,
    pub(super) now: Instant,
    pub(super) random: Random,
    pub(super) faults: Faults,
}

/// Nobody yet.
pub(super) fn members() -> Members {
    Members::new(Common::new(Arc::new(SystemClock), &RouterConfig::default()))
}

impl World {
    pub(super) fn new(seed: u64, config: Option<ResyncConfig>, faults: Faults) -> Self {
        let intake = Intake::default();
        let feed = config.map(|config| intake.open(config.with_seed(seed)));
        Self {
            intake,
            feed,
            workers: members(),
            caches: (0..WORKERS).map(|_| Cache::default()).collect(),
            messages: BTreeMap::new(),
            sent: 0,
            now: SystemClock.now(),
            random: Random::new(seed),
            faults,
        }
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.random.below(100).unwrap() < percent
    }

    fn pick(&mut self, count: usize) -> usize {
        self.random.below(count).unwrap()
    }

    fn send(&mut self, delay: Duration, message: Message) {
        self.sent += 1;
        self.messages.insert((self.now + delay, self.sent), message);
    }

    /// A worker does something with its cache, and says so.
    pub(super) fn act(&mut self) {
        let worker = self.pick(WORKERS);
        if self.chance(self.faults.restarts) || self.caches[worker].cursor.is_none() {
            let cache = &mut self.caches[worker];
            let epoch = cache.cursor.map_or(1, |cursor| cursor.epoch + 1);
            cache.held.clear();
            cache.cursor = Some(KvCursor { epoch, next: 0 });
            cache.note();
        }
        let tier = if self.chance(50) { Tier::Host } else { Tier::Disk };
        let hashes: Vec<_> = (0..3).map(|_| SequenceHash(1 + self.pick(BLOCKS) as u64)).collect();
        let change = match self.pick(40) {
            0 => KvChange::AllBlocksCleared,
            1..22 => KvChange::BlockStored { parent: None, blocks: vec![block(hashes[0].0)], tier },
            _ => KvChange::BlockRemoved { sequence_hashes: hashes, tier },
        };
        let event = self.caches[worker].say(id(worker), change);
        self.publish(event);
    }

    fn publish(&mut self, event: KvEvent) {
        if self.chance(self.faults.lost) {
            if self.chance(self.faults.told) {
                self.feed.into_iter().for_each(|feed| self.intake.lost(feed, self.now));
            }
            return;
        }
        if self.chance(self.faults.repeated) {
            let delay = self.delay();
            self.send(delay, Message::Event(event.clone()));
        }
        let delay = if self.chance(self.faults.late) { self.delay() } else { Duration::ZERO };
        self.send(delay, Message::Event(event));
    }

    fn delay(&mut self) -> Duration {
        Duration::from_millis(self.pick(60) as u64)
    }

    /// Lets some time pass, in which messages arrive and workers are asked.
    pub(super) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            let asks = self.ask();
            let arrives = self.messages.keys().next().map(|(at, _)| *at);
            let next = arrives.into_iter().chain(asks).min().filter(|next| *next <= until);
            let Some(next) = next else { break };
            self.now = self.now.max(next);
            if arrives == Some(next) {
                let (_, message) = self.messages.pop_first().unwrap();
                let worker = message.worker();
                self.arrive(message);
                self.check(worker);
            }
        }
        self.now = until;
    }

    /// Asks whom it is time to ask, and returns when there is more to ask.
    fn ask(&mut self) -> Option<Instant> {
        let (questions, next) = self.intake.due(self.feed?, self.now);
        for question in questions {
            let delay = self.delay();
            self.send(delay, Message::Question(question));
        }
        next
    }

    fn arrive(&mut self, message: Message) {
        match message {
            Message::Event(event) => {
                let workers = &mut self.workers;
                self.intake.apply(&event, self.feed, self.now, |id| workers.hear_of(id));
            }
            Message::Question(question) => {
                let unanswered = self.chance(self.faults.unanswered);
                let answer = if unanswered { None } else { self.snapshot(question) };
                let delay = self.delay();
                self.send(delay, Message::Answer(question, answer));
            }
            Message::Answer(question, answer) => {
                self.intake.settle(question, answer.as_ref(), self.now);
            }
        }
    }

    fn snapshot(&self, question: Question) -> Option<Snapshot> {
        let SnapshotRequest { worker, known } = question.request;
        let cache = &self.caches[number(worker)];
        let cursor = cache.cursor?;
        let stored = |(hash, tier): &(SequenceHash, Tier)| KvChange::BlockStored {
            parent: None,
            blocks: vec![block(hash.0)],
            tier: *tier,
        };
        let held = cache.held.iter().filter(|_| known != Some(cursor));
        Some(Snapshot { cursor, stored: held.map(stored).collect() })
    }

    /// Returns what the index says that a worker holds.
    fn indexed(&self, worker: usize) -> BTreeSet<SequenceHash> {
        let Some(seat) = self.workers.get(id(worker)) else { return BTreeSet::new() };
        let (reader, mut matches) = (self.intake.reader(), Matches::default());
        let is_held = |hash: &SequenceHash| {
            reader.find(&[*hash], &mut matches);
            matches.depth(seat.slot()) == 1
        };
        (1..=BLOCKS as u64).map(SequenceHash).filter(is_held).collect()
    }

    /// Whatever has happened, the index is what a worker held when it said the last event that was let
    /// through, or less where nobody answers.
    fn check(&self, worker: WorkerId) {
        let state = self.intake.lock();
        let Some(publisher) = state.publishers.get(&worker) else { return };
        let sequencer = &publisher.sequencer;
        let Some(at) = sequencer.at else { return };
        let is_partial = sequencer.known().is_none();
        drop(state);
        let worker = number(worker);
        let (indexed, held) = (self.indexed(worker), &self.caches[worker].history[&at]);
        if is_partial {
            assert!(indexed.is_subset(held), "worker {worker} at {at:?}");
        } else {
            assert_eq!(indexed, *held, "worker {worker} at {at:?}");
        }
    }

    /// What every worker holds is what the index says, and nothing is missing.
    pub(super) fn assert_converged(&self) {
        for (worker, cache) in self.caches.iter().enumerate() {
            let Some(cursor) = cache.cursor else { continue };
            assert_eq!(self.indexed(worker), cache.history[&cursor], "worker {worker}");
            let state = self.intake.lock();
            assert_eq!(state.publishers[&id(worker)].sequencer.known(), Some(cursor));
        }
        assert_eq!(self.intake.stats().suspect, 0);
        let state = self.intake.lock();
        let asked = self.messages.values().filter(|its| !matches!(its, Message::Event(_)));
        let under_way = state.feeds.values().map(|resync| resync.under_way).sum::<usize>();
        assert_eq!(under_way, asked.count());
    }
}

impl Cache {
    fn note(&mut self) {
        let held = self.held.iter().map(|(hash, _)| *hash).collect();
        self.history.extend(self.cursor.map(|cursor| (cursor, held)));
    }

    /// Does what the change says, and says it.
    fn say(&mut self, worker: WorkerId, change: KvChange) -> KvEvent {
        match &change {
            KvChange::BlockStored { blocks, tier, .. } => {
                self.held.extend(blocks.iter().map(|block| (block.sequence, *tier)));
            }
            KvChange::BlockRemoved { sequence_hashes, tier } => {
                sequence_hashes.iter().for_each(|hash| _ = self.held.remove(&(*hash, *tier)));
            }
            _ => self.held.clear(),
        }
        let cursor = self.cursor.as_mut().unwrap();
        let event = KvEvent { worker, epoch: cursor.epoch, seq: cursor.next, change };
        cursor.next += 1;
        self.note();
        event
    }
}

pub(super) fn id(worker: usize) -> WorkerId {
    WorkerId::new(InstanceId(worker as u64))
}

pub(super) fn number(worker: WorkerId) -> usize {
    usize::try_from(worker.instance.0).unwrap()
}

pub(super) const WORKERS: usize = 3;
const BLOCKS: usize = 20;
