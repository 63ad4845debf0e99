use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dynamo_core::time::{Clock, SystemClock};

/// How long a block takes to load, as a moving average of the loads so far.
///
/// A load of many blocks counts as many: each of them moves the average by an eighth of the way, so
/// that what a tier does now is known after a batch or two. It includes what the tier was waited for:
/// a tier that is busy is slow.
///
/// # Why an estimate fades
/// Whoever plans by the estimate does not load what is cheaper to compute, and what is not loaded is
/// not measured: a figure that was too high, assumed or from a busy spell, would stay for good. So an
/// estimate halves with every [`HALVED_AFTER`](Self::HALVED_AFTER) in which no load began, until one
/// is tried. A load that has begun ends that: whoever else asks meanwhile gets the average as it is,
/// so that a tier that stays slow costs one load each time, not all that come.
#[derive(Debug)]
pub struct Pace(Mutex<Average>);

/// A load that is under way, which tells its [`Pace`] how long it took.
///
/// If it is dropped it was given up, and took that long at least.
#[derive(Debug)]
#[must_use]
pub struct Timing<'a> {
    pace: &'a Pace,
    blocks: usize,
    begun: Instant,
    hoped_ns: u64,
}

impl Pace {
    /// In which time without a load an estimate halves.
    pub const HALVED_AFTER: Duration = Duration::from_secs(10);

    /// Creates an average that begins with `per_block`.
    pub fn new(per_block: Duration) -> Self {
        Self(Mutex::new(Average::new(per_block, SystemClock.now())))
    }

    /// Begins to measure a load of so many blocks.
    pub fn begin(&self, blocks: usize) -> Timing<'_> {
        let begun = SystemClock.now();
        Timing { pace: self, blocks, begun, hoped_ns: self.average().begin(begun) }
    }

    /// Returns how long a load of so many blocks is likely to take.
    pub fn estimate(&self, blocks: usize) -> Duration {
        let blocks = u64::try_from(blocks).unwrap_or(u64::MAX);
        let per_block_ns = self.average().at(SystemClock.now());
        Duration::from_nanos(per_block_ns.saturating_mul(blocks))
    }

    fn average(&self) -> MutexGuard<'_, Average> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Timing<'_> {
    /// Ends the load, of which so many blocks came.
    pub fn end(mut self, hits: usize) {
        if hits == 0 {
            // What was absent was soon told, and says nothing; what failed took that long at least.
            return;
        }
        let elapsed = SystemClock.now() - self.begun;
        self.pace.average().observe(hits, elapsed, self.hoped_ns);
        self.blocks = 0;
    }
}

impl Drop for Timing<'_> {
    fn drop(&mut self) {
        let elapsed = SystemClock.now() - self.begun;
        self.pace.average().outlast(self.blocks, elapsed);
    }
}

/// The average, and when a load began last; pure.
#[derive(Debug)]
struct Average {
    per_block_ns: u64,
    begun: Instant,
}

impl Average {
    fn new(per_block: Duration, now: Instant) -> Self {
        Self { per_block_ns: nanoseconds(per_block), begun: now }
    }

    /// Returns what a block is taken to need.
    fn at(&self, now: Instant) -> u64 {
        let idle = now.saturating_duration_since(self.begun);
        let halvings = idle.as_nanos() / Pace::HALVED_AFTER.as_nanos();
        self.per_block_ns >> halvings.min(63)
    }

    /// Begins a load; returns what a block of it was taken to need.
    fn begin(&mut self, now: Instant) -> u64 {
        let hoped_ns = self.at(now);
        self.begun = now;
        hoped_ns
    }

    /// Takes note that so many blocks took so long, of which each was hoped to need `hoped_ns`.
    fn observe(&mut self, blocks: usize, elapsed: Duration, hoped_ns: u64) {
        let Some((blocks, seen)) = per_block(blocks, elapsed) else { return };
        if seen <= hoped_ns {
            // The hope came true: there is no way back through what was before.
            self.per_block_ns = self.per_block_ns.min(hoped_ns);
        }
        let step = |average: u64, _| average - average / WEIGHT + seen / WEIGHT;
        self.per_block_ns = (0..blocks.min(SETTLED)).fold(self.per_block_ns, step);
    }

