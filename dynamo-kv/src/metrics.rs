//! What a worker's blocks, transfers and hand-offs have come to, as metrics of its runtime.

mod blocks;
mod handoff;
mod lending;
mod tenant;

use std::fmt;

use dynamo_core::metrics::{Kind, Metric, Sample, Source};
use dynamo_transfer::{Agent, BackendKind};

pub use blocks::{
    BLOCKS, BlockMetrics, DROPPED, EVICTIONS, HITS, MISSES, MOVE_TIME, MOVED_BYTES, MOVES,
    PREFETCHED, PREFETCHES_REFUSED, QUEUED,
};
pub use handoff::{HandoffMetrics, PULLED_BYTES, PULLS, STAGED_BLOCKS, STAGES};
pub use lending::{LEASES, LEASES_ENDED, LENT_BLOCKS, LENT_DAMAGED, OwnerMetrics, WATCHERS};
pub use tenant::{
    QUOTA, TENANT_BLOCKS, TENANT_EVICTIONS, TENANT_HITS, TENANT_MISSES, TenantMetrics,
};

/// Transfers of an agent that have ended, by outcome.
pub const TRANSFERS: Metric = Metric::new(
    "dynamo_transfers_total",
    Kind::Counter,
    "Transfers of an agent that have ended, by outcome.",
);

/// Bytes that completed transfers of an agent have moved, by backend.
pub const BYTES: Metric = Metric::new(
    "dynamo_transfer_bytes_total",
    Kind::Counter,
    "Bytes that completed transfers of an agent have moved, by backend.",
);

/// Time that they took, from posting to completion, by backend.
pub const TIME: Metric = Metric::new(
    "dynamo_transfer_time_seconds_total",
    Kind::Counter,
    "Time that completed transfers of an agent took, from posting to completion, by backend.",
);

/// Transfers of an agent that are posted and have not ended.
pub const IN_FLIGHT: Metric = Metric::new(
    "dynamo_transfers_in_flight",
    Kind::Gauge,
    "Transfers of an agent that are posted and have not ended.",
);

/// Regions that an agent has registered.
pub const REGIONS: Metric =
    Metric::new("dynamo_transfer_regions", Kind::Gauge, "Regions that an agent has registered.");

/// All metrics of this crate.
pub const ALL: &[Metric] = &[
    TRANSFERS,
    BYTES,
    TIME,
    IN_FLIGHT,
    REGIONS,
    STAGED_BLOCKS,
    STAGES,
    PULLS,
    PULLED_BYTES,
    BLOCKS,
    HITS,
    MISSES,
    EVICTIONS,
    MOVES,
    MOVED_BYTES,
    MOVE_TIME,
    QUEUED,
    DROPPED,
    PREFETCHED,
    PREFETCHES_REFUSED,
    QUOTA,
    TENANT_BLOCKS,
    TENANT_HITS,
    TENANT_MISSES,
    TENANT_EVICTIONS,
    LENT_BLOCKS,
    LEASES,
    LEASES_ENDED,
    LENT_DAMAGED,
    WATCHERS,
];

/// Counts an agent's transfers for the page of a runtime.
///
/// ```
/// use std::sync::Arc;
///
/// use dynamo_core::metrics::Registry;
/// use dynamo_kv::metrics::TransferMetrics;
/// use dynamo_transfer::{Agent, AgentConfig};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> dynamo_transfer::Result<()> {
/// let agent = Agent::start(AgentConfig::default().with_name("decode-0")).await?;
/// // `runtime.metrics()` where there is a runtime; it counts as long as `transfers` is kept.
/// let (registry, transfers) = (Registry::default(), Arc::new(TransferMetrics::new(&agent)));
/// registry.add(&transfers);
/// assert!(registry.render().contains("dynamo_transfer_regions{agent=\"decode-0\"} 0"));
/// # Ok(())
/// # }
/// ```
pub struct TransferMetrics(Agent);

impl TransferMetrics {
    /// Counts the transfers of `agent`.
    pub fn new(agent: &Agent) -> Self {
        Self(agent.clone())
    }
}

impl Source for TransferMetrics {
    #[expect(clippy::cast_precision_loss, reason = "counts beyond 2^53 may lose their last digits")]
    fn collect(&self, samples: &mut Vec<Sample>) {
        let (stats, agent) = (self.0.stats(), ("agent", self.0.name().to_owned()));
        let outcomes = [
            ("completed", stats.completed_total),
            ("failed", stats.failed_total),
            ("cancelled", stats.cancelled_total),
        ];
        for (outcome, count) in outcomes {
            let labels = [agent.clone(), ("outcome", outcome.to_owned())];
            samples.push(Sample::new(TRANSFERS, &labels, count as f64));
        }
        for (at, backend) in BackendKind::ALL.into_iter().enumerate() {
            if stats.completed_by[at] > 0 {
                let labels = [agent.clone(), ("backend", backend.to_string())];
                samples.push(Sample::new(BYTES, &labels, stats.bytes_total[at] as f64));
                let seconds = stats.elapsed_total[at].as_secs_f64();
                samples.push(Sample::new(TIME, &labels, seconds));
            }
        }
        let gauges = [(IN_FLIGHT, stats.in_flight() as f64), (REGIONS, stats.regions as f64)];
        for (metric, value) in gauges {
            samples.push(Sample::new(metric, std::slice::from_ref(&agent), value));
        }
    }
}

impl fmt::Debug for TransferMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TransferMetrics").field(&self.0).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dynamo_core::metrics::Registry;
    use dynamo_transfer::{AgentConfig, HostBuffer, TransferOptions};

    use super::*;

    #[test]
    fn the_documentation_lists_what_there_is() {
        let (_, page) = include_str!("../../docs/metrics.md").split_once("## Transfers").unwrap();
        let (page, _) = page.split_once("## KV events").unwrap();
        let listed = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        let known = ALL.iter().map(|metric| metric.name);
        assert_eq!(listed.collect::<Vec<_>>(), known.collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn the_page_tells_what_transfers_have_come_to() {
        let agent = Agent::start(AgentConfig::default().with_name("a")).await.unwrap();
        let source = agent.register(vec![HostBuffer::new(64)]).unwrap();
        let target = agent.register_mut(vec![HostBuffer::new(64)]).unwrap();
        let own = agent.load_metadata(&agent.metadata([source.grant()]).unwrap()).unwrap();
        for bytes in [64, 24] {
            let local = target.descriptor([(0, bytes)]).unwrap();
            let remote = own.regions()[0].descriptor([(0, bytes)]).unwrap();
            agent.read(local, remote, TransferOptions::default()).await.unwrap();
        }
        let refused = own.regions()[0].descriptor([(0, 8)]).unwrap();
        let write =
            agent.write(target.descriptor([(0, 8)]).unwrap(), refused, TransferOptions::default());
        write.await.unwrap_err();
        let (registry, metrics) = (Registry::default(), Arc::new(TransferMetrics::new(&agent)));
        registry.add(&metrics);
        let page = registry.render();
        for line in [
            "# TYPE dynamo_transfers_total counter",
            "dynamo_transfers_total{agent=\"a\",outcome=\"completed\"} 2",
            "dynamo_transfers_total{agent=\"a\",outcome=\"failed\"} 1",
            "dynamo_transfer_bytes_total{agent=\"a\",backend=\"memcpy\"} 88",
            "dynamo_transfers_in_flight{agent=\"a\"} 0",
            "dynamo_transfer_regions{agent=\"a\"} 2",
        ] {
            assert!(page.lines().any(|its| its == line), "{line} in\n{page}");
        }
        assert!(!page.contains("tcp"), "{page}");
    }
}
