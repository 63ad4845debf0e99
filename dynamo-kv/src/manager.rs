//! The front door: allocate, match, register.

mod above;
mod config;
mod quota;
mod snapshot;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use dynamo_core::protocol::{KvChange, KvEvent, Tier, WorkerId};

use crate::below::{Acquired, Below, TiersStats};
use crate::block::{BlockRun, CompleteBlock, MutableBlock, RegisteredBlock};
use crate::identity::BlockKey;
use crate::layout::RankLayout;
use crate::pool::{BlockMemory, Memory, Pool, PoolConfig, Published, Publisher};
pub use config::ManagerConfig;
pub use quota::{AllocateError, Limit};
pub use snapshot::SnapshotEngine;

/// Owns a fixed number of blocks of host memory, or of a device's; cheap to clone.
///
/// Every block is in exactly one state, and the states sum to the capacity after every call
/// ([`PoolStats`]). What changes for others is published as [`KvEvent`]s in the order it happened.
#[derive(Clone)]
pub struct BlockManager {
    pool: Arc<Pool>,
    layout: Arc<RankLayout>,
}

/// Where a block manager publishes its events.
///
/// It is called in the order of the changes, under the manager's locks: it must neither block, nor
/// panic, nor call the manager.
pub trait EventSink: Send + 'static {
    /// Takes the next event.
    fn publish(&self, event: KvEvent);
}

impl<F: Fn(KvEvent) + Send + 'static> EventSink for F {
    fn publish(&self, event: KvEvent) {
        self(event);
    }
}

/// How many blocks are in which state, and what happened so far: of a whole manager, or of a quota.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Blocks in all: the sum of the five states below.
    pub capacity: usize,
    /// Blocks nobody holds and nothing can be found in; of a quota what is left of it, be there free
    /// blocks or not.
    pub free: usize,
    /// Blocks being written.
    pub mutable: usize,
    /// Blocks that are full and not shared yet.
    pub complete: usize,
    /// Registered blocks that are held, or precede one that is.
    pub active: usize,
    /// Registered blocks that can be found and may be evicted.
    pub cached: usize,
    /// Blocks evicted so far.
    pub evicted_total: u64,
    /// Blocks that [`BlockManager::match_prefix`] found so far.
    pub hits_total: u64,
    /// Blocks that it was asked for and did not find.
    pub misses_total: u64,
}

/// Everything a manager holds, for a listener that lost events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The epoch of the manager's events.
    pub epoch: u64,
    /// The number of the next event: the snapshot stands for all before it.
    pub seq: u64,
    /// The blocks, parents before what follows them.
    pub stored: Vec<KvChange>,
}

impl BlockManager {
    /// Allocates the memory and creates the manager of `worker`'s blocks.
    ///
    /// Fails with [`InvalidArgument`](dynamo_core::ErrorKind::InvalidArgument) if the parts of `config` do
    /// not fit each other, and, where a device is to give the memory,
    /// [`Overloaded`](dynamo_core::ErrorKind::Overloaded) if there is no room and
    /// [`Unavailable`](dynamo_core::ErrorKind::Unavailable) if the device is gone: nothing else is taken
    /// in its place.
    pub fn new(
        config: ManagerConfig,
        worker: WorkerId,
        events: Box<dyn EventSink>,
    ) -> dynamo_core::Result<Self> {
        if config.tiers.host().is_some() {
            let message = "a block pool above one of host memory is made by `above`";
            return Err(dynamo_core::Error::invalid(message));
        }
        let publisher = Published::new(Publisher::new(worker, config.epoch, events));
        Self::build(config, Arc::new(publisher))
    }

    fn build(config: ManagerConfig, publisher: Arc<Published>) -> dynamo_core::Result<Self> {
        if config.blocks == 0 {
            return Err(dynamo_core::Error::invalid("a block pool of 0 blocks"));
        }
        let is_device = matches!(config.memory, BlockMemory::Device(_));
        config.tiers.check(is_device)?;
        if is_device && config.zero_on_allocate {
            let message = "zero_on_allocate for a block pool of device memory";
            return Err(dynamo_core::Error::invalid(message));
        }
        let (layout, has_tiers) = (config.layout, !config.tiers.tiers.is_empty());
        let spares = if has_tiers { config.tiers.queue_blocks } else { 0 };
        let slots = config.blocks.checked_add(spares);
        let slots = slots.filter(|slots| layout.block_bytes().checked_mul(*slots).is_some());
        let slots = slots.filter(|_| u32::try_from(config.blocks).is_ok()).ok_or_else(|| {
            dynamo_core::Error::invalid(format!("a block pool of {} blocks", config.blocks))
        })?;
        let ManagerConfig { blocks, zero_on_allocate, eviction, tiers, memory, .. } = config;
        let pool = Pool::new(PoolConfig {
            memory: Memory::allocate(memory, layout.block_bytes(), slots)?,
            slots,
            block_bytes: layout.block_bytes(),
            blocks,
            publisher,
            eviction,
            zero_on_allocate,
            tiers: has_tiers.then_some(tiers),
        });
        Ok(Self { pool, layout: Arc::new(layout) })
    }

    /// Returns whose blocks these are.
    pub fn worker(&self) -> WorkerId {
        self.pool.worker()
    }

    /// Returns what events call the pool's memory.
    pub fn tier(&self) -> Tier {
        self.pool.tier()
    }

