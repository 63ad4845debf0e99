use std::collections::BTreeMap;
use std::time::Instant;

use super::{Kind, Stamp};

/// What one publisher stamps in one epoch, topic by topic.
#[derive(Debug)]
pub(in crate::event_plane) struct Numbering {
    publisher: u64,
    epoch: u64,
    topics: BTreeMap<String, Last>,
}

#[derive(Debug)]
struct Last {
    /// The number of the next event.
    next: u64,
    published: Instant,
    /// Turns of signs of life since then.
    turns: u64,
}

impl Numbering {
    pub(in crate::event_plane) fn new(publisher: u64, epoch: u64) -> Self {
        Self { publisher, epoch, topics: BTreeMap::new() }
    }

    /// Numbers an event on `topic` that is published now.
    pub(in crate::event_plane) fn event(&mut self, topic: &str, now: Instant) -> Stamp {
        let (publisher, epoch) = (self.publisher, self.epoch);
        let first = Last { next: 0, published: now, turns: 0 };
        let last = self.topics.entry(topic.to_owned()).or_insert(first);
        let (number, quiet) = (last.next, now.saturating_duration_since(last.published));
        *last = Last { next: number + 1, published: now, turns: 0 };
        Stamp { publisher, epoch, number, quiet, kind: Kind::Event }
    }

    /// Takes a turn: returns the signs of life that are due.
    ///
    /// They come each turn for a while, then ever so often, and never end: a listener that was cut
    /// off for long learns what it lost though nothing more is published.
    pub(in crate::event_plane) fn signs(&mut self, now: Instant) -> Vec<(String, Stamp)> {
        let (publisher, epoch) = (self.publisher, self.epoch);
        let mut signs = Vec::new();
        for (topic, last) in &mut self.topics {
            last.turns += 1;
            if last.turns <= OFTEN || last.turns % RARELY == 0 {
                let quiet = now.saturating_duration_since(last.published);
                let (number, kind) = (last.next, Kind::SignOfLife);
                signs.push((topic.clone(), Stamp { publisher, epoch, number, quiet, kind }));
            }
        }
        signs
    }
}

/// So many turns have a sign each: a minute of seconds covers any reconnect.
const OFTEN: u64 = 60;

/// Then one turn in so many has one.
const RARELY: u64 = 60;
