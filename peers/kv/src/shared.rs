//! Blocks that go to another agent's memory and back under leases, beside the engine that moves them alone.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use dynamo_core::protocol::{BlockSize, CacheNamespace, InstanceId, WorkerId};
use dynamo_core::{Runtime, ServeOptions, Serving};
use dynamo_kv::tier::peer::{Owner, OwnerConfig, PeerConfig, PeerTier};
use dynamo_kv::{BlockKey, BlockLayout, BlockManager, DType, ManagerConfig, TokenSequence};
use dynamo_transfer::{Agent, AgentConfig, HostBuffer, RegisteredRegion, TransferOptions};

use crate::table::{Metric, Table};
use crate::tiers::median;

/// Measures each way between agents, and adds the rows.
pub fn run(rounds: usize, table: &mut Table) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let loopback = "127.0.0.1:0".parse()?;
    let ways = [
        ("shared memory", AgentConfig::default().with_shm(true)),
        ("TCP", AgentConfig::default().with_shm(false).with_tcp_listen(loopback)),
    ];
    for (way, config) in ways {
        println!("blocks to another agent's memory and back over {way}");
        let [store, write, load, read] = runtime.block_on(measure(config, rounds.max(1)))?;
        let workload = format!("blocks of 256 KiB, peer, {way}");
        table.row(&workload, STORE, store, Some((RAW, write)), None);
        table.row(&workload, LOAD, load, Some((RAW, read)), None);
    }
    Ok(())
}

/// Returns GB/s: stored, written by the engine alone, loaded, read by the engine alone; medians of rounds
/// in which they take turns.
async fn measure(config: AgentConfig, rounds: usize) -> Result<[f64; 4]> {
    let there = Agent::start(config.clone().with_name("owner")).await?;
    let here = Agent::start(config.with_name("worker")).await?;
    let (shared, alone) =
        (Shared::new(&there, &here).await?, Alone { there: there.clone(), here: here.clone() });
    let theirs = there.register_peer_writable(buffers())?;
    let ours = here.register_mut(buffers())?;
    let mut all: [Vec<f64>; 4] = Default::default();
    // The first is to have all pages touched.
    for round in 0..=rounds {
        let took = [
            shared.store().await?,
            alone.pass(&ours, &theirs, true).await?,
            shared.load().await?,
            alone.pass(&ours, &theirs, false).await?,
        ];
        for (all, took) in all.iter_mut().zip(took).filter(|_| round > 0) {
            all.push(TOTAL_BYTES as f64 / took.as_secs_f64() / 1e9);
        }
    }
    shared.tier.shutdown(PATIENCE).await?;
    shared.owner.shutdown().await;
    for agent in [here, there] {
        agent.shutdown().await;
    }
    Ok(all.map(median))
}

/// An owner, and a worker that has its blocks as a tier.
struct Shared {
    owner: Owner,
    owners: BlockManager,
    _serving: Serving,
    tier: PeerTier,
    workers: BlockManager,
    keys: Vec<BlockKey>,
}

impl Shared {
    async fn new(there: &Agent, here: &Agent) -> Result<Self> {
        let size = BlockSize::new(1).context("a token")?;
        let layout = BlockLayout::new(BLOCK_BYTES >> 13, 4, 256, size, DType::F32)?;
        let count = TOTAL_BYTES / BLOCK_BYTES;
        let manager = |id| {
            let worker = WorkerId::new(InstanceId(id));
            BlockManager::new(ManagerConfig::new(layout, count), worker, Box::new(|_event| {}))
        };
        let (owners, workers) = (manager(1)?, manager(2)?);
        let runtime = Runtime::in_process();
        let endpoint = runtime.namespace("bench")?.component("cache")?.endpoint("blocks")?;
        let owner = Owner::new(there.clone(), owners.clone(), OwnerConfig::new(count))?;
        let served = ServeOptions::default().with_instance(InstanceId(1));
        let _serving = endpoint.serve_with(owner.clone(), served).await?;
        let client = endpoint.client().await?;
        let config = PeerConfig::default();
        let tier = PeerTier::new(client, InstanceId(1), here.clone(), workers.layout(), config)?;
        let tokens: Vec<u32> = (0..u32::try_from(count)?).collect();
        let keys = TokenSequence::new(&CacheNamespace::default(), size, &tokens).keys().to_vec();
        let blocks = workers.allocate(count)?.into_iter().zip(&keys).map(|(mut block, key)| {
            block.fill(u8::try_from(key.position % 251).unwrap_or_default());
            block.complete(*key)
        });
        drop(workers.register_all(blocks.collect()));
        Ok(Self { owner, owners, _serving, tier, workers, keys })
    }

