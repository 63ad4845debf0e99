//! What it takes workers of a pool to fetch KV from others, learned from hand-offs.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use dynamo_core::protocol::{GenerateRequest, Stage};

use super::KvRouter;
use crate::choose::CostModel;

/// The mean of the last fetches, which fades into what was believed before any: a fabric that was
/// slow is tried again.
///
/// One request in two takes it under a lock, for as long as it takes to read four numbers.
#[derive(Debug, Default)]
pub(super) struct FetchSpeed(Mutex<Shown>);

/// Sums, of which each fetch counts for less the older it is.
#[derive(Debug, Clone, Copy, Default)]
struct Shown {
    fetches: f64,
    tokens: f64,
    seconds: f64,
    at: Option<Instant>,
}

impl FetchSpeed {
    /// Returns `model` with what was learned in the place of its prior, if the request is one that
    /// fetches.
    pub(super) fn applied(
        &self,
        model: &CostModel,
        request: &GenerateRequest,
        now: Instant,
    ) -> CostModel {
        let mut model = *model;
        if let Stage::Decode { .. } = request.stage {
            model.fetch_s_per_token = self.s_per_token(model.fetch_s_per_token, now);
        }
        model
    }

    fn observe(&self, tokens: usize, took: Duration, now: Instant) {
        let mut shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = KEPT * shown.faded(now);
        *shown = Shown {
            fetches: shown.fetches * kept + 1.0,
            tokens: shown.tokens * kept + tokens as f64,
            seconds: shown.seconds * kept + took.min(TOOK_MAX).as_secs_f64(),
            at: Some(now),
        };
    }

    /// Returns the time per token: `prior` counts as one fetch.
    fn s_per_token(&self, prior: f64, now: Instant) -> f64 {
        let shown = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.tokens == 0.0 {
            return prior;
        }
        let fetches = shown.fetches * shown.faded(now);
        (fetches * shown.seconds / shown.tokens + prior) / (fetches + 1.0)
    }
}

impl Shown {
    /// Returns what is left of its weight.
    fn faded(&self, now: Instant) -> f64 {
        let age = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        (-age.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2()
    }
}

impl KvRouter {
    /// Learns from a worker that has fetched the KV of `tokens` tokens from a peer in `took`.
    ///
    /// [`PrefillDecode`](crate::PrefillDecode) does so by itself.
    pub fn observe_fetch(&self, tokens: usize, took: Duration) {
        if tokens > 0 {
            self.0.fetch.observe(tokens, took, self.0.common.clock.now());
        }
    }

    /// Returns the time per token in seconds in which workers are expected to fetch KV from a peer:
    /// as learned from the last fetches, and
    /// [`CostModel::fetch_s_per_token`](crate::CostModel::fetch_s_per_token) once those are long ago.
    pub fn fetch_s_per_token(&self) -> f64 {
        self.0.fetch.s_per_token(self.0.cost.fetch_s_per_token, self.0.common.clock.now())
    }
}

/// About the last ten count.
const KEPT: f64 = 0.9;
/// A congestion lasts for seconds; a fabric that stays slow is asked seldom.
const HALF_LIFE: Duration = Duration::from_secs(30);
/// A worker that takes longer has lost its peer, which says nothing of the fabric.
const TOOK_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use dynamo_core::time::{Clock, SystemClock};

    use super::*;

    const PRIOR: f64 = 1e-5;

    #[test]
    fn what_fetches_took_is_expected_and_fades_into_the_prior() {
        let (speed, start) = (FetchSpeed::default(), SystemClock.now());
        assert_eq!(speed.s_per_token(PRIOR, start), PRIOR);
        (0..20).for_each(|_| speed.observe(1000, Duration::from_secs(1), start));
        let learned = speed.s_per_token(PRIOR, start);
        assert!((0.8e-3..1e-3).contains(&learned), "{learned}");
        let mut before = learned;
        for half_lives in 1..30 {
            let faded = speed.s_per_token(PRIOR, start + HALF_LIFE * half_lives);
            assert!(faded < before, "{faded} {before}");
            before = faded;
        }
        assert!(before < 1.01 * PRIOR, "{before}");
        // The fabric is fast again, and what was long ago does not count against it.
        let now = start + HALF_LIFE * 10;
        (0..3).for_each(|_| speed.observe(1000, Duration::from_millis(1), now));
        let recovered = speed.s_per_token(PRIOR, now);
        assert!(recovered < 2.0 * PRIOR, "{recovered}");
    }

    #[test]
    fn a_long_fetch_counts_by_its_tokens_and_a_hung_one_not_for_ever() {
        let (speed, now) = (FetchSpeed::default(), SystemClock.now());
        speed.observe(1, Duration::MAX, now);
        assert!(speed.s_per_token(PRIOR, now) <= TOOK_MAX.as_secs_f64());
        (0..10).for_each(|_| speed.observe(100_000, Duration::from_secs(1), now));
        assert!(speed.s_per_token(PRIOR, now) < 2e-4);
    }
}
