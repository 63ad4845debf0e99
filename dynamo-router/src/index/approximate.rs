//! Who probably holds which prefix, where engines do not say: what was sent there, for a while.

use std::fmt;
use std::time::{Duration, Instant};

use dynamo_core::protocol::{SequenceHash, Tier};

use super::matches::Matches;
use super::{IndexConfig, PrefixIndex, PrefixReader};
use crate::workers::Slot;

/// An index fed by the router's own decisions.
///
/// A worker is taken to hold what was sent to it within the time to live, and a third longer at most:
/// what is sent within a third of that time is forgotten at once. With
/// [`IndexConfig::with_bytes_max`] the ends of sequences that were used least lately go before.
pub struct ApproximateIndex {
    /// Each worker has a slot for each third of the time to live.
    index: PrefixIndex,
    turn: Duration,
    /// Number of the current third, and when it began.
    current: usize,
    begun: Instant,
    workers_end: usize,
}

/// Finds prefixes in an approximate index; each thread has its own.
#[derive(Debug)]
pub struct ApproximateReader {
    reader: PrefixReader,
    matches: Matches,
}

impl ApproximateIndex {
    /// Workers that can be told apart: those of larger slots are not seen.
    pub const WORKERS_MAX: usize = Slot::COUNT / TURNS;

    /// Creates an index that forgets after `ttl`, counted from `now` on.
    pub fn new(config: IndexConfig, ttl: Duration, now: Instant) -> Self {
        let turn = (ttl / 3).max(Duration::from_nanos(1));
        let index = PrefixIndex::new(config);
        Self { index, turn, current: 0, begun: now, workers_end: 0 }
    }

    /// Records that a prompt with these hashes was sent to `worker`.
    pub fn routed(&mut self, worker: Slot, hashes: &[SequenceHash], now: Instant) {
        self.advance(now);
        if let Some(slot) = slot_of(worker, self.current) {
            self.workers_end = self.workers_end.max(worker.index() + 1);
            self.index.store(slot, Tier::Device, None, hashes);
        }
    }

    /// Forgets what has become too old.
    ///
    /// Recording does so, too; this is for when nothing is recorded.
    pub fn advance(&mut self, now: Instant) {
        // After as many turns as there are nothing is left: more would change nothing.
        for _ in 0..TURNS {
            if now.saturating_duration_since(self.begun) < self.turn {
                return;
            }
            self.begun += self.turn;
            self.current = (self.current + 1) % TURNS;
            let workers = (0..self.workers_end).filter_map(Slot::from_index);
            self.index.clear_all(workers.filter_map(|worker| slot_of(worker, self.current)));
        }
        if now.saturating_duration_since(self.begun) >= self.turn {
            self.begun = now;
        }
    }

    /// Takes back that blocks of a prompt were sent to `worker` a moment ago.
    pub(crate) fn withdraw(&mut self, worker: Slot, hashes: &[SequenceHash]) {
        let slot = slot_of(worker, self.current);
        slot.into_iter().for_each(|slot| self.index.remove(slot, Tier::Device, hashes));
    }

    /// Returns when the current third of the time to live ends.
    pub(crate) fn next_turn(&self) -> Instant {
        self.begun + self.turn
    }

    /// Forgets what was sent to `worker`, because it is gone or has lost its cache.
    pub fn clear(&mut self, worker: Slot) {
        self.index.clear_all((0..TURNS).filter_map(|turn| slot_of(worker, turn)));
    }

    /// Returns what finds prefixes in this index.
    pub fn reader(&self) -> ApproximateReader {
        ApproximateReader { reader: self.index.reader(), matches: Matches::default() }
    }

    /// Returns the number of different blocks that anyone is taken to hold.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Tells whether nobody is taken to hold anything.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Returns how many blocks were dropped to stay below [`IndexConfig::bytes_max`], so far.
    pub fn dropped_total(&self) -> u64 {
        self.index.dropped_total()
    }

    /// Returns how many bytes of memory it takes.
    pub fn bytes(&self) -> usize {
        self.index.bytes()
    }
}