    /// Takes note that so many blocks would have taken longer than that.
    fn outlast(&mut self, blocks: usize, elapsed: Duration) {
        let is_more = |(_, seen): &(u32, u64)| *seen > self.per_block_ns;
        if per_block(blocks, elapsed).filter(is_more).is_some() {
            self.observe(blocks, elapsed, 0);
        }
    }
}

/// Returns how many blocks count, and how many nanoseconds each took.
fn per_block(blocks: usize, elapsed: Duration) -> Option<(u32, u64)> {
    let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
    elapsed.checked_div(blocks).map(|each| (blocks, nanoseconds(each)))
}

fn nanoseconds(duration: Duration) -> u64 {
    // Half of the range, so that a sum of parts stays within it: 292 years.
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).min(u64::MAX / 2)
}

const WEIGHT: u64 = 8;

/// After so many steps nothing is left of what was before.
const SETTLED: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn average(per_block_ms: u64) -> (Average, Instant) {
        let now = SystemClock.now();
        (Average::new(Duration::from_millis(per_block_ms), now), now)
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn what_is_measured_takes_the_place_of_what_was_assumed() {
        let (mut average, now) = average(80);
        average.observe(0, ms(1000), 0);
        assert_eq!(average.at(now), 80 * MS);
        average.observe(1, ms(8), 0);
        assert_eq!(average.at(now), 71 * MS);
        average.observe(1 << 20, ms(1 << 20), 0);
        assert!((MS..MS + MS / 10).contains(&average.at(now)), "{average:?}");
        average.observe(2, Duration::MAX, 0);
        assert!(average.at(now) > u64::from(u32::MAX), "nothing overflows");
    }

    #[test]
    fn an_estimate_fades_until_a_load_is_tried_and_no_further() {
        let (mut average, begun) = average(80);
        let after = |count| begun + Pace::HALVED_AFTER * count;
        let fading = [0, 1, 2, 63, 64, 100_000].map(|count| average.at(after(count)));
        assert_eq!(fading, [80 * MS, 40 * MS, 20 * MS, 0, 0, 0]);
        assert_eq!(average.begin(after(3)), 10 * MS);
        assert_eq!(average.at(after(3)), 80 * MS, "others do not try too");
        assert_eq!(average.at(after(4)), 40 * MS);
    }

    #[test]
    fn a_hope_that_comes_true_stays_and_one_that_does_not_is_given_up() {
        for (seen, is_true) in [(5, true), (10, true), (11, false), (100, false)] {
            let (mut average, begun) = average(80);
            let later = begun + 3 * Pace::HALVED_AFTER;
            let hoped = average.begin(later);
            average.observe(1, ms(seen), hoped);
            assert_eq!(average.at(later) <= 10 * MS, is_true, "{seen}: {average:?}");
        }
    }

    #[test]
    fn a_load_that_is_given_up_took_that_long_at_least() {
        let (mut average, now) = average(10);
        average.outlast(64, ms(64));
        assert_eq!(average.at(now), 10 * MS, "given up early: nothing is known");
        average.outlast(64, ms(2000));
        assert!(average.at(now) > 31 * MS, "{average:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_tier_is_measured_by_what_ended_and_by_what_did_not() {
        let pace = Pace::new(ms(10));
        assert_eq!(pace.estimate(3), ms(30));
        pace.begin(64).end(0);
        assert_eq!(pace.estimate(1), ms(10), "nothing came, soon");
        let timing = pace.begin(64);
        tokio::time::advance(ms(64)).await;
        timing.end(64);
        assert!(pace.estimate(1) < ms(2));
        let timing = pace.begin(64);
        tokio::time::advance(ms(6400)).await;
        drop(timing);
        assert!(pace.estimate(1) > ms(90));
        tokio::time::advance(Pace::HALVED_AFTER * 9).await;
        assert!(pace.estimate(1) < ms(1));
        assert!(pace.estimate(usize::MAX) > Duration::from_secs(1 << 32), "nothing overflows");
    }
}
