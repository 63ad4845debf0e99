//! What a runtime counts, under one list of names.
//!
//! Counting is a few atomic additions per request and none per item. A [`Registry`] belongs to a
//! [`Runtime`](crate::Runtime); nothing is global. [`Registry::render`] writes the Prometheus text
//! format, [`Registry::collect`] gives the samples to whatever else exports them.

mod registry;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use registry::Registry;

/// A metric: its name says the unit, as Prometheus has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metric {
    /// The name.
    pub name: &'static str,
    /// How its values are to be read.
    pub kind: Kind,
    /// What is counted, and in which unit.
    pub help: &'static str,
}

impl Metric {
    /// Describes a metric of a source of your own; the name says the unit, as Prometheus has it.
    pub const fn new(name: &'static str, kind: Kind, help: &'static str) -> Self {
        Self { name, kind, help }
    }
}

/// How the values of a metric are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts values by buckets.
    Histogram,
}

macro_rules! metrics {
    ($($constant:ident: $kind:ident $name:literal $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: Metric =
                Metric { name: $name, kind: Kind::$kind, help: $help };
        )*
        /// All metrics of this crate.
        pub const ALL: &[Metric] = &[$($constant),*];
    };
}

metrics! {
    CLIENT_REQUESTS: Counter "dynamo_client_requests_total"
        "Attempts at requests of a client that have ended, by outcome.";
    CLIENT_RETRIES: Counter "dynamo_client_retries_total"
        "Attempts of a client that followed a failed one.";
    CLIENT_EJECTIONS: Counter "dynamo_client_ejections_total"
        "Instances that a client left out because they did not answer.";
    CLIENT_INSTANCES: Gauge "dynamo_client_instances"
        "Instances that the clients of an endpoint know.";
    CLIENT_CANDIDATES: Gauge "dynamo_client_candidates"
        "Instances that requests of a client of an endpoint may go to.";
    CLIENT_ITEMS: Counter "dynamo_client_items_total"
        "Items of answers that a client's callers took.";
    CLIENT_FIRST_ITEM: Histogram "dynamo_client_first_item_seconds"
        "Time from the start of an attempt to its first item (TTFT).";
    CLIENT_ITEM_INTERVAL: Histogram "dynamo_client_item_interval_seconds"
        "Mean time between the items of one answer (ITL).";
    CLIENT_REQUEST: Histogram "dynamo_client_request_seconds"
        "Time from the start of an attempt to its end.";
    SERVER_REQUESTS: Counter "dynamo_server_requests_total"
        "Requests of an instance that have ended, by outcome.";
    SERVER_RUNNING: Gauge "dynamo_server_running"
        "Requests that run at an instance.";
    SERVER_WAITING: Gauge "dynamo_server_waiting"
        "Requests that wait at an instance.";
    SERVER_ITEMS: Counter "dynamo_server_items_total"
        "Items that an instance gave.";
    SERVER_FIRST_ITEM: Histogram "dynamo_server_first_item_seconds"
        "Time from the arrival of a request to its first item, waiting included.";
    SERVER_ITEM_INTERVAL: Histogram "dynamo_server_item_interval_seconds"
        "Mean time between the items of one answer.";
    SERVER_REQUEST: Histogram "dynamo_server_request_seconds"
        "Time from the arrival of a request to its end.";
    TCP_CONNECTIONS: Counter "dynamo_tcp_connections_total"
        "Connections that a TCP request plane made or accepted.";
    TCP_WRITES: Counter "dynamo_tcp_writes_total"
        "Calls of a TCP request plane that wrote to a socket.";
    TCP_WRITTEN: Counter "dynamo_tcp_written_bytes_total"
        "Bytes that a TCP request plane wrote.";
    NATS_LINKS: Counter "dynamo_nats_links_total"
        "Links that a NATS request plane made or accepted.";
    NATS_DATAGRAMS: Counter "dynamo_nats_datagrams_total"
        "Datagrams that a NATS request plane published, repeats included.";
    NATS_BYTES: Counter "dynamo_nats_datagram_bytes_total"
        "Bytes in them.";
    NATS_REPEATS: Counter "dynamo_nats_repeats_total"
        "Datagrams among them that were published before.";
}

/// One value of a metric, or of one bucket of it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Sample {
    /// The metric.
    pub metric: Metric,
    /// What stands behind the name: `_bucket`, `_sum` or `_count` of a histogram.
    pub suffix: &'static str,
    /// What it is a value of.
    pub labels: Vec<(&'static str, String)>,
    /// The value.
    pub value: f64,
}

