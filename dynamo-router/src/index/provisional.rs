//! What was just sent where: so that requests with one prefix do not scatter before the first event.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dynamo_core::protocol::SequenceHash;

use super::bits::{low_bits, spread};
use super::matches::Matches;
use crate::workers::{Slot, as_ns};

/// A table of fixed size that forgets: by age, and what is oldest where room is short.
///
/// Whoever routes notes the request's prefix at some of its lengths, 1, 2, 4, then every eighth, and
/// further apart where it is long, and at its end; whoever asks looks for the longest that is there.
/// Any number of threads do both at a time, and none waits. It may forget too early, and it takes a
/// prefix for another in one of a hundred thousand queries.
#[derive(Debug)]
pub struct ProvisionalCoverage {
    buckets: Box<[Bucket]>,
    /// By slot, when it was forgotten last.
    forgotten: Box<[AtomicU64]>,
    begun: Instant,
    tick_ns: u64,
}

/// A cache line of entries.
///
/// An entry has room for a few bits of the time only. While it is fresh they say its age; whoever notes
/// anything in a bucket clears what is not, and after `latest` has become too old nothing there is.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Bucket {
    /// 24 bits of the hash, the slot, and when it was noted, in ticks; zero for none.
    cells: [AtomicU64; CELLS],
    /// When the latest entry was noted.
    latest: AtomicU64,
}

const CELLS: usize = 7;

/// An entry that is not too old.
#[derive(Debug, Clone, Copy)]
struct Entry {
    tag: u32,
    slot: u16,
    /// Ticks since it was noted.
    age: u64,
}

impl ProvisionalCoverage {
    /// Creates a table that forgets after `ttl`, counted from `now` on.
    pub fn new(ttl: Duration, now: Instant) -> Self {
        Self {
            buckets: (0..BUCKETS).map(|_| Bucket::default()).collect(),
            forgotten: (0..Slot::COUNT).map(|_| AtomicU64::new(0)).collect(),
            begun: now,
            tick_ns: as_ns(ttl / TTL_TICKS).max(1_000),
        }
    }

    /// Notes that a prompt with these hashes was sent to `worker`.
    pub fn note(&self, hashes: &[SequenceHash], worker: Slot, now: Instant) {
        let now = self.ticks(now);
        for length in lengths(hashes.len()).chain([hashes.len()]) {
            if let Some(hash) = length.checked_sub(1).and_then(|last| hashes.get(last)) {
                self.put(hash.0, worker, now);
            }
        }
    }

    /// Lets `matches` say that workers hold what was sent to them, where it says less.
    ///
    /// What is expected of a worker counts for its fastest tier.
    pub fn expect(&self, hashes: &[SequenceHash], now: Instant, matches: &mut Matches) {
        let now = self.ticks(now);
        let mut is_there = |length: usize| {
            let hash = length.checked_sub(1).and_then(|last| hashes.get(last));
            hash.is_some_and(|hash| self.expect_at((hash.0, length), now, matches))
        };
        if !is_there(1) || is_there(hashes.len()) {
            return;
        }
        // The longest that is there: ever further ahead, then between.
        let count = (0..).take_while(|number| length(*number) <= hashes.len()).count();
        let (mut low, mut step) = (0, 1);
        while low + step < count && is_there(length(low + step)) {
            low += step;
            step *= 2;
        }
        let mut high = (low + step).min(count);
        while low + 1 < high {
            let middle = low.midpoint(high);
            if is_there(length(middle)) {
                low = middle;
            } else {
                high = middle;
            }
        }
    }

    /// Takes back that a prompt with these hashes was sent to `worker`, but for its first `depth`
    /// blocks.
    ///
    /// Another prompt that was sent there and begins with more of them than that is forgotten as far
    /// as it is the same.
    pub fn withdraw(&self, hashes: &[SequenceHash], depth: usize, worker: Slot) {
        let slot = u64::try_from(worker.index()).unwrap_or(0);
        let noted = lengths(hashes.len()).chain([hashes.len()]).filter(|length| *length > depth);
        for hash in noted.filter_map(|length| hashes.get(length - 1)) {
            let (bucket, tag) = home(hash.0);
            let what = u64::from(tag) << 16 | slot;
            for cell in &self.buckets[bucket].cells {
                let there = cell.load(Ordering::Relaxed);
                if there >> 24 == what {
                    // What has taken its place meanwhile stays.
                    let order = Ordering::Relaxed;
                    let _ = cell.compare_exchange(there, 0, order, order);
                }
            }
        }
    }

