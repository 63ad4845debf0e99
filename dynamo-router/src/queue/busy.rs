use std::collections::HashSet;
use std::num::NonZeroUsize;

use dynamo_core::protocol::WorkerId;
use dynamo_core::{Error, Result};

/// A measure's two marks: busy from `high` on, no longer busy from `low` down.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Watermarks {
    low: f64,
    high: f64,
}

impl Watermarks {
    /// Creates marks; [`InvalidArgument`](dynamo_core::ErrorKind) unless 0 ≤ `low` < `high`, both
    /// finite.
    pub fn new(low: f64, high: f64) -> Result<Self> {
        if !(0.0 <= low && low < high && high.is_finite()) {
            return Err(Error::invalid(format!("marks of {low} and {high}: 0 <= low < high")));
        }
        Ok(Self { low, high })
    }

    fn is_over(self, value: f64, is_busy: bool) -> bool {
        if is_busy { value > self.low } else { value >= self.high }
    }
}

/// How busy one worker is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// Predicted seconds until its queue of prompts is prefilled.
    pub queue_s: f64,
    /// Prompt tokens that it has not prefilled yet.
    pub prefill_tokens: usize,
    /// KV blocks that its requests take.
    pub blocks: usize,
    /// KV blocks that it has in all; 0 if it has not said so.
    pub blocks_total: usize,
}

/// When a worker counts as busy: as soon as one measure is at its high mark, until all are at their
/// low marks. A measure without marks does not count.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct BusyThresholds {
    /// Predicted seconds until a worker's queue is prefilled.
    pub queue_s: Option<Watermarks>,
    /// Prompt tokens a worker has not prefilled yet.
    pub prefill_tokens: Option<Watermarks>,
    /// Share of a worker's KV blocks that its requests take, of as many as it reports or, if it does
    /// not, as [`blocks_total`](Self::blocks_total).
    pub blocks_share: Option<Watermarks>,
    /// KV blocks of a worker that does not report how many it has; without this its share does not
    /// count.
    pub blocks_total: Option<NonZeroUsize>,
}

impl Default for BusyThresholds {
    /// Two seconds of prefill, down to one, or 95 % of the KV blocks that a worker reports, down to
    /// 85 %.
    fn default() -> Self {
        let (queue_s, blocks_share) = (Some(QUEUE_S), Some(BLOCKS_SHARE));
        Self { queue_s, blocks_share, ..Self::never() }
    }
}

impl BusyThresholds {
    /// Returns thresholds that no worker reaches.
    pub const fn never() -> Self {
        Self { queue_s: None, prefill_tokens: None, blocks_share: None, blocks_total: None }
    }

    /// Goes by the predicted seconds until a worker's queue is prefilled.
    #[must_use]
    pub fn with_queue_s(mut self, marks: Watermarks) -> Self {
        self.queue_s = Some(marks);
        self
    }

    /// Goes by prompt tokens that are not prefilled yet.
    #[must_use]
    pub fn with_prefill_tokens(mut self, marks: Watermarks) -> Self {
        self.prefill_tokens = Some(marks);
        self
    }

    /// Goes by the share of a worker's KV blocks that its requests take.
    #[must_use]
    pub fn with_blocks_share(mut self, marks: Watermarks) -> Self {
        self.blocks_share = Some(marks);
        self
    }

    /// Takes `blocks` for what a worker has that does not report it.
    #[must_use]
    pub fn with_blocks_total(mut self, blocks: NonZeroUsize) -> Self {
        self.blocks_total = Some(blocks);
        self
    }

    /// Tells whether a worker that was busy or not is busy at `pressure`.
    fn is_busy(&self, pressure: Pressure, was_busy: bool) -> bool {
        let is_over = |marks: Option<Watermarks>, value: f64| {
            marks.is_some_and(|marks| marks.is_over(value, was_busy))
        };
        let blocks_total = NonZeroUsize::new(pressure.blocks_total).or(self.blocks_total);
        let blocks_share =
            blocks_total.map_or(0.0, |total| pressure.blocks as f64 / total.get() as f64);
        is_over(self.queue_s, pressure.queue_s)
            || is_over(self.prefill_tokens, pressure.prefill_tokens as f64)
            || is_over(self.blocks_share, blocks_share)
    }
}

/// Which workers are busy: level-triggered, by whatever pressure is seen.
///
/// Between the marks a worker stays what it was, so that a load which hovers about a mark does not
/// open and close it with each request.
#[derive(Debug)]
pub struct BusyWorkers {
    thresholds: BusyThresholds,
    busy: HashSet<WorkerId>,
}

impl BusyWorkers {
    /// Creates the state of workers none of which is busy.
    pub fn new(thresholds: BusyThresholds) -> Self {
        Self { thresholds, busy: HashSet::new() }
    }

    /// Tells whether `worker` is busy, seen at `pressure`.
    pub fn judge(&mut self, worker: WorkerId, pressure: Pressure) -> bool {
        let was_busy = self.busy.contains(&worker);
        let is_busy = self.thresholds.is_busy(pressure, was_busy);
        match (was_busy, is_busy) {
            (false, true) => drop(self.busy.insert(worker)),
            (true, false) => drop(self.busy.remove(&worker)),
            _ => {}
        }
        is_busy
    }

