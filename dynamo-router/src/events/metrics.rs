//! What events have come to, as metrics of a runtime.

use dynamo_core::metrics::{Kind, Metric, Sample, Source};

use crate::router::KvRouter;

/// KV events that a router heard, by what became of them.
pub const EVENTS: Metric = Metric::new(
    "dynamo_router_events_total",
    Kind::Counter,
    "KV events that a router heard, by what became of them.",
);

/// Times KV events of a worker were missing.
pub const GAPS: Metric = Metric::new(
    "dynamo_router_event_gaps_total",
    Kind::Counter,
    "Times KV events of a worker were missing.",
);

/// Snapshots of workers that a router asked for, by outcome.
pub const SNAPSHOTS: Metric = Metric::new(
    "dynamo_router_snapshots_total",
    Kind::Counter,
    "Snapshots of workers that a router asked for and that have ended, by outcome.",
);

/// Times what was known of a worker was dropped.
pub const DROPPED: Metric = Metric::new(
    "dynamo_router_workers_dropped_total",
    Kind::Counter,
    "Times what was known of a worker was dropped because its events were lost.",
);

/// Different blocks in a router's index.
pub const INDEXED: Metric = Metric::new(
    "dynamo_router_indexed_blocks",
    Kind::Gauge,
    "Different blocks in a router's index.",
);

/// Blocks that a router's index has dropped to stay within its bytes.
pub const BLOCKS_DROPPED: Metric = Metric::new(
    "dynamo_router_blocks_dropped_total",
    Kind::Counter,
    "Blocks that a router's index has dropped to stay within its bytes.",
);

/// Workers that a router knows, by how much it knows of their caches.
pub const WORKERS: Metric = Metric::new(
    "dynamo_router_workers",
    Kind::Gauge,
    "Workers that a router knows, by whether events of theirs are missing.",
);

/// Workers that something is wrong with, by what.
pub const DIAGNOSED: Metric = Metric::new(
    "dynamo_router_diagnosed_workers",
    Kind::Gauge,
    "Workers that something is wrong with, by what.",
);

/// All metrics of events.
pub const ALL: &[Metric] =
    &[EVENTS, GAPS, SNAPSHOTS, DROPPED, INDEXED, BLOCKS_DROPPED, WORKERS, DIAGNOSED];

/// Counts what a router hears of workers' caches, for the page of a runtime.
///
/// ```
/// use std::sync::Arc;
///
/// use dynamo_core::metrics::Registry;
/// use dynamo_core::time::SystemClock;
/// use dynamo_router::{EventMetrics, KvRouter, RouterConfig};
///
/// let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
/// // `runtime.metrics()` where there is a runtime; it counts as long as `events` is kept.
/// let (registry, events) = (Registry::default(), Arc::new(EventMetrics::new("prefill", &router)));
/// registry.add(&events);
/// assert!(registry.render().contains("dynamo_router_indexed_blocks{router=\"prefill\"} 0"));
/// ```
#[derive(Debug)]
pub struct EventMetrics {
    name: String,
    router: KvRouter,
}

impl EventMetrics {
    /// Counts for `router`, which the page calls `name`.
    pub fn new(name: impl Into<String>, router: &KvRouter) -> Self {
        Self { name: name.into(), router: router.clone() }
    }
}

impl Source for EventMetrics {
    #[expect(clippy::cast_precision_loss, reason = "counts beyond 2^53 may lose their last digits")]
    fn collect(&self, samples: &mut Vec<Sample>) {
        let stats = self.router.event_stats();
        let taken = stats.events_total - stats.ignored_total;
        let known = stats.workers - stats.suspect;
        let mut push = |metric, of: Option<(&'static str, &str)>, count: u64| {
            let mut labels = vec![("router", self.name.clone())];
            labels.extend(of.map(|(key, value)| (key, value.to_owned())));
            samples.push(Sample::new(metric, &labels, count as f64));
        };
        push(EVENTS, Some(("outcome", "taken")), taken);
        push(EVENTS, Some(("outcome", "ignored")), stats.ignored_total);
        push(GAPS, None, stats.gaps_total);
        push(SNAPSHOTS, Some(("outcome", "complete")), stats.snapshots_total);
        push(SNAPSHOTS, Some(("outcome", "failed")), stats.snapshots_failed_total);
        push(DROPPED, None, stats.dropped_total);
        push(INDEXED, None, stats.blocks as u64);
        push(BLOCKS_DROPPED, None, stats.blocks_dropped_total);
        push(WORKERS, Some(("state", "known")), known as u64);
        push(WORKERS, Some(("state", "suspect")), stats.suspect as u64);
        let mut diagnoses: Vec<_> =
            self.router.diagnoses().into_iter().map(|(_, is)| is.as_str()).collect();
        diagnoses.sort_unstable();
        for alike in diagnoses.chunk_by(|one, other| one == other) {
            push(DIAGNOSED, Some(("diagnosis", alike[0])), alike.len() as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dynamo_core::metrics::Registry;
    use dynamo_core::protocol::{InstanceId, KvChange, KvEvent, WorkerId};
    use dynamo_core::time::SystemClock;

    use super::*;
    use crate::router::RouterConfig;

    #[test]
    fn the_documentation_lists_what_there_is() {
        let page = include_str!("../../../docs/metrics.md");
        let (_, page) = page.split_once("## KV events").unwrap();
        let (page, _) = page.split_once("## Load reports").unwrap();
        let listed = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        let known = ALL.iter().map(|metric| metric.name);
        assert_eq!(listed.collect::<Vec<_>>(), known.collect::<Vec<_>>());
    }

    #[test]
    fn the_page_tells_what_was_heard() {
        let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
        let worker = WorkerId::new(InstanceId(1));
        for seq in [0, 0, 4] {
            let change = KvChange::AllBlocksCleared;
            router.apply(&KvEvent { worker, epoch: 1, seq, change });
        }
        let (registry, metrics) = (Registry::default(), Arc::new(EventMetrics::new("a", &router)));
        registry.add(&metrics);
        let page = registry.render();
        for line in [
            "dynamo_router_events_total{router=\"a\",outcome=\"taken\"} 2",
            "dynamo_router_events_total{router=\"a\",outcome=\"ignored\"} 1",
            "dynamo_router_event_gaps_total{router=\"a\"} 1",
            "dynamo_router_workers_dropped_total{router=\"a\"} 1",
            "dynamo_router_blocks_dropped_total{router=\"a\"} 0",
            "dynamo_router_workers{router=\"a\",state=\"known\"} 1",
        ] {
            assert!(page.lines().any(|its| its == line), "{line} in\n{page}");
        }
    }
}
