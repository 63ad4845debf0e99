use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long a block takes to load, as a moving average of the loads so far.
///
/// A load of many blocks counts as many: each of them moves the average by an eighth of the way, so
/// that what a tier does now is known after a batch or two.
#[derive(Debug)]
pub struct Pace {
    per_block_ns: AtomicU64,
}

impl Pace {
    /// Creates an average that begins with `per_block`.
    pub fn new(per_block: Duration) -> Self {
        Self { per_block_ns: AtomicU64::new(nanoseconds(per_block)) }
    }

    /// Takes note that a load of so many blocks took so long.
    pub fn observe(&self, blocks: usize, elapsed: Duration) {
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
        let Some(seen) = elapsed.checked_div(blocks).map(nanoseconds) else { return };
        let moved = |average: u64| {
            let step = |average: u64, _| average - average / WEIGHT + seen / WEIGHT;
            Some((0..blocks.min(SETTLED)).fold(average, step))
        };
        // Never fails: there always is a next value.
        let _ = self.per_block_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, moved);
    }

    /// Returns how long a load of so many blocks is likely to take.
    pub fn estimate(&self, blocks: usize) -> Duration {
        let blocks = u64::try_from(blocks).unwrap_or(u64::MAX);
        Duration::from_nanos(self.per_block_ns.load(Ordering::Relaxed).saturating_mul(blocks))
    }
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

    #[test]
    fn what_is_measured_takes_the_place_of_what_was_assumed() {
        let pace = Pace::new(Duration::from_millis(80));
        assert_eq!(pace.estimate(3), Duration::from_millis(240));
        pace.observe(0, Duration::from_secs(1));
        assert_eq!(pace.estimate(1), Duration::from_millis(80));
        pace.observe(1, Duration::from_millis(8));
        assert_eq!(pace.estimate(1), Duration::from_millis(71));
        pace.observe(1 << 20, Duration::from_millis(1 << 20));
        let settled = pace.estimate(1).as_secs_f64();
        assert!((0.001..0.0011).contains(&settled), "{settled}");
        pace.observe(2, Duration::MAX);
        assert!(pace.estimate(usize::MAX) > Duration::from_secs(1 << 32), "nothing overflows");
    }
}