    /// Forgets what was sent to a worker, because it is gone.
    pub fn forget(&self, worker: Slot, now: Instant) {
        self.forgotten[worker.index()].store(self.ticks(now), Ordering::Relaxed);
    }

    fn expect_at(&self, (hash, length): (u64, usize), now: u64, matches: &mut Matches) -> bool {
        let (bucket, tag) = home(hash);
        let bucket = &self.buckets[bucket];
        if !bucket.is_fresh(now) {
            return false;
        }
        let mut is_any = false;
        for cell in &bucket.cells {
            let entry = entry(cell.load(Ordering::Relaxed), now);
            let Some(entry) = entry.filter(|entry| entry.tag == tag) else { continue };
            let slot = usize::from(entry.slot);
            let noted = now.saturating_sub(entry.age);
            if noted > self.forgotten[slot].load(Ordering::Relaxed)
                && let Some(slot) = Slot::from_index(slot)
            {
                matches.expect(slot, length);
                is_any = true;
            }
        }
        is_any
    }

    /// Puts an entry where the same one is, or where none is, or in the oldest one's place.
    fn put(&self, hash: u64, worker: Slot, now: u64) {
        let (bucket, tag) = home(hash);
        let bucket = &self.buckets[bucket];
        let is_fresh = bucket.is_fresh(now);
        let slot = u64::try_from(worker.index()).unwrap_or(0);
        let what = u64::from(tag) << 40 | slot << 24;
        let noted = what | now & TIME_MASK;
        // What many prompts begin with is noted again and again: nobody's line is written to for that.
        if is_fresh && bucket.cells.iter().any(|cell| cell.load(Ordering::Relaxed) == noted) {
            return;
        }
        let mut best = (0, 0);
        for (at, cell) in bucket.cells.iter().enumerate() {
            let there = cell.load(Ordering::Relaxed);
            let age = match entry(there, now).filter(|_| is_fresh) {
                Some(_) if there >> 24 == what >> 24 => u64::MAX,
                Some(entry) => entry.age,
                None => {
                    cell.store(0, Ordering::Relaxed);
                    u64::MAX - 1
                }
            };
            best = best.max((age, at));
        }
        // Whoever sees this sees the others cleared.
        bucket.latest.fetch_max(now, Ordering::Release);
        bucket.cells[best.1].store(noted, Ordering::Relaxed);
    }

    /// Returns the time in ticks, from one on.
    fn ticks(&self, now: Instant) -> u64 {
        as_ns(now.saturating_duration_since(self.begun)) / self.tick_ns + 1
    }
}

impl Bucket {
    /// Tells whether any of its entries may be.
    fn is_fresh(&self, now: u64) -> bool {
        now.saturating_sub(self.latest.load(Ordering::Acquire)) <= u64::from(TTL_TICKS)
    }
}

/// Returns what a cell of a fresh bucket says, unless it is too old.
fn entry(cell: u64, now: u64) -> Option<Entry> {
    let [.., slot_low, slot_high, _, _, _] = cell.to_le_bytes();
    let age = now.wrapping_sub(cell) & TIME_MASK;
    let slot = u16::from_le_bytes([slot_low, slot_high]);
    (cell != 0 && age <= u64::from(TTL_TICKS)).then_some(Entry {
        tag: low_bits(cell >> 40),
        slot,
        age,
    })
}

fn home(hash: u64) -> (usize, u32) {
    let spread = spread(hash);
    let bucket = usize::try_from(spread >> 40).unwrap_or(0) % BUCKETS;
    (bucket, low_bits(spread & TAG_MASK))
}

/// Returns the length that is noted as number `number`: 1, 2, 4, 8, 16, 24, … 128, and from there on
/// sixteen until it has doubled.
fn length(number: usize) -> usize {
    let Some(eighth) = number.checked_sub(2) else { return number + 1 };
    match eighth {
        0 => 4,
        1..=16 => 8 * eighth,
        _ => (16 + eighth % 16) << (eighth / 16 + 2),
    }
}

fn lengths(count: usize) -> impl Iterator<Item = usize> {
    (0..).map(length).take_while(move |length| *length < count)
}

/// A mebibyte: some thousands of requests are known at a time.
const BUCKETS: usize = 1 << 14;

/// A time to live in ticks.
const TTL_TICKS: u32 = 64;

/// Of a time, and of a hash, what an entry has room for.
const TIME_MASK: u64 = 0xff_ffff;
const TAG_MASK: u64 = 0xff_ffff;

#[cfg(test)]
mod tests {
    use dynamo_core::time::{Clock, SystemClock};
    use proptest::prelude::*;

    use super::*;
    use crate::index::tests::{path, worker};

    const TTL: Duration = Duration::from_secs(2);

