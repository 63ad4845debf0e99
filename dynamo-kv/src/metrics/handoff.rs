use std::fmt;
use std::sync::Arc;

use dynamo_core::metrics::{Kind, Metric, Sample, Source};

use crate::handoff::{Handoff, HandoffStats, Owner};

/// Blocks that a worker has staged and nobody has pulled yet.
pub const STAGED_BLOCKS: Metric = Metric::new(
    "dynamo_handoff_staged_blocks",
    Kind::Gauge,
    "Blocks that a worker has staged and nobody has pulled yet.",
);

/// Holds of a worker that have ended, by outcome.
pub const STAGES: Metric = Metric::new(
    "dynamo_handoff_stages_total",
    Kind::Counter,
    "Holds of staged blocks that have ended, by outcome.",
);

/// Pulls of a worker that have ended, by outcome.
pub const PULLS: Metric = Metric::new(
    "dynamo_handoff_pulls_total",
    Kind::Counter,
    "Pulls of staged blocks that have ended, by outcome.",
);

/// Bytes of a worker's completed pulls.
pub const PULLED_BYTES: Metric = Metric::new(
    "dynamo_handoff_pulled_bytes_total",
    Kind::Counter,
    "Bytes of the pulls of staged blocks that were completed.",
);

/// Counts a worker's hand-offs for the page of a runtime.
///
/// It counts as long as it is kept, and keeps nothing staged: when the last clone of the hand-off is
/// dropped, that has ended.
///
/// ```
/// use std::sync::Arc;
///
/// use dynamo_core::metrics::Registry;
/// use dynamo_core::protocol::{BlockSize, InstanceId, WorkerId};
/// use dynamo_kv::metrics::HandoffMetrics;
/// use dynamo_kv::{BlockLayout, BlockManager, DType, Handoff, HandoffConfig, ManagerConfig};
/// use dynamo_transfer::{Agent, AgentConfig};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let agent = Agent::start(AgentConfig::default().with_name("prefill-0")).await?;
/// let layout = BlockLayout::new(2, 1, 4, BlockSize::DEFAULT, DType::F32)?;
/// let worker = WorkerId::new(InstanceId(1));
/// let manager = BlockManager::new(ManagerConfig::new(layout, 8), worker, Box::new(|_event| {}))?;
/// let handoff = Handoff::new(agent, manager, HandoffConfig::default())?;
/// // `runtime.metrics()` where there is a runtime.
/// let (registry, handoffs) = (Registry::default(), Arc::new(HandoffMetrics::new(&handoff)));
/// registry.add(&handoffs);
/// assert!(registry.render().contains("dynamo_handoff_staged_blocks{agent=\"prefill-0\"} 0"));
/// # Ok(())
/// # }
/// ```
pub struct HandoffMetrics {
    agent: String,
    owner: Arc<Owner>,
}

impl HandoffMetrics {
    /// Counts the hand-offs of one worker.
    pub fn new(handoff: &Handoff) -> Self {
        let (agent, owner) = handoff.counted();
        Self { agent: agent.to_owned(), owner: Arc::clone(owner) }
    }
}

impl Source for HandoffMetrics {
    #[expect(clippy::cast_precision_loss, reason = "counts beyond 2^53 may lose their last digits")]
    fn collect(&self, samples: &mut Vec<Sample>) {
        let agent = ("agent", self.agent.clone());
        let HandoffStats {
            staged_blocks,
            stages_pulled_total,
            stages_expired_total,
            stages_dropped_total,
            pulls_completed_total,
            pulls_refused_total,
            pulls_failed_total,
            pulls_dropped_total,
            pulled_bytes_total,
        } = self.owner.stats();
        let outcomes = [
            (STAGES, "pulled", stages_pulled_total),
            (STAGES, "expired", stages_expired_total),
            (STAGES, "dropped", stages_dropped_total),
            (PULLS, "completed", pulls_completed_total),
            (PULLS, "refused", pulls_refused_total),
            (PULLS, "failed", pulls_failed_total),
            (PULLS, "dropped", pulls_dropped_total),
        ];
        for (metric, outcome, count) in outcomes {
            let labels = [agent.clone(), ("outcome", outcome.to_owned())];
            samples.push(Sample::new(metric, &labels, count as f64));
        }
        for (metric, value) in [(STAGED_BLOCKS, staged_blocks), (PULLED_BYTES, pulled_bytes_total)]
        {
            samples.push(Sample::new(metric, std::slice::from_ref(&agent), value as f64));
        }
    }
}

impl fmt::Debug for HandoffMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandoffMetrics").field("agent", &self.agent).finish_non_exhaustive()
    }
}