    /// Returns how many workers are busy.
    pub fn count(&self) -> usize {
        self.busy.len()
    }

    /// Forgets workers that are not `there`.
    pub fn retain(&mut self, mut is_there: impl FnMut(WorkerId) -> bool) {
        self.busy.retain(|worker| is_there(*worker));
    }
}

/// A worker with a second of work keeps its batches full until the next request comes; with more
/// than two, a request had better be placed later, where there is room first.
const QUEUE_S: Watermarks = Watermarks { low: 1.0, high: 2.0 };
/// A worker that has no room left for the tokens to come evicts requests, and computes them again.
const BLOCKS_SHARE: Watermarks = Watermarks { low: 0.85, high: 0.95 };

#[cfg(test)]
mod tests {
    use dynamo_core::protocol::InstanceId;
    use proptest::prelude::*;

    use super::*;

    const WORKER: WorkerId = WorkerId::new(InstanceId(1));

    fn at(queue_s: f64) -> Pressure {
        Pressure { queue_s, ..Pressure::default() }
    }

    #[test]
    fn marks_that_cannot_hold_a_load_are_refused() {
        for (low, high) in [(1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (0.0, f64::INFINITY)] {
            assert!(Watermarks::new(low, high).is_err(), "{low} {high}");
        }
        assert!(Watermarks::new(f64::NAN, 1.0).is_err() && Watermarks::new(0.0, f64::NAN).is_err());
        assert!(Watermarks::new(0.0, 0.1).is_ok());
    }

    #[test]
    fn between_the_marks_a_worker_stays_what_it_was() {
        let marks = Watermarks::new(1.0, 2.0).unwrap();
        let mut busy = BusyWorkers::new(BusyThresholds::never().with_queue_s(marks));
        let seen: Vec<_> = [0.0, 1.9, 2.0, 1.5, 1.1, 1.0, 1.5, 1.9, 5.0, 0.0]
            .map(|queue_s| busy.judge(WORKER, at(queue_s)))
            .into();
        let expected = [false, false, true, true, true, false, false, false, true, false].to_vec();
        assert_eq!(seen, expected);
    }

    #[test]
    fn one_measure_at_its_high_mark_is_enough_and_all_must_be_at_their_low_ones() {
        let marks = |low, high| Watermarks::new(low, high).unwrap();
        let thresholds = BusyThresholds::never()
            .with_prefill_tokens(marks(100.0, 200.0))
            .with_blocks_share(marks(0.5, 0.9))
            .with_blocks_total(NonZeroUsize::new(1000).unwrap());
        let mut busy = BusyWorkers::new(thresholds);
        let mut judge = |prefill_tokens, blocks| {
            busy.judge(WORKER, Pressure { queue_s: 99.0, prefill_tokens, blocks, blocks_total: 0 })
        };
        assert!(!judge(199, 899));
        assert!(judge(199, 900));
        assert!(judge(99, 501), "too many blocks still");
        assert!(judge(101, 500), "too many tokens still");
        assert!(!judge(100, 500));
        busy.judge(WORKER, Pressure { prefill_tokens: 200, ..Pressure::default() });
        assert_eq!(busy.count(), 1);
        busy.retain(|worker| worker != WORKER);
        assert_eq!(busy.count(), 0);
    }

    #[test]
    fn the_share_of_blocks_is_of_those_that_a_worker_reports() {
        let mut busy = BusyWorkers::new(BusyThresholds::default());
        let mut judge = |blocks, blocks_total| {
            busy.judge(WORKER, Pressure { blocks, blocks_total, ..Pressure::default() })
        };
        assert!(!judge(1_000_000, 0), "of how many is not known");
        assert!(!judge(94, 100));
        assert!(judge(95, 100) && judge(86, 100));
        assert!(!judge(85, 100) && !judge(94, 100));
        assert!(judge(95, 100));
        assert!(!judge(95, 0), "it has not said so for too long");
        let known = NonZeroUsize::new(100).unwrap();
        let mut busy = BusyWorkers::new(BusyThresholds::default().with_blocks_total(known));
        let mut judge = |blocks, blocks_total| {
            busy.judge(WORKER, Pressure { blocks, blocks_total, ..Pressure::default() })
        };
        assert!(!judge(95, 1000), "what it reports is nearer the truth");
        assert!(judge(95, 0));
    }

    proptest! {
        /// From one change to the next, the load has crossed the whole band.
        #[test]
        fn nothing_flaps(seen in prop::collection::vec(0.0..3.0f64, 1..200)) {
            let marks = Watermarks::new(1.0, 2.0).unwrap();
            let mut busy = BusyWorkers::new(BusyThresholds::never().with_queue_s(marks));
            let mut was = false;
            for queue_s in seen {
                let is = busy.judge(WORKER, at(queue_s));
                match (was, is) {
                    (false, true) => prop_assert!(queue_s >= 2.0),
                    (true, false) => prop_assert!(queue_s <= 1.0),
                    (true, true) => prop_assert!(queue_s > 1.0),
                    (false, false) => prop_assert!(queue_s < 2.0),
                }
                was = is;
            }
        }
    }
}
