use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;

use super::super::{Heard, Numbering, Stamp};
use super::told;
use crate::time::{Clock, ManualClock};

#[derive(Debug, Clone)]
pub(super) enum Step {
    Publish { publisher: usize, arrives: bool },
    Signs { publisher: usize, arrives: bool },
    Restart { publisher: usize },
    Wait(u16),
    Deliver,
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let message = || (0..3usize, any::<bool>());
    prop_oneof![
        6 => message().prop_map(|(publisher, arrives)| Step::Publish { publisher, arrives }),
        2 => message().prop_map(|(publisher, arrives)| Step::Signs { publisher, arrives }),
        1 => (0..3usize).prop_map(|publisher| Step::Restart { publisher }),
        3 => (0..2000u16).prop_map(Step::Wait),
        3 => Just(Step::Deliver),
    ]
}

/// Publishers, a carrier that loses and delays, and one listener; it counts what is owed and told.
pub(super) struct World {
    pub(super) clock: ManualClock,
    numberings: Vec<Numbering>,
    epochs: Vec<u64>,
    heard: Heard,
    pub(super) since: Option<Instant>,
    on_the_way: Vec<Bytes>,
    /// Per publisher and epoch: when each event was published.
    pub(super) published: BTreeMap<(u64, u64), Vec<Instant>>,
    /// Per publisher and epoch: numbers told, as they came; and all that were told as missed.
    pub(super) events: BTreeMap<(u64, u64), Vec<u64>>,
    pub(super) missed: BTreeMap<(u64, u64), u64>,
    /// The last number of each epoch that the listener has had word of.
    pub(super) known: BTreeMap<(u64, u64), u64>,
    last_epoch: BTreeMap<u64, u64>,
}

impl World {
    pub(super) fn new(remembers: usize) -> Self {
        Self {
            clock: ManualClock::new(),
            numberings: (0..3).map(|publisher| Numbering::new(publisher, 0)).collect(),
            epochs: vec![0; 3],
            heard: Heard::new(remembers),
            since: None,
            on_the_way: Vec::new(),
            published: BTreeMap::new(),
            events: BTreeMap::new(),
            missed: BTreeMap::new(),
            known: BTreeMap::new(),
            last_epoch: BTreeMap::new(),
        }
    }

    pub(super) fn run(&mut self, steps: &[Step]) {
        for step in steps {
            match *step {
                Step::Publish { publisher, arrives } => {
                    let now = self.clock.now();
                    let stamp = self.numberings[publisher].event("t", now);
                    self.published.entry((stamp.publisher, stamp.epoch)).or_default().push(now);
                    self.send(stamp, arrives);
                }
                Step::Signs { publisher, arrives } => {
                    for (_, stamp) in self.numberings[publisher].signs(self.clock.now()) {
                        self.send(stamp, arrives);
                    }
                }
                Step::Restart { publisher } => {
                    // What its last life sent may arrive later still.
                    let epoch = &mut self.epochs[publisher];
                    *epoch += 1;
                    self.numberings[publisher] = Numbering::new(publisher as u64, *epoch);
                }
                Step::Wait(millis) => self.clock.advance(Duration::from_millis(millis.into())),
                Step::Deliver => self.deliver(),
            }
        }
    }

    fn send(&mut self, stamp: Stamp, arrives: bool) {
        if arrives && self.since.is_some() {
            self.on_the_way.push(stamp.encode(&[]));
        }
    }

    pub(super) fn deliver(&mut self) {
        for message in std::mem::take(&mut self.on_the_way) {
            let stamp = Stamp::decode(&mut message.clone()).unwrap();
            let life = (stamp.publisher, stamp.epoch);
            let listened = self.clock.now() - self.since.unwrap();
            let (missed, is_event) = told(&self.heard.judge(message, listened));
            *self.missed.entry(life).or_default() += missed;
            if is_event {
                self.events.entry(life).or_default().push(stamp.number);
            }
            let known = self.known.entry(life).or_default();
            *known = stamp.after().max(*known);
            let before = self.last_epoch.insert(stamp.publisher, stamp.epoch);
            if before.is_some_and(|before| before != stamp.epoch) {
                assert!(missed > 0, "a restart is a gap");
            }
        }
    }

    /// Returns how many events of a life the listener is owed, as far as it had word of it.
    pub(super) fn owed(&self, life: (u64, u64)) -> u64 {
        let known = usize::try_from(self.known[&life]).unwrap();
        let published = &self.published[&life][..known];
        published.iter().filter(|at| Some(**at) >= self.since).count() as u64
    }

    pub(super) fn told(&self, life: (u64, u64)) -> u64 {
        self.missed[&life] + self.events.get(&life).map_or(0, Vec::len) as u64
    }
}
