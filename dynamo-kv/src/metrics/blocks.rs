use std::fmt;

use dynamo_core::metrics::{Kind, Metric, Sample, Source};
use dynamo_core::protocol::Tier;

use crate::manager::BlockManager;

/// Blocks that can be found in a tier.
pub const BLOCKS: Metric =
    Metric::new("dynamo_kv_blocks", Kind::Gauge, "Blocks that can be found in a tier.");

/// Blocks that a tier was asked for and had.
pub const HITS: Metric =
    Metric::new("dynamo_kv_hits_total", Kind::Counter, "Blocks that a tier was asked for and had.");

/// Blocks that a tier was asked for and did not have.
pub const MISSES: Metric = Metric::new(
    "dynamo_kv_misses_total",
    Kind::Counter,
    "Blocks that a tier was asked for and did not have.",
);

/// Blocks that made room for others in a tier.
pub const EVICTIONS: Metric = Metric::new(
    "dynamo_kv_evictions_total",
    Kind::Counter,
    "Blocks that made room for others in a tier.",
);

/// Blocks that were loaded from a tier, or stored in it.
pub const MOVES: Metric = Metric::new(
    "dynamo_kv_moved_blocks_total",
    Kind::Counter,
    "Blocks that were loaded from a tier, or stored in it.",
);

/// Bytes of them.
pub const MOVED_BYTES: Metric = Metric::new(
    "dynamo_kv_moved_bytes_total",
    Kind::Counter,
    "Bytes of blocks that were loaded from a tier, or stored in it.",
);

/// Time that took, summed over the blocks.
pub const MOVE_TIME: Metric = Metric::new(
    "dynamo_kv_move_seconds_total",
    Kind::Counter,
    "Time that blocks took to be loaded from a tier, or stored in it, summed over the blocks.",
);

/// Blocks that wait for a tier.
pub const QUEUED: Metric =
    Metric::new("dynamo_kv_offload_queued", Kind::Gauge, "Blocks that wait for a tier.");

/// Blocks that should have gone to a tier and were evicted without.
pub const DROPPED: Metric = Metric::new(
    "dynamo_kv_offload_dropped_total",
    Kind::Counter,
    "Blocks that should have gone to a tier and were evicted without.",
);

/// Blocks that were loaded ahead of their use.
pub const PREFETCHED: Metric = Metric::new(
    "dynamo_kv_prefetched_blocks_total",
    Kind::Counter,
    "Blocks that were loaded ahead of their use.",
);

/// Prefetches that found the queue full.
pub const PREFETCHES_REFUSED: Metric = Metric::new(
    "dynamo_kv_prefetches_refused_total",
    Kind::Counter,
    "Prefetches that found the queue full.",
);

/// Counts a manager's blocks, tier by tier, for the page of a runtime.
///
/// ```
/// use std::sync::Arc;
///
/// use dynamo_core::metrics::Registry;
/// use dynamo_core::protocol::{BlockSize, InstanceId, WorkerId};
/// use dynamo_kv::metrics::BlockMetrics;
/// use dynamo_kv::{BlockLayout, BlockManager, DType, ManagerConfig};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let layout = BlockLayout::new(2, 1, 4, BlockSize::DEFAULT, DType::F32)?;
/// let worker = WorkerId::new(InstanceId(1));
/// let manager = BlockManager::new(ManagerConfig::new(layout, 8), worker, Box::new(|_event| {}))?;
/// // `runtime.metrics()` where there is a runtime; it counts as long as `blocks` is kept.
/// let (registry, blocks) = (Registry::default(), Arc::new(BlockMetrics::new("decode-0", &manager)));
/// registry.add(&blocks);
/// assert!(registry.render().contains("dynamo_kv_blocks{manager=\"decode-0\",tier=\"host\"} 0"));
/// # Ok(())
/// # }
/// ```
pub struct BlockMetrics {
    name: String,
    manager: BlockManager,
}

