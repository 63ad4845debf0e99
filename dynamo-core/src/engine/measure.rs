use std::time::{Duration, Instant};

use super::{Course, Ending};
use crate::error::{Error, ErrorKind};
use crate::metrics::{Counter, Metric, Sample, Times, plain};
use crate::time::{Clock, SystemClock};

/// How the requests of one endpoint went, as one side saw them.
#[derive(Debug, Default)]
pub(crate) struct Measures {
    complete: Counter,
    dropped: Counter,
    failed: [Counter; ErrorKind::ALL.len()],
    items: Counter,
    first_item: Times,
    item_interval: Times,
    request: Times,
}

/// Under which names measures are told: requests, items, and the three times.
pub(crate) struct Names {
    pub(crate) requests: Metric,
    pub(crate) items: Metric,
    pub(crate) first_item: Metric,
    pub(crate) item_interval: Metric,
    pub(crate) request: Metric,
}

impl Measures {
    /// Notes a request that failed before it had a stream.
    pub(crate) fn refused(&self, error: &Error) {
        self.failed[error.kind().index()].add(1);
    }

    /// Notes a request that began at `started` and has ended.
    pub(crate) fn ended(&self, started: Instant, course: &Course<'_>) {
        match course.ending {
            Ending::Complete => self.complete.add(1),
            Ending::Dropped => self.dropped.add(1),
            Ending::Failed(error) => self.refused(error),
        }
        let now = SystemClock.now();
        self.items.add(course.items);
        self.request.add(now.saturating_duration_since(started));
        if let Some(first) = course.first_item {
            self.first_item.add(first.saturating_duration_since(started));
            if let Some(intervals) = course.items.checked_sub(1).filter(|count| *count > 0) {
                let all = now.saturating_duration_since(first).as_micros();
                let mean = u64::try_from(all).unwrap_or(u64::MAX) / intervals;
                self.item_interval.add(Duration::from_micros(mean));
            }
        }
    }

    /// Appends the samples under `names`.
    pub(crate) fn collect(
        &self,
        names: &Names,
        labels: &[(&'static str, String)],
        samples: &mut Vec<Sample>,
    ) {
        let failed = ErrorKind::ALL.iter().map(|kind| (kind.as_str(), &self.failed[kind.index()]));
        let outcomes = [("complete", &self.complete), ("dropped", &self.dropped)];
        for (outcome, counter) in outcomes.into_iter().chain(failed) {
            let labels = [labels, &[("outcome", outcome.to_owned())]].concat();
            plain(names.requests, &labels, counter.read(), samples);
        }
        plain(names.items, labels, self.items.read(), samples);
        self.first_item.collect(names.first_item, labels, samples);
        self.item_interval.collect(names.item_interval, labels, samples);
        self.request.collect(names.request, labels, samples);
    }
}