    fn depths(coverage: &ProvisionalCoverage, hashes: &[SequenceHash], now: Instant) -> Matches {
        let mut matches = Matches::default();
        coverage.expect(hashes, now, &mut matches);
        matches
    }

    #[test]
    fn lengths_grow_and_lie_within_a_sixteenth_of_each_other() {
        let lengths: Vec<_> = (0..200).map(length).collect();
        assert_eq!(lengths[..6], [1, 2, 4, 8, 16, 24]);
        assert!(lengths.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(lengths.windows(2).skip(18).all(|pair| (pair[1] - pair[0]) * 16 <= pair[0]));
    }

    proptest! {
        #[test]
        fn nobody_is_expected_to_hold_more_than_was_sent_there(
            sent in prop::collection::vec((0..6_usize, 0..201_usize, 0..20_usize, 0..3_u64), 1..12),
            asked in 0..6_usize,
            len in 0..201_usize,
        ) {
            let begun = SystemClock.now();
            let coverage = ProvisionalCoverage::new(TTL, begun);
            let mut now = begun;
            for (of, len, slot, seconds) in &sent {
                now += Duration::from_secs(*seconds);
                coverage.note(&path(*of)[..*len], worker(*slot), now);
            }
            let hashes = &path(asked)[..len];
            let matches = depths(&coverage, hashes, now);
            let mut at = begun;
            let sent: Vec<_> = sent.into_iter().map(|(of, len, slot, seconds)| {
                at += Duration::from_secs(seconds);
                let shared = path(of)[..len].iter().zip(hashes).take_while(|(a, b)| a == b).count();
                (slot, shared, now - at <= TTL)
            }).collect();
            for slot in 0..20 {
                let of_slot = sent.iter().filter(|(other, _, is_fresh)| *other == slot && *is_fresh);
                let most = of_slot.map(|(_, shared, _)| *shared).max().unwrap_or(0);
                prop_assert!(matches.depth(worker(slot)) <= most);
            }
            // The longest one is found, but for the distance between two lengths.
            let most = sent.iter().filter(|(.., is_fresh)| *is_fresh).map(|(_, shared, _)| *shared).max();
            let found = matches.iter().map(|(_, depth)| depth).max().unwrap_or(0);
            prop_assert!(found + 13 > most.unwrap_or(0), "{found} of {most:?}");
        }
    }

    #[test]
    fn what_was_sent_is_forgotten_with_time_and_with_the_worker() {
        let begun = SystemClock.now();
        let coverage = ProvisionalCoverage::new(TTL, begun);
        (1..3).for_each(|slot| coverage.note(&path(0), worker(slot), begun));
        let depth = |slot, now| depths(&coverage, &path(0), now).depth(worker(slot));
        assert_eq!(depth(1, begun + TTL / 2), path(0).len());
        coverage.forget(worker(1), begun + TTL / 2);
        assert_eq!(depth(1, begun + TTL / 2), 0);
        assert_eq!(depth(2, begun + TTL / 2), path(0).len());
        assert_eq!(depth(2, begun + TTL * 2), 0);
        coverage.note(&path(0), worker(1), begun + TTL);
        assert_eq!(depth(1, begun + TTL), path(0).len());

        // A prompt that was sent to one alone, and to another one as well.
        let late = begun + TTL * 3;
        coverage.note(&path(0), worker(1), late);
        coverage.withdraw(&path(0), 16, worker(1));
        assert_eq!(depth(1, late), 16);
        coverage.note(&path(0), worker(2), late);
        coverage.withdraw(&path(0), 0, worker(1));
        assert_eq!(depth(1, late), 0);
        assert_eq!(depth(2, late), path(0).len());
    }
    #[test]
    fn what_is_old_is_not_taken_for_fresh_however_long_the_table_is_in_use() {
        let begun = SystemClock.now();
        let coverage = ProvisionalCoverage::new(TTL, begun);
        let depth = |slot, now| depths(&coverage, &path(0), now).depth(worker(slot));
        let period = Duration::from_nanos(coverage.tick_ns) * (1 << 24);
        for round in [0, 1, 255, 256, 257] {
            let then = begun + period * round;
            coverage.note(&path(0), worker(1), then);
            assert_eq!(depth(1, then + TTL / 2), path(0).len());
            // As old as a time that looks alike, with and without others noted meanwhile.
            assert_eq!(depth(1, then + period), 0);
            coverage.note(&path(0), worker(2), then + period - TTL / 4);
            assert_eq!(depth(1, then + period), 0);
            assert_eq!(depth(2, then + period), path(0).len());
        }
    }
}
