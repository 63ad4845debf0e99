//! A tier on a disk for each worker.

use std::path::PathBuf;
use std::sync::Arc;

use dynamo_core::{Error, Result};
use dynamo_kv::layout::RankLayout;
use dynamo_kv::tier::disk::{DiskConfig, DiskTier};
use dynamo_kv::{BlockLayout, Offload, TierConfig, TiersConfig};

use crate::engine::measure;
use crate::model::Model;

/// What workers keep on a disk.
#[derive(Debug, Clone)]
pub struct DiskOptions {
    /// The directory in which each worker has one of its name.
    pub dir: PathBuf,
    /// KV blocks per worker.
    pub blocks: u32,
}

impl DiskOptions {
    /// Opens the tier of the worker of that name: it gets every block, so that a worker that comes back
    /// finds them all, and gives those that are cheaper to load than to compute.
    pub(crate) async fn tiers(
        &self,
        name: &str,
        model: &Arc<Model>,
        layout: &BlockLayout,
    ) -> Result<TiersConfig> {
        let (dir, bytes) = (self.dir.join(name), layout.block_bytes());
        std::fs::create_dir_all(&dir).map_err(|error| {
            Error::invalid(format!("directory {}", dir.display())).with_source(error)
        })?;
        let tier =
            DiskConfig::new(dir, self.blocks, bytes, RankLayout::from(*layout).fingerprint());
        let tier = TierConfig::new(Arc::new(DiskTier::open(tier).await?));
        let (model, block_size) = (Arc::clone(model), layout.block_size());
        let cost = tokio::task::spawn_blocking(move || measure(&model, block_size)).await;
        let cost = cost.map_err(|error| Error::internal("measuring thread").with_source(error))?;
        let cost = cost.map_err(|error| {
            Error::internal("measuring what a block costs to compute").with_source(error)
        })?;
        tracing::debug!(worker = name, ?cost, "blocks are computed");
        let tier = tier.with_offload(Offload::WriteThrough);
        Ok(TiersConfig::default().with_tier(tier).with_recompute(cost))
    }
}
