use std::fmt;
use std::time::Duration;

/// How a fleet did: the same trace, fleet and policy give the same report, to the byte.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// Requests that were answered.
    pub requests: usize,
    /// Requests whose prompt fits into no worker's cache.
    pub refused: usize,
    /// Times that a request had to start anew because a cache was full.
    pub preemptions: u64,
    /// The share of all prompt tokens that was found in a cache, from 0 to 1.
    pub reuse: f64,
    /// From the arrival to the first token.
    pub ttft: Times,
    /// Time per token of an answer after its first, the mean of each request.
    pub tpot: Times,
    /// From the arrival to the last token.
    pub e2e: Times,
}

/// Times of many requests, in milliseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Times {
    sorted_ms: Vec<f64>,
}

impl Times {
    fn new(times: impl Iterator<Item = Duration>) -> Self {
        let mut sorted_ms: Vec<_> = times.map(|time| time.as_secs_f64() * 1e3).collect();
        sorted_ms.sort_by(f64::total_cmp);
        Self { sorted_ms }
    }

    /// Returns the mean, or 0 of none.
    pub fn mean_ms(&self) -> f64 {
        self.sorted_ms.iter().sum::<f64>() / self.sorted_ms.len().max(1) as f64
    }

    /// Returns the time that `per_cent` of a hundred do not exceed, or 0 if there are none.
    pub fn percentile_ms(&self, per_cent: usize) -> f64 {
        // The nearest rank, as the mocker takes it.
        let rank = (self.sorted_ms.len().saturating_sub(1) * per_cent + 50) / 100;
        self.sorted_ms.get(rank).copied().unwrap_or(0.0)
    }
}

/// What became of one request, as it goes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Course {
    pub(super) at: Duration,
    pub(super) prompt_tokens: usize,
    pub(super) cached_tokens: usize,
    pub(super) tokens: u32,
    pub(super) first: Option<Duration>,
    pub(super) last: Duration,
    pub(super) is_refused: bool,
    /// The worker in each role, where there is one.
    pub(super) workers: [Option<usize>; 2],
}

impl Report {
    pub(super) fn new(courses: &[Course], preemptions: u64) -> Self {
        let answered = || courses.iter().filter(|course| !course.is_refused);
        let cached: usize = answered().map(|course| course.cached_tokens).sum();
        let prompts: usize = answered().map(|course| course.prompt_tokens).sum();
        let ttft = answered().filter_map(|course| Some(course.first? - course.at));
        let tpot = answered().filter_map(|course| {
            let after_first = course.tokens.checked_sub(1).filter(|after| *after > 0)?;
            Some((course.last - course.first?) / after_first)
        });
        Self {
            requests: answered().count(),
            refused: courses.iter().filter(|course| course.is_refused).count(),
            preemptions,
            reuse: cached as f64 / prompts.max(1) as f64,
            ttft: Times::new(ttft),
            tpot: Times::new(tpot),
            e2e: Times::new(answered().map(|course| course.last - course.at)),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ttft, tpot, e2e, .. } = self;
        write!(
            f,
            "reuse {:5.2} %  ttft {:7.1} / {:7.1} / {:8.1} ms  tpot p50 {:6.2} p99 {:7.2} ms  \
             e2e {:8.1} ms",
            self.reuse * 100.0,
            ttft.mean_ms(),
            ttft.percentile_ms(50),
            ttft.percentile_ms(99),
            tpot.percentile_ms(50),
            tpot.percentile_ms(99),
            e2e.mean_ms(),
        )?;
        write!(f, "  preempted {} refused {}", self.preemptions, self.refused)
    }
}