impl Sample {
    /// Makes a value of a metric that is no histogram.
    pub fn new(metric: Metric, labels: &[(&'static str, String)], value: f64) -> Self {
        Self { metric, suffix: "", labels: labels.to_vec(), value }
    }
}

/// Something that counts.
pub trait Source: Send + Sync {
    /// Appends its samples.
    fn collect(&self, samples: &mut Vec<Sample>);
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Times by buckets from a tenth of a millisecond to two minutes.
#[derive(Debug, Default)]
pub(crate) struct Times {
    buckets: [Counter; BOUNDS.len() + 1],
    sum_us: Counter,
}

impl Times {
    pub(crate) fn add(&self, time: Duration) {
        let at = BOUNDS.partition_point(|bound| time > Duration::from_micros(*bound));
        self.buckets[at].add(1);
        self.sum_us.add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    pub(crate) fn collect(
        &self,
        metric: Metric,
        labels: &[(&'static str, String)],
        samples: &mut Vec<Sample>,
    ) {
        let mut count = 0;
        let mut push = |suffix, extra: Option<String>, value| {
            let mut labels = labels.to_vec();
            labels.extend(extra.map(|bound| ("le", bound)));
            samples.push(Sample { metric, suffix, labels, value });
        };
        for (at, bucket) in self.buckets.iter().enumerate() {
            count += bucket.read();
            let bound = BOUNDS.get(at).map(|us| seconds(*us).to_string());
            let bound = bound.unwrap_or_else(|| "+Inf".to_owned());
            push("_bucket", Some(bound), float(count));
        }
        push("_sum", None, seconds(self.sum_us.read()));
        push("_count", None, float(count));
    }
}

/// Appends a plain value.
pub(crate) fn plain(
    metric: Metric,
    labels: &[(&'static str, String)],
    value: u64,
    samples: &mut Vec<Sample>,
) {
    samples.push(Sample::new(metric, labels, float(value)));
}

#[expect(clippy::cast_precision_loss, reason = "counts beyond 2^53 may lose their last digits")]
fn float(count: u64) -> f64 {
    count as f64
}

fn seconds(us: u64) -> f64 {
    float(us) / 1e6
}

/// Upper bounds of the buckets, in microseconds.
const BOUNDS: [u64; 19] = [
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    120_000_000,
];

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Default)]
    struct Two(Counter, Times);

    impl Source for Two {
        fn collect(&self, samples: &mut Vec<Sample>) {
            let labels = [("endpoint", "n/c/\"e\"".to_owned())];
            self.1.collect(SERVER_REQUEST, &labels, samples);
            plain(CLIENT_RETRIES, &labels, self.0.read(), samples);
        }
    }

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let (registry, source) = (Registry::default(), Arc::new(Two::default()));
        registry.add(&source);
        source.0.add(3);
        for ms in [1, 2, 700_000] {
            source.1.add(Duration::from_millis(ms));
        }
        let text = registry.render();
        let label = "endpoint=\"n/c/\\\"e\\\"\"";
        for line in [
            "# TYPE dynamo_client_retries_total counter".to_owned(),
            format!("dynamo_client_retries_total{{{label}}} 3"),
            "# TYPE dynamo_server_request_seconds histogram".to_owned(),
            format!("dynamo_server_request_seconds_bucket{{{label},le=\"0.0005\"}} 0"),
            format!("dynamo_server_request_seconds_bucket{{{label},le=\"0.001\"}} 1"),
            format!("dynamo_server_request_seconds_bucket{{{label},le=\"0.0025\"}} 2"),
            format!("dynamo_server_request_seconds_bucket{{{label},le=\"+Inf\"}} 3"),
            format!("dynamo_server_request_seconds_sum{{{label}}} 700.003"),
            format!("dynamo_server_request_seconds_count{{{label}}} 3"),
        ] {
            assert!(text.lines().any(|its| its == line), "{line} in\n{text}");
        }
        drop(source);
        assert_eq!(registry.render(), "");
    }

    #[test]
    fn names_are_unique_and_say_their_unit() {
        let mut names: Vec<_> = ALL.iter().map(|metric| metric.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        for metric in ALL {
            let is_named = match metric.kind {
                Kind::Counter => metric.name.ends_with("_total"),
                Kind::Histogram => metric.name.ends_with("_seconds"),
                Kind::Gauge => !metric.name.ends_with("_total"),
            };
            assert!(is_named, "{}", metric.name);
        }
    }
}