    /// Stores all blocks with an owner that has none.
    async fn store(&self) -> Result<Duration> {
        self.owners.clear();
        let blocks = self.workers.match_prefix(&self.keys).into_iter();
        let blocks = self.keys.iter().zip(blocks).map(|(key, block)| (*key, block.into()));
        let blocks: Vec<_> = blocks.collect();
        let started = Instant::now();
        let stored = self.tier.store(blocks).await;
        let elapsed = started.elapsed();
        ensure!(stored.iter().all(Result::is_ok) && stored.len() == self.keys.len(), "{stored:?}");
        Ok(elapsed)
    }

    /// Loads all blocks; the worker has them in memory again then.
    async fn load(&self) -> Result<Duration> {
        self.workers.clear();
        let targets = self.keys.iter().copied().zip(self.workers.allocate(self.keys.len())?);
        let targets = targets.collect();
        let started = Instant::now();
        let loaded = self.tier.load(targets).await;
        let elapsed = started.elapsed();
        let loaded: Result<Vec<_>, _> = loaded.into_iter().collect();
        let loaded = loaded.map_err(|miss| miss.reason)?;
        drop(self.workers.register_all(loaded.into_iter().map(|block| block.complete()).collect()));
        Ok(elapsed)
    }
}

/// The agents, and regions of the same size.
struct Alone {
    there: Agent,
    here: Agent,
}

impl Alone {
    /// Moves all blocks, as many at once as a tier does.
    async fn pass(
        &self,
        ours: &RegisteredRegion<HostBuffer>,
        theirs: &RegisteredRegion<HostBuffer>,
        is_write: bool,
    ) -> Result<Duration> {
        let peer = self.here.load_metadata(&self.there.metadata([theirs.grant()])?)?;
        let started = Instant::now();
        for batches in (0..TOTAL_BYTES / BATCH_BYTES).collect::<Vec<_>>().chunks(IN_FLIGHT) {
            let mut moving = Vec::new();
            for batch in batches {
                let range = [((batch * BATCH_BYTES) as u64, BATCH_BYTES as u64)];
                let (local, remote) =
                    (ours.descriptor(range)?, peer.regions()[0].descriptor(range)?);
                let options = TransferOptions::default();
                moving.push(match is_write {
                    true => self.here.write(local, remote, options),
                    false => self.here.read(local, remote, options),
                });
            }
            for transfer in moving {
                transfer.await?;
            }
        }
        Ok(started.elapsed())
    }
}

fn buffers() -> Vec<HostBuffer> {
    let mut buffers = vec![HostBuffer::new(BLOCK_BYTES); TOTAL_BYTES / BLOCK_BYTES];
    buffers.iter_mut().for_each(|buffer| buffer.fill(7));
    buffers
}

const STORE: Metric = Metric::higher("store", "GB/s");
const LOAD: Metric = Metric::higher("load", "GB/s");
const RAW: &str = "the engine alone";

const BLOCK_BYTES: usize = 256 << 10;
const TOTAL_BYTES: usize = 256 << 20;

/// What a tier moves under one lease, and how many leases it has at once.
const BATCH_BYTES: usize = 32 * BLOCK_BYTES;
const IN_FLIGHT: usize = 4;

const PATIENCE: Duration = Duration::from_secs(60);
