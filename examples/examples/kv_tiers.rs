//! Blocks that memory has no room for go to a disk, and come back by one call, also after a restart.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dynamo_core::protocol::{BlockSize, CacheNamespace, InstanceId, KvEvent, WorkerId};
use dynamo_kv::layout::RankLayout;
use dynamo_kv::tier::disk::{DiskConfig, DiskTier};
use dynamo_kv::{
    BlockLayout, BlockManager, DType, ManagerConfig, Offload, TierConfig, TiersConfig,
    TokenSequence,
};

/// A pool of four blocks over a disk of 64, which gets every block.
async fn manager(dir: &Path) -> Result<BlockManager, Box<dyn std::error::Error>> {
    let layout = RankLayout::from(BlockLayout::new(2, 1, 8, BlockSize::DEFAULT, DType::F32)?);
    let disk = DiskConfig::new(dir, 64, layout.block_bytes(), layout.fingerprint());
    let disk = TierConfig::new(Arc::new(DiskTier::open(disk).await?));
    let tiers = TiersConfig::default().with_tier(disk.with_offload(Offload::WriteThrough));
    let config = ManagerConfig::new(layout, 4).with_tiers(tiers);
    Ok(BlockManager::new(config, WorkerId::new(InstanceId(1)), Box::new(|_: KvEvent| {}))?)
}

/// Has the blocks of a prompt: what no tier has is computed.
#[expect(clippy::print_stdout, reason = "an example talks to a person")]
async fn serve(
    manager: &BlockManager,
    name: &str,
    first_token: u32,
) -> Result<(), Box<dyn std::error::Error>> {
    let prompt: Vec<u32> = (first_token..).take(64).collect();
    let sequence = TokenSequence::new(&CacheNamespace::model("m"), BlockSize::DEFAULT, &prompt);
    let mut found = manager.acquire(sequence.keys()).await;
    let (sources, compute) = (found.sources, found.compute.clone());
    println!(
        "{name}: {} from memory, {} from disk, compute {compute:?}",
        sources.host, sources.disk
    );
    let mut blocks = manager.reserve(compute.len()).await?;
    // A real engine computes K and V here.
    blocks.iter_mut().for_each(|block| block.fill(7));
    let blocks = blocks.into_iter().zip(&sequence.keys()[compute]);
    let blocks = blocks.map(|(block, key)| block.complete(*key)).collect();
    found.blocks.append(manager.register_all(blocks));
    assert!(found.blocks.len() == 4 && found.blocks.iter().all(|block| block[0] == 7));
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::temp_dir().join(format!("kv-tiers-{}", std::process::id()));
    for run in ["first run", "after a restart"] {
        let manager = manager(&dir).await?;
        serve(&manager, &format!("{run}, prompt 1"), 0).await?;
        serve(&manager, &format!("{run}, prompt 2"), 1000).await?;
        serve(&manager, &format!("{run}, prompt 1 again"), 0).await?;
        manager.shutdown(Duration::from_secs(5)).await?;
    }
    std::fs::remove_dir_all(dir)?;
    Ok(())
}
