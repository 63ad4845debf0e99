//! A pool of host memory as the tier below a pool of device memory.
//!
//! ```text
//! device pool ──evict──► store: room in the host pool ─► copy ─► register there ──evict──► its tiers
//!             ◄─acquire─ load:  copy ◄─ acquire there  ◄──────────────────────────────────┘
//! ```
//!
//! A wave of blocks is one submission to the device. Both its sides are owned by the copy until it has
//! passed, so that no slot of either pool is used anew before, whoever has given up on it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dynamo_core::protocol;
use dynamo_core::{Error, ErrorKind, Result};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::{
    Loaded, Miss, MissReason, Outgoing, Pace, StoreError, Stored, Tier, TierSink, TierStats,
};
use crate::below::Sources;
use crate::block::{MutableBlock, RegisteredBlock};
use crate::identity::BlockKey;
use crate::manager::BlockManager;

/// The blocks of a manager of host memory, and of the tiers below it.
pub(crate) struct HostTier {
    manager: BlockManager,
    /// Loads and stores that are under way; closed when the tier is.
    moving: TaskTracker,
    pace: Pace,
    stats: Mutex<TierStats>,
}

type LoadOutcome = std::result::Result<Loaded<MutableBlock>, Miss<MutableBlock>>;
type StoreOutcome = std::result::Result<Stored, StoreError>;

/// A block of host memory on its way up to a place in device memory.
struct Up {
    source: RegisteredBlock,
    key: BlockKey,
    target: MutableBlock,
}

/// A block of device memory on its way down to one of host memory.
struct Down {
    source: Outgoing,
    key: BlockKey,
    target: MutableBlock,
    /// Its place among the blocks that are stored at once.
    number: usize,
}

impl HostTier {
    pub(crate) fn new(manager: BlockManager) -> Self {
        let (moving, pace) = (TaskTracker::new(), Pace::new(ASSUMED));
        Self { manager, moving, pace, stats: Mutex::default() }
    }

    /// Loads blocks of which each follows the one before.
    async fn load_run(&self, mut run: Vec<(BlockKey, MutableBlock)>) -> Vec<LoadOutcome> {
        let keys: Vec<_> = run.iter().map(|(key, _)| *key).collect();
        let acquired = self.manager.acquire(&keys).await;
        let absent = run.split_off(acquired.blocks.len());
        let sources = Vec::from(acquired.blocks);
        let pieces = run.into_iter().zip(sources).map(|((key, target), source)| {
            let offset = target.device().map_or(usize::MAX, |device| device.offset());
            (offset, Up { source, key, target })
        });
        let mut outcomes = self.upload(pieces.collect(), &acquired.sources).await;
        let absent = absent
            .into_iter()
            .map(|(_, target)| Err(Miss { reason: MissReason::Absent, target: Some(target) }));
        outcomes.extend(absent);
        outcomes
    }

    /// Copies blocks up, of which so many come from where `sources` says.
    async fn upload(&self, pieces: Vec<(usize, Up)>, sources: &Sources) -> Vec<LoadOutcome> {
        let device = pieces.first().and_then(|(_, up)| up.target.device());
        let Some(memory) = device.map(|device| Arc::clone(device.memory())) else {
            return Vec::new();
        };
        let (count, begun) = (pieces.len(), Instant::now());
        let timing = self.pace.begin(count);
        match memory.copier.upload_pieces(pieces, &memory.buffer).await {
            Ok(pieces) => {
                timing.end(count);
                self.count(|stats| {
                    stats.hits_total += count as u64;
                    stats.read_bytes_total += (count * memory.block_bytes) as u64;
                    stats.load_time_total += begun.elapsed() * each(count);
                });
                let from = sources.in_order();
                let loaded = pieces
                    .into_iter()
                    .zip(from)
                    .map(|((_, up), source)| Ok(Loaded::copied(up.key, up.target, source)));
                loaded.collect()
            }
            Err(error) => {
                let error = Arc::new(error);
                let miss =
                    || Miss { reason: MissReason::Io(Box::new(error.clone())), target: None };
                (0..count).map(|_| Err(miss())).collect()
            }
        }
    }

    /// Copies blocks down and shares them; says how that went by their numbers.
    async fn download(&self, pieces: Vec<(usize, Down)>, outcomes: &mut [StoreOutcome]) {
        let device = pieces.first().and_then(|(_, down)| down.source.device());
        let Some(memory) = device.map(|device| Arc::clone(device.memory())) else { return };
        let numbers: Vec<_> = pieces.iter().map(|(_, down)| down.number).collect();
        let begun = Instant::now();
        match memory.copier.download_pieces(&memory.buffer, pieces).await {
            Ok(mut pieces) => {
                let (count, elapsed) = (numbers.len(), begun.elapsed());
                self.count(|stats| {
                    stats.stored_total += count as u64;
                    stats.written_bytes_total += (count * memory.block_bytes) as u64;
                    stats.store_time_total += elapsed * each(count);
                });
                // Leaves go first: whoever follows another is linked to it if it comes behind.
                pieces.sort_by_key(|(_, down)| (down.key.chain, down.key.position));
                let complete = pieces.into_iter().map(|(_, down)| down.target.complete(down.key));
                drop(self.manager.register_all(complete.collect()));
                numbers.iter().for_each(|number| outcomes[*number] = Ok(Stored::Written));
            }
            Err(error) => {
                let error = Arc::new(error);
                for number in numbers {
                    outcomes[number] = Err(StoreError::Io(Box::new(error.clone())));
                }
            }
        }
    }

