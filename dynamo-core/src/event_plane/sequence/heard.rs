use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;

use super::{Kind, Stamp};

/// What one listener heard of each publisher.
#[derive(Debug)]
pub(in crate::event_plane) struct Heard {
    publishers: HashMap<u64, Last>,
    publishers_max: usize,
    /// Counts messages.
    now: u64,
    /// Whether whoever is not known may have been heard before.
    has_forgotten: bool,
}

#[derive(Debug)]
struct Last {
    epoch: u64,
    /// The number of the next event: all before it were heard, or told as missed, or not ours.
    next: u64,
    heard_at: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(in crate::event_plane) enum Judged {
    Event(Bytes),
    Nothing,
    /// This many are missing, and then comes the event.
    Gap {
        missed: u64,
        event: Option<Bytes>,
    },
}

impl Heard {
    /// Remembers `publishers_max` publishers at most.
    pub(in crate::event_plane) fn new(publishers_max: usize) -> Self {
        Self { publishers: HashMap::new(), publishers_max, now: 0, has_forgotten: false }
    }

    /// Judges a message that is here after having listened for `listened`.
    pub(in crate::event_plane) fn judge(
        &mut self,
        mut message: Bytes,
        listened: Duration,
    ) -> Judged {
        let Some(stamp) = Stamp::decode(&mut message) else {
            tracing::warn!("event with a header that makes no sense");
            return Judged::Gap { missed: 1, event: None };
        };
        let missed = match self.publishers.get(&stamp.publisher) {
            Some(last) if last.epoch != stamp.epoch => {
                // With how many events its last epoch ended, nobody knows.
                tracing::info!(publisher = stamp.publisher, "publisher of events has restarted");
                stamp.number.max(1)
            }
            // It was heard before, or its loss was told.
            Some(last) if stamp.after() <= last.next && stamp.kind == Kind::Event => {
                return Judged::Nothing;
            }
            Some(last) => stamp.number.saturating_sub(last.next),
            None if self.has_forgotten => stamp.number.max(1),
            None if is_before(stamp.quiet, listened) => 0,
            None => stamp.number,
        };
        self.remember(&stamp);
        match (missed, stamp.kind) {
            (0, Kind::Event) => Judged::Event(message),
            (0, Kind::SignOfLife) => Judged::Nothing,
            (missed, kind) => {
                Judged::Gap { missed, event: (kind == Kind::Event).then_some(message) }
            }
        }
    }

    fn remember(&mut self, stamp: &Stamp) {
        self.now += 1;
        let (epoch, mut next, heard_at) = (stamp.epoch, stamp.after(), self.now);
        if let Some(last) = self.publishers.get(&stamp.publisher) {
            if last.epoch == epoch {
                next = next.max(last.next);
            }
        } else if self.publishers.len() >= self.publishers_max {
            self.forget_half();
        }
        self.publishers.insert(stamp.publisher, Last { epoch, next, heard_at });
    }

    /// Forgets those that were silent for longest: who has ended is among them.
    fn forget_half(&mut self) {
        let mut times: Vec<u64> = self.publishers.values().map(|last| last.heard_at).collect();
        if times.is_empty() {
            return;
        }
        let middle = times.len() / 2;
        let (_, middle, _) = times.select_nth_unstable(middle);
        self.publishers.retain(|_, last| last.heard_at > *middle);
        self.has_forgotten = true;
    }
}

/// Returns whether what was published `quiet` before a message that has just come was published
/// before the listener listened, for sure.
fn is_before(quiet: Duration, listened: Duration) -> bool {
    quiet > listened.saturating_add(listened / CLOCKS_DIFFER)
}

/// Clocks run alike but for one part in so many: twice what they are slewed by at most.
const CLOCKS_DIFFER: u32 = 500;
