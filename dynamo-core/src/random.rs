//! Random numbers for choices that need no secret: seeded, so that a run can be repeated.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// SplitMix64 (Steele, Lea, Flood 2014): the same seed gives the same numbers.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Starts from `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Starts from a seed that differs each time.
    pub fn unseeded() -> Self {
        Self::new(RandomState::new().build_hasher().finish())
    }

    /// Returns the next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number from 0 to `count - 1`, or `None` if that is none.
    ///
    /// The bias is below `count` / 2^64.
    pub fn below(&mut self, count: usize) -> Option<usize> {
        let number = self.next_u64().checked_rem(count as u64)?;
        usize::try_from(number).ok()
    }

    /// Returns a time from half of `about` to one and a half: so that many who wait alike do not
    /// come back together.
    pub fn around(&mut self, about: Duration) -> Duration {
        let thousandths = 500 + u32::try_from(self.next_u64() % 1001).unwrap_or(0);
        about * thousandths / 1000
    }

    /// Returns [about](Self::around) how long to wait for another attempt: `first`, doubled so often,
    /// and `max` at most.
    pub fn back_off(&mut self, first: Duration, doublings: u32, max: Duration) -> Duration {
        self.around(first.saturating_mul(1 << doublings.min(DOUBLINGS_MAX)).min(max))
    }
}

/// A millisecond is weeks then.
const DOUBLINGS_MAX: u32 = 31;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_repeat_with_the_seed_and_fill_their_range() {
        let draw = |seed| -> Vec<_> {
            let mut random = Random::new(seed);
            (0..3000).map(|_| random.below(3).unwrap()).collect()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        for number in 0..3 {
            let count = draw(1).into_iter().filter(|drawn| *drawn == number).count();
            assert!((900..1100).contains(&count), "{number} came {count} times");
        }
        assert_eq!(Random::new(1).below(0), None);
        assert_ne!(Random::unseeded().next_u64(), Random::unseeded().next_u64());
        let second = Duration::from_secs(1);
        let mut random = Random::new(1);
        let waits: Vec<_> = (0..100).map(|_| random.around(second)).collect();
        assert!(waits.iter().all(|wait| (second / 2..=second * 3 / 2).contains(wait)));
        assert!(waits.iter().min() < waits.iter().max());
    }

    #[test]
    fn a_wait_doubles_up_to_a_limit_however_often_it_does() {
        let second = Duration::from_secs(1);
        for (doublings, about) in [(0, 1), (1, 2), (2, 4), (3, 5), (31, 5), (u32::MAX, 5)] {
            let wait = Random::new(3).back_off(second, doublings, 5 * second);
            assert_eq!(wait, Random::new(3).around(about * second), "{doublings}");
        }
        let longest = Random::new(3).back_off(Duration::MAX, u32::MAX, second);
        assert_eq!(longest, Random::new(3).around(second));
    }

    #[test]
    fn the_first_number_is_that_of_the_reference() {
        // The published test vector for seed 0.
        assert_eq!(Random::new(0).next_u64(), 0xe220_a839_7b1d_cdaf);
    }
}
