use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::time::Duration;

use dynamo_core::protocol::KvEvent;

/// What happens, in the order of its time and then of its announcement.
#[derive(Default)]
pub(super) struct Agenda {
    next: BinaryHeap<Reverse<(Duration, u64, Item)>>,
    announced: u64,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Item {
    Arrival {
        request: usize,
    },
    PassEnd {
        pool: usize,
        worker: usize,
    },
    /// A worker's event reaches the router.
    Heard {
        pool: usize,
        event: Event,
    },
    /// The blocks of a prompt have been pulled.
    Pulled {
        request: usize,
    },
}

/// What is told of caches is heard in the order of its telling, so nothing is compared of it.
pub(super) struct Event(pub(super) KvEvent);

impl PartialEq for Event {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl Eq for Event {}
impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Event {
    fn cmp(&self, _: &Self) -> Ordering {
        Ordering::Equal
    }
}

impl Agenda {
    pub(super) fn push(&mut self, at: Duration, item: Item) {
        self.announced += 1;
        self.next.push(Reverse((at, self.announced, item)));
    }

    /// Returns when the next thing happens.
    pub(super) fn next_at(&self) -> Option<Duration> {
        self.next.peek().map(|Reverse((at, ..))| *at)
    }

    /// Takes the next thing if it happens by `now`.
    pub(super) fn pop_until(&mut self, now: Duration) -> Option<Item> {
        let Reverse((at, ..)) = self.next.peek()?;
        if *at > now {
            return None;
        }
        self.next.pop().map(|Reverse((_, _, item))| item)
    }
}
