use std::fmt;

use dynamo_core::metrics::{Kind, Metric, Sample, Source};

use crate::tier::peer::{Counted, Owner};

/// Blocks that an owner has lent to other processes.
pub const LENT_BLOCKS: Metric = Metric::new(
    "dynamo_kv_lent_blocks",
    Kind::Gauge,
    "Blocks that an owner has lent to other processes.",
);

/// Leases of them that have not ended.
pub const LEASES: Metric =
    Metric::new("dynamo_kv_leases", Kind::Gauge, "Leases of blocks that have not ended.");

/// Leases that have ended, by outcome.
pub const LEASES_ENDED: Metric = Metric::new(
    "dynamo_kv_leases_total",
    Kind::Counter,
    "Leases of blocks that have ended, or were refused, by outcome.",
);

/// Blocks that other processes have written and that were not what they had said.
pub const LENT_DAMAGED: Metric = Metric::new(
    "dynamo_kv_lent_damaged_total",
    Kind::Counter,
    "Blocks that other processes have written and that were not what they had said.",
);

/// Processes that are told what an owner has.
pub const WATCHERS: Metric = Metric::new(
    "dynamo_kv_watchers",
    Kind::Gauge,
    "Processes that are told what an owner of blocks has.",
);

/// Counts what an [`Owner`] lends, for the page of a runtime.
///
/// It counts as long as it is kept, and keeps nothing lent: when the last clone of the owner is dropped,
/// it says nothing any more.
///
/// ```
/// use std::sync::Arc;
///
/// use dynamo_core::metrics::Registry;
/// use dynamo_core::protocol::{BlockSize, InstanceId, WorkerId};
/// use dynamo_kv::metrics::OwnerMetrics;
/// use dynamo_kv::tier::peer::{Owner, OwnerConfig};
/// use dynamo_kv::{BlockLayout, BlockManager, DType, ManagerConfig};
/// use dynamo_transfer::{Agent, AgentConfig};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let agent = Agent::start(AgentConfig::default().with_name("cache-0")).await?;
/// let layout = BlockLayout::new(2, 1, 4, BlockSize::DEFAULT, DType::F32)?;
/// let worker = WorkerId::new(InstanceId(1));
/// let manager = BlockManager::new(ManagerConfig::new(layout, 8), worker, Box::new(|_event| {}))?;
/// let owner = Owner::new(agent, manager, OwnerConfig::new(4))?;
/// // `runtime.metrics()` where there is a runtime.
/// let (registry, lent) = (Registry::default(), Arc::new(OwnerMetrics::new(&owner)));
/// registry.add(&lent);
/// assert!(registry.render().contains("dynamo_kv_lent_blocks{agent=\"cache-0\"} 0"));
/// # Ok(())
/// # }
/// ```
pub struct OwnerMetrics {
    agent: String,
    owner: Counted,
}

impl OwnerMetrics {
    /// Counts what one owner lends.
    pub fn new(owner: &Owner) -> Self {
        let (agent, owner) = owner.counted();
        Self { agent: agent.to_owned(), owner }
    }
}

impl Source for OwnerMetrics {
    #[expect(clippy::cast_precision_loss, reason = "counts beyond 2^53 may lose their last digits")]
    fn collect(&self, samples: &mut Vec<Sample>) {
        let Some(stats) = self.owner.stats() else { return };
        let agent = ("agent", self.agent.clone());
        let gauges = [(LENT_BLOCKS, stats.lent_blocks), (LEASES, stats.leases)];
        for (metric, value) in gauges.into_iter().chain([(WATCHERS, stats.watchers)]) {
            samples.push(Sample::new(metric, std::slice::from_ref(&agent), value as f64));
        }
        let damaged = stats.damaged_total as f64;
        samples.push(Sample::new(LENT_DAMAGED, std::slice::from_ref(&agent), damaged));
        let outcomes = [
            ("released", stats.released_total),
            ("committed", stats.committed_total),
            ("expired", stats.expired_total),
            ("refused", stats.refused_total),
        ];
        for (outcome, count) in outcomes {
            let labels = [agent.clone(), ("outcome", outcome.to_owned())];
            samples.push(Sample::new(LEASES_ENDED, &labels, count as f64));
        }
    }
}

impl fmt::Debug for OwnerMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnerMetrics").field("agent", &self.agent).finish_non_exhaustive()
    }
}
