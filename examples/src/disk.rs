//! A tier on a disk for each worker.

use std::path::PathBuf;
use std::sync::Arc;

use dynamo_core::{Error, Result};
use dynamo_kv::layout::RankLayout;
use dynamo_kv::tier::disk::{DiskConfig, DiskTier};
use dynamo_kv::{BlockLayout, Offload, TierConfig, TiersConfig};

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
    /// finds them all.
    pub(crate) async fn tiers(&self, name: &str, layout: &BlockLayout) -> Result<TiersConfig> {
        let (dir, bytes) = (self.dir.join(name), layout.block_bytes());
        std::fs::create_dir_all(&dir).map_err(|error| {
            Error::invalid(format!("directory {}", dir.display())).with_source(error)
        })?;
        let tier =
            DiskConfig::new(dir, self.blocks, bytes, RankLayout::from(*layout).fingerprint());
        let tier = TierConfig::new(Arc::new(DiskTier::open(tier).await?));
        Ok(TiersConfig::default().with_tier(tier.with_offload(Offload::WriteThrough)))
    }
}
