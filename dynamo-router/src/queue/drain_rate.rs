use std::time::{Duration, Instant};

/// How fast a queue empties, measured: what an honest answer to "when is there room" is made of.
///
/// Room for so many entries and tokens is expected after *interval × entries*, where the interval
/// is the moving average between two departures while somebody waits, the latest weighing an
/// eighth, and tokens count as entries of the average size. An interval that has lasted longer than
/// the average already counts with what it has lasted.
#[derive(Debug, Default)]
pub(super) struct DrainRate {
    /// When the last entry left, or the first came into an empty queue.
    since: Option<Instant>,
    interval_s: Option<f64>,
    tokens_mean: f64,
}

impl DrainRate {
    /// Notes that the queue, empty until now, is so no longer.
    pub(super) fn begin(&mut self, now: Instant) {
        self.since = Some(now);
    }

    /// Notes that an entry of `tokens` prompt tokens has left, for whatever reason.
    pub(super) fn left(&mut self, tokens: usize, now: Instant) {
        let seconds = self.lasted_s(now);
        self.since = Some(now);
        let tokens = tokens as f64;
        match &mut self.interval_s {
            None => (self.interval_s, self.tokens_mean) = (Some(seconds), tokens),
            Some(interval_s) => {
                *interval_s += (seconds - *interval_s) / LATEST;
                self.tokens_mean += (tokens - self.tokens_mean) / LATEST;
            }
        }
    }

    /// Returns when so many entries and so many tokens will have left, as far as can be known.
    pub(super) fn until_left(&self, entries: usize, tokens: usize, now: Instant) -> Duration {
        let of_tokens = tokens as f64 / self.tokens_mean.max(1.0);
        // Without an average there is no telling how many entries the tokens are.
        let of_tokens = if self.interval_s.is_some() { of_tokens } else { 1.0 };
        let interval_s = self.interval_s.unwrap_or(ASSUMED_S).max(self.lasted_s(now));
        let seconds = interval_s * of_tokens.max(entries as f64);
        let wait = Duration::try_from_secs_f64(seconds).unwrap_or(WAIT_MAX);
        wait.clamp(WAIT_MIN, WAIT_MAX)
    }

    fn lasted_s(&self, now: Instant) -> f64 {
        self.since.map_or(0.0, |since| now.saturating_duration_since(since).as_secs_f64())
    }
}

/// One in so many is what the latest departure weighs.
const LATEST: f64 = 8.0;
/// The interval between departures, until one has been measured.
const ASSUMED_S: f64 = 1.0;
/// Coming back sooner would only add load.
const WAIT_MIN: Duration = Duration::from_millis(10);
/// An estimate further out says nothing.
const WAIT_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use dynamo_core::time::{Clock, SystemClock};

    use super::*;

    #[test]
    fn the_estimate_is_what_it_takes_at_the_pace_that_was_measured() {
        let mut now = SystemClock.now();
        let mut rate = DrainRate::default();
        assert_eq!(rate.until_left(1, 0, now), Duration::from_secs(1), "nothing measured");
        rate.begin(now);
        for _ in 0..3 {
            now += Duration::from_millis(200);
            rate.left(1000, now);
        }
        let ms = |wait: Duration| wait.as_millis();
        assert_eq!(ms(rate.until_left(1, 0, now)), 200);
        assert_eq!(ms(rate.until_left(4, 0, now)), 800);
        assert_eq!(ms(rate.until_left(1, 5000, now)), 1000, "five of the average size");
        assert_eq!(rate.until_left(1000, 0, now), WAIT_MAX);
        // Nobody has left for longer than usual: it is not said to be over at once.
        assert_eq!(ms(rate.until_left(1, 0, now + Duration::from_secs(3))), 3000);
        // A pause while nobody waited is no slow departure.
        now += Duration::from_secs(60);
        rate.begin(now);
        rate.left(1000, now + Duration::from_millis(200));
        assert_eq!(ms(rate.until_left(1, 0, now + Duration::from_millis(200))), 200);
    }
}