impl BlockMetrics {
    /// Counts the blocks of `manager` under a name.
    pub fn new(name: impl Into<String>, manager: &BlockManager) -> Self {
        Self { name: name.into(), manager: manager.clone() }
    }
}

/// The samples of one tier.
struct Page<'a> {
    samples: &'a mut Vec<Sample>,
    labels: [(&'static str, String); 2],
}

impl Page<'_> {
    #[expect(clippy::cast_precision_loss, reason = "counts beyond 2^53 may lose their last digits")]
    fn count(&mut self, metric: Metric, count: u64) {
        self.samples.push(Sample::new(metric, &self.labels, count as f64));
    }

    #[expect(clippy::cast_precision_loss, reason = "counts beyond 2^53 may lose their last digits")]
    fn moved(&mut self, direction: &str, [blocks, bytes]: [u64; 2], seconds: f64) {
        let [manager, tier] = self.labels.clone();
        let labels = [manager, tier, ("direction", direction.to_owned())];
        let values = [(MOVES, blocks as f64), (MOVED_BYTES, bytes as f64), (MOVE_TIME, seconds)];
        for (metric, value) in values {
            self.samples.push(Sample::new(metric, &labels, value));
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts beyond 2^53 may lose their last digits")]
impl Source for BlockMetrics {
    fn collect(&self, samples: &mut Vec<Sample>) {
        let manager = ("manager", self.name.clone());
        let pool = self.manager.stats();
        let labels = [manager.clone(), ("tier", name(self.manager.tier()).to_owned())];
        let mut page = Page { samples: &mut *samples, labels };
        page.count(BLOCKS, (pool.active + pool.cached) as u64);
        page.count(HITS, pool.hits_total);
        page.count(MISSES, pool.misses_total);
        page.count(EVICTIONS, pool.evicted_total);
        let Some(below) = self.manager.tiers() else { return };
        let prefetches = [
            (PREFETCHED, below.prefetched_total),
            (PREFETCHES_REFUSED, below.prefetches_refused_total),
        ];
        for (metric, count) in prefetches {
            samples.push(Sample::new(metric, std::slice::from_ref(&manager), count as f64));
        }
        let mut kinds = Vec::new();
        for tier in below.tiers {
            kinds.push(tier.kind);
            let labels = [manager.clone(), ("tier", numbered(&kinds))];
            let (mut page, stats) = (Page { samples: &mut *samples, labels }, tier.stats);
            page.count(BLOCKS, stats.blocks as u64);
            page.count(HITS, stats.hits_total);
            page.count(MISSES, stats.misses_total);
            page.count(EVICTIONS, stats.evicted_total);
            let loaded = [stats.hits_total, stats.read_bytes_total];
            page.moved("up", loaded, stats.load_time_total.as_secs_f64());
            let stored = [stats.stored_total, stats.written_bytes_total];
            page.moved("down", stored, stats.store_time_total.as_secs_f64());
            page.count(QUEUED, tier.queued as u64);
            page.count(DROPPED, tier.offload_dropped_total);
        }
    }
}

/// Returns the name of the last of these tiers; from the second of a kind on with its number.
fn numbered(kinds: &[Tier]) -> String {
    let Some(last) = kinds.last() else { return String::new() };
    match kinds.iter().filter(|kind| *kind == last).count() {
        1 => name(*last).to_owned(),
        number => format!("{}-{number}", name(*last)),
    }
}

fn name(tier: Tier) -> &'static str {
    match tier {
        Tier::Device => "device",
        Tier::Disk => "disk",
        Tier::Remote => "remote",
        _ => "host",
    }
}

impl fmt::Debug for BlockMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, manager } = self;
        f.debug_struct("BlockMetrics").field("name", name).field("manager", manager).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_of_one_kind_are_told_apart() {
        assert_eq!(numbered(&[Tier::Disk, Tier::Remote]), "remote");
        assert_eq!(numbered(&[Tier::Remote, Tier::Disk, Tier::Remote]), "remote-2");
    }
}
