//! What workers' load reports have come to, as metrics of a runtime.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dynamo_core::metrics::{Kind, Metric, Sample, Source};

use super::feed::{Heard, LoadFeed};

/// Load reports of workers that a router heard, by what became of them.
pub const REPORTS: Metric = Metric::new(
    "dynamo_router_load_reports_total",
    Kind::Counter,
    "Load reports of workers that a router heard, by what became of them.",
);

/// All metrics of load reports.
pub const ALL: &[Metric] = &[REPORTS];

/// Counts what a [`LoadFeed`] hears, for the page of a runtime.
#[derive(Debug)]
pub struct LoadMetrics {
    name: String,
    heard: Arc<Heard>,
}

impl LoadMetrics {
    /// Counts for the router of `feed`, which the page calls `name`.
    pub fn new(name: impl Into<String>, feed: &LoadFeed) -> Self {
        Self { name: name.into(), heard: Arc::clone(feed.heard()) }
    }
}

impl Source for LoadMetrics {
    #[expect(clippy::cast_precision_loss, reason = "counts beyond 2^53 may lose their last digits")]
    fn collect(&self, samples: &mut Vec<Sample>) {
        let Heard { taken_total, ignored_total } = &*self.heard;
        for (outcome, count) in [("taken", taken_total), ("ignored", ignored_total)] {
            let labels = [("router", self.name.clone()), ("outcome", outcome.to_owned())];
            samples.push(Sample::new(REPORTS, &labels, count.load(Ordering::Relaxed) as f64));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_lists_what_there_is() {
        let page = include_str!("../../../docs/metrics.md");
        let (_, page) = page.split_once("## Load reports").unwrap();
        let listed = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        let known = ALL.iter().map(|metric| metric.name);
        assert_eq!(listed.collect::<Vec<_>>(), known.collect::<Vec<_>>());
    }
}
