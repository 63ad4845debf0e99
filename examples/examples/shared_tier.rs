//! Workers of one host that share a disk: one process owns it, the others borrow blocks from him, each
//! with a small memory of its own. Here all are one process; with a TCP plane and agents that listen they
//! are several.

use std::sync::Arc;
use std::time::Duration;

use dynamo_core::protocol::{BlockSize, CacheNamespace, InstanceId, KvEvent, WorkerId};
use dynamo_core::{Client, Runtime, ServeOptions};
use dynamo_kv::layout::RankLayout;
use dynamo_kv::tier::disk::{DiskConfig, DiskTier};
use dynamo_kv::tier::peer::{Answer, Owner, OwnerConfig, PeerConfig, PeerTier, Request};
use dynamo_kv::tier::{Tier, TierStats};
use dynamo_kv::{
    BlockLayout, BlockManager, DType, ManagerConfig, Offload, TierConfig, TiersConfig,
    TokenSequence,
};
use dynamo_transfer::{Agent, AgentConfig, MemoryFabric};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const OWNER: InstanceId = InstanceId(1);

/// A pool of so many blocks above a tier, which gets every block.
fn manager(id: u64, blocks: usize, tier: Arc<dyn Tier>) -> Result<BlockManager> {
    let below = TierConfig::new(tier).with_offload(Offload::WriteThrough);
    let config =
        ManagerConfig::new(layout()?, blocks).with_tiers(TiersConfig::default().with_tier(below));
    let worker = WorkerId::new(InstanceId(id));
    Ok(BlockManager::new(config, worker, Box::new(|_: KvEvent| {}))?)
}

fn layout() -> Result<RankLayout> {
    Ok(BlockLayout::new(2, 1, 8, BlockSize::DEFAULT, DType::F32)?.into())
}

/// A worker with room for four blocks.
async fn worker(
    id: u64,
    client: Client<Request, Answer>,
    agents: AgentConfig,
) -> Result<BlockManager> {
    let agent = Agent::start(agents.with_name(format!("worker {id}"))).await?;
    let tier = PeerTier::new(client, OWNER, agent, &layout()?, PeerConfig::default())?;
    manager(id, 4, Arc::new(tier))
}

/// Has the blocks of a prompt: what no tier has is computed.
#[expect(clippy::print_stdout, reason = "an example talks to a person")]
async fn serve(worker: &BlockManager, name: &str) -> Result<()> {
    let prompt: Vec<u32> = (0..64).collect();
    let sequence = TokenSequence::new(&CacheNamespace::model("m"), BlockSize::DEFAULT, &prompt);
    let mut found = worker.acquire(sequence.keys()).await;
    let (remote, compute) = (found.sources.remote, found.compute.clone());
    println!("{name}: {remote} blocks from the owner, compute {compute:?}");
    let mut blocks = worker.reserve(compute.len()).await?;
    // A real engine computes K and V here.
    blocks.iter_mut().for_each(|block| block.fill(7));
    let blocks = blocks.into_iter().zip(&sequence.keys()[compute]);
    let blocks = blocks.map(|(block, key)| block.complete(*key)).collect();
    found.blocks.append(worker.register_all(blocks));
    assert!(found.blocks.len() == 4 && found.blocks.iter().all(|block| block[0] == 7));
    Ok(())
}

fn below(manager: &BlockManager) -> TierStats {
    manager.tiers().map(|tiers| tiers.tiers[0].stats).unwrap_or_default()
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let dir = std::env::temp_dir().join(format!("shared-tier-{}", std::process::id()));
    let disk = DiskConfig::new(&dir, 64, layout()?.block_bytes(), layout()?.fingerprint());
    let owned = manager(1, 8, Arc::new(DiskTier::open(disk).await?))?;
    let agents = AgentConfig::default().with_fabric(MemoryFabric::new());
    let agent = Agent::start(agents.clone().with_name("owner")).await?;
    let owner = Owner::new(agent, owned.clone(), OwnerConfig::new(8))?;
    let runtime = Runtime::in_process();
    let endpoint = runtime.namespace("demo")?.component("cache")?.endpoint("blocks")?;
    let served = ServeOptions::default().with_instance(OWNER);
    let serving = endpoint.serve_with(owner.clone(), served).await?;

    let (one, two) = (
        worker(2, endpoint.client().await?, agents.clone()).await?,
        worker(3, endpoint.client().await?, agents).await?,
    );
    serve(&one, "worker 2").await?;
    // The second one hears what the first has stored; a router would, too.
    while below(&two).blocks < 4 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    serve(&two, "worker 3").await?;

    for worker in [one, two] {
        worker.shutdown(Duration::from_secs(5)).await?;
    }
    drop(serving);
    owner.shutdown().await;
    owned.shutdown(Duration::from_secs(5)).await?;
    std::fs::remove_dir_all(dir)?;
    Ok(())
}