impl ApproximateReader {
    /// Finds each worker's probably longest prefix of `hashes`, the sequence hashes of a prompt.
    ///
    /// What is expected of a worker counts for its fastest tier. It takes no lock and waits for nobody.
    pub fn find(&mut self, hashes: &[SequenceHash], matches: &mut Matches) {
        matches.clear();
        expect(&self.reader, hashes, &mut self.matches, matches);
    }

    /// Lets `matches` say that workers hold that much, where it says less.
    pub(crate) fn expect(
        &self,
        hashes: &[SequenceHash],
        room: &mut Matches,
        matches: &mut Matches,
    ) {
        expect(&self.reader, hashes, room, matches);
    }
}

impl fmt::Debug for ApproximateIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApproximateIndex").field("index", &self.index).finish_non_exhaustive()
    }
}

fn expect(
    reader: &PrefixReader,
    hashes: &[SequenceHash],
    found: &mut Matches,
    matches: &mut Matches,
) {
    reader.find(hashes, found);
    for (slot, depth) in found.iter() {
        if let Some(worker) = Slot::from_index(slot.index() / TURNS) {
            matches.expect(worker, depth);
        }
    }
}

/// Returns a worker's slot in the index for what is sent during one turn.
fn slot_of(worker: Slot, turn: usize) -> Option<Slot> {
    (worker.index() < ApproximateIndex::WORKERS_MAX)
        .then(|| Slot::from_index(worker.index() * TURNS + turn))
        .flatten()
}

/// Three in which it is held, and the one that goes on.
const TURNS: usize = 4;

#[cfg(test)]
mod tests {
    use dynamo_core::time::{Clock, SystemClock};
    use proptest::prelude::*;

    use super::*;
    use crate::index::tests::{path, worker};

    const TTL: Duration = Duration::from_secs(30);

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn what_was_sent_is_held_for_its_time_and_not_much_longer(
            sent in prop::collection::vec((0..6_usize, 1..201_usize, 0..3_usize, 0..25_u64), 1..20),
        ) {
            let begun = SystemClock.now();
            let mut index = ApproximateIndex::new(IndexConfig::default(), TTL, begun);
            let (mut reader, mut matches) = (index.reader(), Matches::default());
            let (mut now, mut known) = (begun, Vec::new());
            for (of, len, slot, seconds) in sent {
                now += Duration::from_secs(seconds);
                index.routed(worker(slot), &path(of)[..len], now);
                known.push((of, len, slot, now));
                for (asked, slot) in (0..6).flat_map(|asked| (0..3).map(move |slot| (asked, slot))) {
                    let hashes = path(asked);
                    reader.find(&hashes, &mut matches);
                    let longest = |age_max| {
                        let known = known.iter().filter(|(.., at)| now - *at < age_max);
                        let known = known.filter(|(_, _, other, _)| *other == slot);
                        let shared = known.map(|(of, len, ..)| {
                            path(*of)[..*len].iter().zip(&hashes).take_while(|(a, b)| a == b).count()
                        });
                        shared.max().unwrap_or(0)
                    };
                    let depth = matches.depth(worker(slot));
                    prop_assert!(longest(TTL) <= depth && depth <= longest(TTL * 4 / 3));
                }
            }
            index.advance(now + TTL * 2);
            prop_assert!(index.is_empty() && index.index.view.bytes() < 4096);
        }
    }

    #[test]
    fn a_worker_that_is_cleared_is_taken_to_hold_nothing() {
        let now = SystemClock.now();
        let mut index = ApproximateIndex::new(IndexConfig::default(), TTL, now);
        let (mut reader, mut matches) = (index.reader(), Matches::default());
        index.routed(worker(1), &path(0), now);
        index.routed(worker(2), &path(0)[..9], now + TTL / 2);
        index.clear(worker(1));
        reader.find(&path(0), &mut matches);
        assert_eq!(matches.iter().collect::<Vec<_>>(), [(worker(2), 9)]);
        index.routed(worker(ApproximateIndex::WORKERS_MAX), &path(0), now + TTL / 2);
        reader.find(&path(0), &mut matches);
        assert_eq!(matches.iter().count(), 1);
    }
}
