use std::fmt;

use dynamo_core::metrics::{Kind, Metric, Sample, Source};

use crate::manager::BlockManager;

/// The most blocks that a tenant may have.
pub const QUOTA: Metric = Metric::new(
    "dynamo_kv_tenant_quota_blocks",
    Kind::Gauge,
    "The most blocks that a tenant may have in memory.",
);

/// Blocks that a tenant has.
pub const TENANT_BLOCKS: Metric =
    Metric::new("dynamo_kv_tenant_blocks", Kind::Gauge, "Blocks that a tenant has in memory.");

/// Blocks that a tenant asked for and had.
pub const TENANT_HITS: Metric = Metric::new(
    "dynamo_kv_tenant_hits_total",
    Kind::Counter,
    "Blocks that a tenant asked for and had in memory.",
);

/// Blocks that a tenant asked for and did not have.
pub const TENANT_MISSES: Metric = Metric::new(
    "dynamo_kv_tenant_misses_total",
    Kind::Counter,
    "Blocks that a tenant asked for and did not have in memory.",
);

/// Blocks of a tenant that made room for others, of the same tenant or not.
pub const TENANT_EVICTIONS: Metric = Metric::new(
    "dynamo_kv_tenant_evictions_total",
    Kind::Counter,
    "Blocks of a tenant that made room in memory for others.",
);

/// Counts what one tenant has of a manager's blocks, for the page of a runtime.
///
/// The whole manager's counts, those of [`BlockMetrics`](super::BlockMetrics), have all tenants' in them.
///
/// ```
/// use std::sync::Arc;
///
/// use dynamo_core::metrics::Registry;
/// use dynamo_core::protocol::{BlockSize, InstanceId, WorkerId};
/// use dynamo_kv::metrics::TenantMetrics;
/// use dynamo_kv::{BlockLayout, BlockManager, DType, ManagerConfig};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let layout = BlockLayout::new(2, 1, 4, BlockSize::DEFAULT, DType::F32)?;
/// let worker = WorkerId::new(InstanceId(1));
/// let manager = BlockManager::new(ManagerConfig::new(layout, 8), worker, Box::new(|_event| {}))?;
/// let acme = manager.with_quota(3)?;
/// // `runtime.metrics()` where there is a runtime; it counts as long as `tenant` is kept.
/// let (registry, tenant) = (Registry::default(), TenantMetrics::new("decode-0", "acme", &acme));
/// let tenant = Arc::new(tenant);
/// registry.add(&tenant);
/// let held = acme.allocate(2)?;
/// let page = registry.render();
/// let labels = "manager=\"decode-0\",tenant=\"acme\"";
/// assert!(page.contains(&format!("dynamo_kv_tenant_quota_blocks{{{labels}}} 3")));
/// assert!(page.contains(&format!("dynamo_kv_tenant_blocks{{{labels},state=\"held\"}} 2")));
/// # drop(held);
/// # Ok(())
/// # }
/// ```
pub struct TenantMetrics {
    name: String,
    tenant: String,
    manager: BlockManager,
}

impl TenantMetrics {
    /// Counts the blocks of `manager`, one that [`BlockManager::with_quota`] returned, under the name of the
    /// whole manager and that of the tenant.
    pub fn new(name: impl Into<String>, tenant: impl Into<String>, manager: &BlockManager) -> Self {
        Self { name: name.into(), tenant: tenant.into(), manager: manager.clone() }
    }
}

impl Source for TenantMetrics {
    #[expect(clippy::cast_precision_loss, reason = "counts beyond 2^53 may lose their last digits")]
    fn collect(&self, samples: &mut Vec<Sample>) {
        let stats = self.manager.stats();
        let labels = [("manager", self.name.clone()), ("tenant", self.tenant.clone())];
        let held = stats.mutable + stats.complete + stats.active;
        for (state, blocks) in [("held", held), ("cached", stats.cached)] {
            let [manager, tenant] = labels.clone();
            let labels = [manager, tenant, ("state", state.to_owned())];
            samples.push(Sample::new(TENANT_BLOCKS, &labels, blocks as f64));
        }
        for (metric, count) in [
            (QUOTA, stats.capacity as u64),
            (TENANT_HITS, stats.hits_total),
            (TENANT_MISSES, stats.misses_total),
            (TENANT_EVICTIONS, stats.evicted_total),
        ] {
            samples.push(Sample::new(metric, &labels, count as f64));
        }
    }
}

impl fmt::Debug for TenantMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, tenant, manager } = self;
        f.debug_struct("TenantMetrics")
            .field("name", name)
            .field("tenant", tenant)
            .field("manager", manager)
            .finish()
    }
}