    /// Returns how every block lies.
    pub fn layout(&self) -> &RankLayout {
        &self.layout
    }

    /// Allocates `count` blocks, or none.
    ///
    /// Evicts cached blocks where free ones do not suffice. The blocks may hold old bytes unless
    /// [`ManagerConfig::with_zero_on_allocate`] is set.
    pub fn allocate(&self, count: usize) -> Result<Vec<MutableBlock>, AllocateError> {
        self.pool.allocate(count)
    }

    /// Returns the longest run of `keys`, from the first on, that is held here.
    ///
    /// `keys` are those of one sequence: the run ends where a key does not follow the one before. The
    /// blocks stay as they are while the run lives.
    pub fn match_prefix(&self, keys: &[BlockKey]) -> BlockRun {
        self.pool.match_prefix(keys)
    }

    /// Returns what holds the blocks.
    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Makes a full block findable and shared.
    ///
    /// If its identity is held already, that block is returned and this one is freed.
    ///
    /// # Panics
    /// If the block is another manager's, or was allocated under another quota.
    pub fn register(&self, block: CompleteBlock) -> RegisteredBlock {
        let registered = self.register_all(vec![block]);
        registered.into_iter().next().expect("one block in, one block out")
    }

    /// Makes full blocks findable and shared, in order; runs are published as one event.
    ///
    /// A block registered while its parent is not stands alone: it is found again once the parent
    /// is back, and may be evicted in any order with it.
    ///
    /// # Panics
    /// If a block is another manager's, or was allocated under another quota.
    pub fn register_all(&self, blocks: Vec<CompleteBlock>) -> BlockRun {
        let Some(below) = self.pool.below() else { return self.pool.register(blocks) };
        let keys: Vec<_> = blocks.iter().map(|block| *block.key()).collect();
        let registered = self.pool.register(blocks);
        below.write_through(None, &keys, &registered);
        registered
    }

    /// Returns the longest run of `keys`, from the first on, that is held here or in a tier below,
    /// which is loaded first, as far as that is worth it and comes in time; without tiers it is
    /// [`match_prefix`](Self::match_prefix).
    ///
    /// A block that a tier fails to give ends the run. What another call is loading is not loaded
    /// twice. Loading takes blocks of the pool, and evicts others for it.
    ///
    /// # Cancel safety
    /// If it is dropped, what was loaded by then is cached; targets of what was not are free when
    /// nothing writes to them any more.
    pub async fn acquire(&self, keys: &[BlockKey]) -> Acquired {
        self.pool.acquire(keys).await
    }

    /// Returns how long an [`acquire`](Self::acquire) may take, if there are tiers.
    pub(crate) fn acquire_timeout(&self) -> Option<Duration> {
        self.pool.below().map(Below::acquire_timeout)
    }

    /// Returns how many of the first keys [`acquire`](Self::acquire) would probably find, without
    /// loading any. To be asked for is no use of a block: what is in memory is evicted no later for it.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn probe(&self, keys: &[BlockKey]) -> usize {
        match self.pool.below() {
            Some(below) => below.probe(&self.pool, keys).await,
            None => self.pool.count_prefix(keys),
        }
    }

    /// Has the blocks of `keys` loaded in the background, as by [`acquire`](Self::acquire), and left
    /// cached; `false` if too many wait already, or there are no tiers.
    pub fn prefetch(&self, keys: Vec<BlockKey>) -> bool {
        self.pool.below().is_some_and(|below| below.prefetch(&self.pool, keys))
    }

    /// Allocates like [`allocate`](Self::allocate), but waits while blocks that have to go down have
    /// no room in the queue, no longer than
    /// [`reserve_timeout`](crate::TiersConfig::reserve_timeout).
    ///
    /// # Cancel safety
    /// Cancel safe: what was allocated by then is free again.
    pub async fn reserve(&self, count: usize) -> Result<Vec<MutableBlock>, AllocateError> {
        match self.pool.below() {
            Some(below) => below.reserve(&self.pool, count).await,
            None => self.allocate(count),
        }
    }

    /// Returns what is in the tiers below and on its way there; `None` if there are none.
    pub fn tiers(&self) -> Option<TiersStats> {
        self.pool.below().map(Below::stats)
    }

    /// Writes what is on its way down, then shuts the tiers down; without tiers it does nothing.
    ///
    /// Fails with [`DeadlineExceeded`](dynamo_core::ErrorKind::DeadlineExceeded) if that takes longer
    /// than `within`. What is evicted later is lost.
    ///
    /// # Cancel safety
    /// Cancel safe, and may be called again.
    pub async fn shutdown(&self, within: Duration) -> dynamo_core::Result<()> {
        match self.pool.below() {
            Some(below) => below.shutdown(within).await,
            None => Ok(()),
        }
    }

    /// Evicts every cached block from memory; tiers keep theirs.
    pub fn clear(&self) {
        self.pool.clear();
    }

    /// Returns how many blocks are in which state.
    pub fn stats(&self) -> PoolStats {
        self.pool.stats()
    }

    /// Returns everything that is registered, under whatever quota, here and in the tiers below, for a
    /// listener that lost events.
    pub fn snapshot(&self) -> Snapshot {
        self.pool.snapshot()
    }
}

impl fmt::Debug for BlockManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockManager")
            .field("layout", &self.layout)
            .field("stats", &self.stats())
            .finish()
    }
}

#[cfg(test)]
mod tests;
