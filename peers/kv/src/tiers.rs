//! Blocks that go from memory to a disk and back, beside the same bytes moved by the same engine alone.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use dynamo_core::protocol::{BlockSize, CacheNamespace, InstanceId, WorkerId};
use dynamo_kv::layout::RankLayout;
use dynamo_kv::tier::disk::{DiskConfig, DiskTier};
use dynamo_kv::{
    BlockKey, BlockLayout, BlockManager, DType, ManagerConfig, TierConfig, TiersConfig,
    TokenSequence,
};
use dynamo_transfer::HostBuffer;
use dynamo_transfer::file::{FileOptions, FileRegion, FileStore, FileStoreConfig};

use crate::table::{Metric, Table};

/// Measures blocks of each size in a directory of its own within `folder`, and adds the rows.
pub fn run(folder: &Path, rounds: usize, table: &mut Table) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    for kib in [64, 256, 2048] {
        println!("blocks of {kib} KiB to a disk and back");
        let dir = folder.join(format!("kv-tiers-{}-{kib}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let measured = runtime.block_on(measure(&dir, kib << 10, rounds.max(1) * TURNS));
        std::fs::remove_dir_all(&dir)?;
        let [down, up, written, read] = measured?;
        let workload = format!("blocks of {kib} KiB, disk");
        table.row(&workload, OFFLOAD, down, Some((RAW, written)), Some(RATIO));
        table.row(&workload, ONBOARD, up, Some((RAW, read)), Some(RATIO));
    }
    Ok(())
}

/// Returns GB/s: down, up, written and read by the engine alone; medians of rounds in which they take
/// turns, each of them first in every other one.
async fn measure(dir: &Path, block_bytes: usize, rounds: usize) -> Result<[f64; 4]> {
    let tiers = Tiers::new(dir, block_bytes).await?;
    let mut alone = Alone::new(dir, block_bytes)?;
    let together = (RUN_BYTES / block_bytes).max(1);
    // Ours, and the engine with a block at a time and with neighbours at once.
    let mut all: [[Vec<f64>; 3]; 2] = Default::default();
    // The first is to have all pages touched and the file's room there.
    for round in 0..=rounds {
        for (direction, all) in all.iter_mut().enumerate() {
            let is_down = direction == 0;
            for turn in 0..3 {
                let who = (turn + round) % 3;
                let took = match who {
                    0 if is_down => tiers.down().await?,
                    0 => tiers.up().await?,
                    1 => alone.pass(is_down, 1).await?,
                    _ => alone.pass(is_down, together).await?,
                };
                if round > 0 {
                    all[who].push(TOTAL_BYTES as f64 / took.as_secs_f64() / 1e9);
                }
            }
        }
    }
    tiers.manager.shutdown(PATIENCE).await?;
    let [[down, write, writes], [up, read, reads]] = all.map(|rates| rates.map(median));
    Ok([down, up, write.max(writes), read.max(reads)])
}

pub fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// A manager over a disk that has room for as much again.
struct Tiers {
    manager: BlockManager,
    disk: Arc<DiskTier>,
    keys: Vec<BlockKey>,
}

impl Tiers {
    async fn new(dir: &Path, block_bytes: usize) -> Result<Self> {
        let count = TOTAL_BYTES / block_bytes;
        let size = BlockSize::new(1).context("a token")?;
        // Layers of 8 KiB.
        let layout = BlockLayout::new(block_bytes >> 13, 4, 256, size, DType::F32)?;
        ensure!(layout.block_bytes() == block_bytes, "blocks of another size");
        let slots = u32::try_from(count)?;
        let disk = DiskConfig::new(dir, slots, block_bytes, RankLayout::from(layout).fingerprint());
        let disk = Arc::new(DiskTier::open(disk).await?);
        let tiers = TiersConfig::default()
            .with_tier(TierConfig::new(disk.clone()))
            .with_queue_blocks(QUEUE_BYTES / block_bytes)
            .with_acquire_timeout(PATIENCE)
            .with_reserve_timeout(PATIENCE);
        let config = ManagerConfig::new(layout, count).with_tiers(tiers);
        let worker = WorkerId::new(InstanceId(1));
        let manager = BlockManager::new(config, worker, Box::new(|_event| {}))?;
        let tokens: Vec<u32> = (0..slots).collect();
        let keys = TokenSequence::new(&CacheNamespace::default(), size, &tokens).keys().to_vec();
        let blocks = manager.allocate(count)?.into_iter().zip(&keys).map(|(mut block, key)| {
            block.fill(u8::try_from(key.position % 251).unwrap_or_default());
            block.complete(*key)
        });
        drop(manager.register_all(blocks.collect()));
        Ok(Self { manager, disk, keys })
    }

    /// Has all blocks make room for others, until the disk has them.
    async fn down(&self) -> Result<Duration> {
        self.disk.clear().await?;
        let started = Instant::now();
        drop(self.manager.reserve(self.keys.len()).await?);
        while self.disk.stats().blocks < self.keys.len() {
            ensure!(started.elapsed() < PATIENCE, "blocks are lost");
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
        Ok(started.elapsed())
    }

    async fn up(&self) -> Result<Duration> {
        let started = Instant::now();
        let acquired = self.manager.acquire(&self.keys).await;
        let elapsed = started.elapsed();
        ensure!(acquired.sources.disk == self.keys.len(), "{:?}", acquired.sources);
        Ok(elapsed)
    }
}

/// The engine of a disk tier, and a file of the same size.
struct Alone {
    store: Arc<FileStore>,
    region: Arc<FileRegion>,
    buffers: Vec<HostBuffer>,
    block_bytes: usize,
}

impl Alone {
    fn new(dir: &Path, block_bytes: usize) -> Result<Self> {
        let store = Arc::new(FileStore::start(FileStoreConfig::default())?);
        let options = FileOptions::default().with_direct(true);
        let region = FileRegion::create(dir.join("alone"), TOTAL_BYTES as u64, options)?;
        let mut buffers = vec![HostBuffer::new(block_bytes); TOTAL_BYTES / block_bytes];
        buffers.iter_mut().for_each(|buffer| buffer.fill(7));
        Ok(Self { store, region: Arc::new(region), buffers, block_bytes })
    }

    /// Writes or reads all blocks, so many by one operation and as many at once as a disk tier has in
    /// flight.
    async fn pass(&mut self, is_write: bool, together: usize) -> Result<Duration> {
        let lanes = (IN_FLIGHT_BYTES / self.block_bytes).max(IN_FLIGHT) / together;
        let mut shares: Vec<Vec<_>> = (0..lanes).map(|_| Vec::new()).collect();
        let mut parts = self
            .buffers
            .drain(..)
            .enumerate()
            .map(|(at, buffer)| ((at * self.block_bytes) as u64, buffer));
        for number in 0.. {
            let run: Vec<_> = parts.by_ref().take(together).collect();
            if run.is_empty() {
                break;
            }
            shares[number % lanes].push(run);
        }
        drop(parts);
        let started = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for share in shares {
            let (store, region) = (Arc::clone(&self.store), Arc::clone(&self.region));
            tasks.spawn(async move {
                let mut back = Vec::new();
                for run in share {
                    let (moved, run) = match is_write {
                        true => store.write_all(&region, run).await,
                        false => store.read_all(&region, run).await,
                    };
                    moved?;
                    back.extend(run.into_iter().flatten());
                }
                Ok::<_, dynamo_transfer::Error>(back)
            });
        }
        while let Some(back) = tasks.join_next().await {
            self.buffers.extend(back??);
        }
        Ok(started.elapsed())
    }
}

const OFFLOAD: Metric = Metric::higher("offload", "GB/s");
const ONBOARD: Metric = Metric::higher("onboard", "GB/s");
const RAW: &str = "the engine alone";

/// Of what the engine moves alone.
const RATIO: f64 = 0.9;

const TOTAL_BYTES: usize = 256 << 20;

/// Room for two batches of the largest blocks that are written at once.
const QUEUE_BYTES: usize = 64 << 20;

/// What a disk tier has in flight by default, but for at least so many blocks.
const IN_FLIGHT_BYTES: usize = 8 << 20;
const IN_FLIGHT: usize = 32;

/// What it moves at once.
const RUN_BYTES: usize = 512 << 10;

/// How often all take turns, for each round that is asked for: a device's rate moves about.
pub const TURNS: usize = 3;

const PATIENCE: Duration = Duration::from_secs(60);