    fn count(&self, change: impl FnOnce(&mut TierStats)) {
        change(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, TierStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Tier for HostTier {
    fn kind(&self) -> protocol::Tier {
        protocol::Tier::Host
    }

    /// Knows no blocks and tells no changes: the manager publishes them itself, by the publisher of the
    /// pool above, which asks it what it has.
    fn watch(&self, _sink: Box<dyn TierSink>) -> Vec<BlockKey> {
        Vec::new()
    }

    async fn match_prefix(&self, keys: &[BlockKey]) -> usize {
        if self.moving.is_closed() {
            return 0;
        }
        self.manager.probe(keys).await
    }

    async fn store(&self, blocks: Vec<(BlockKey, Outgoing)>) -> Vec<StoreOutcome> {
        let _moving = self.moving.token();
        if self.moving.is_closed() {
            return blocks.iter().map(|_| Err(StoreError::Closed)).collect();
        }
        let mut outcomes = Vec::with_capacity(blocks.len());
        let mut wanted = Vec::with_capacity(blocks.len());
        for (number, (key, source)) in blocks.into_iter().enumerate() {
            let is_there = self.manager.pool().has(&key);
            outcomes.push(if is_there { Ok(Stored::Present) } else { Err(StoreError::Busy) });
            if !is_there {
                wanted.push((number, key, source));
            }
        }
        let room = self.manager.pool().reserve_up_to(wanted.len()).await;
        let pieces = wanted.into_iter().zip(room).map(|((number, key, source), target)| {
            let offset = source.device().map_or(usize::MAX, |device| device.offset());
            (offset, Down { source, key, target, number })
        });
        self.download(pieces.collect(), &mut outcomes).await;
        let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
        self.count(|stats| stats.failed_total += failed as u64);
        outcomes
    }

    async fn load(&self, targets: Vec<(BlockKey, MutableBlock)>) -> Vec<LoadOutcome> {
        let _moving = self.moving.token();
        let mut outcomes = Vec::with_capacity(targets.len());
        let mut targets = targets.into_iter().peekable();
        while let Some(first) = targets.next() {
            let (mut last, mut run) = (first.0.identity, vec![first]);
            while let Some(next) = targets.next_if(|(key, _)| key.parent == Some(last)) {
                last = next.0.identity;
                run.push(next);
            }
            if self.moving.is_closed() {
                let closed = run.into_iter().map(|(_, target)| {
                    Err(Miss { reason: MissReason::Closed, target: Some(target) })
                });
                outcomes.extend(closed);
                continue;
            }
            outcomes.extend(self.load_run(run).await);
        }
        let missed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
        self.count(|stats| stats.misses_total += missed as u64);
        outcomes
    }

    /// Removes nothing: the blocks are there for others too, and go when the pool evicts them.
    async fn remove(&self, _keys: &[BlockKey]) -> Result<usize> {
        Ok(0)
    }

    /// Evicts every cached block from host memory; tiers below it keep theirs.
    async fn clear(&self) -> Result<()> {
        self.manager.clear();
        Ok(())
    }

    /// Says what the copy takes: whether a block is worth loading from the tiers below, the manager
    /// decides.
    fn estimate(&self, blocks: usize) -> Duration {
        self.pace.estimate(blocks)
    }

    fn stats(&self) -> TierStats {
        let pool = self.manager.stats();
        let blocks = pool.active + pool.cached;
        TierStats { blocks, evicted_total: pool.evicted_total, ..*self.lock() }
    }

    async fn shutdown(&self, within: Duration) -> Result<()> {
        self.moving.close();
        let begun = Instant::now();
        let quiet = tokio::time::timeout(within, self.moving.wait()).await.map_err(|_| {
            let message = "blocks between host and device memory are still on their way";
            Error::new(ErrorKind::DeadlineExceeded, message)
        });
        let left = within.saturating_sub(begun.elapsed());
        let below = self.manager.shutdown(left).await;
        quiet.and(below)
    }
}

impl AsRef<[u8]> for Up {
    fn as_ref(&self) -> &[u8] {
        &self.source
    }
}

impl AsMut<[u8]> for Down {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.target
    }
}

impl fmt::Debug for HostTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostTier").field("manager", &self.manager).finish_non_exhaustive()
    }
}

/// Times are summed over blocks.
fn each(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// What a block takes over a bus of 25 GB/s, before any was copied: 1 MiB.
const ASSUMED: Duration = Duration::from_micros(40);
