use crate::below::TiersConfig;
use crate::evict::{Eviction, EvictionFactory};
use crate::layout::RankLayout;
use crate::pool::BlockMemory;

/// How a block manager is built.
#[derive(Debug)]
pub struct ManagerConfig {
    pub(super) layout: RankLayout,
    pub(super) blocks: usize,
    pub(super) epoch: u64,
    pub(super) zero_on_allocate: bool,
    pub(super) eviction: EvictionFactory,
    pub(super) tiers: TiersConfig,
    pub(super) memory: BlockMemory,
}

impl ManagerConfig {
    /// Describes a pool of `blocks` blocks of `layout`, evicted least recently used first.
    ///
    /// A worker that has a part of a model says which by a [`RankLayout`]; a
    /// [`BlockLayout`](crate::BlockLayout) is that of a worker that has all of it.
    pub fn new(layout: impl Into<RankLayout>, blocks: usize) -> Self {
        let layout = layout.into();
        let (eviction, tiers) = (EvictionFactory::default(), TiersConfig::default());
        let memory = BlockMemory::default();
        Self { layout, blocks, epoch: 1, zero_on_allocate: false, eviction, tiers, memory }
    }

    /// Says where the blocks lie, and the spare slots of tiers with them.
    #[must_use]
    pub fn with_memory(mut self, memory: BlockMemory) -> Self {
        self.memory = memory;
        self
    }

    /// Publishes events in `epoch`; a restarted worker takes a larger one than before.
    #[must_use]
    pub fn with_epoch(mut self, epoch: u64) -> Self {
        self.epoch = epoch;
        self
    }

    /// Overwrites a block's old bytes with zeros before it is handed out; host memory only.
    #[must_use]
    pub fn with_zero_on_allocate(mut self, zero: bool) -> Self {
        self.zero_on_allocate = zero;
        self
    }

    /// Puts tiers below the pool: then the manager is built within a tokio runtime, has tasks of its
    /// own, and is ended by [`BlockManager::shutdown`](crate::BlockManager::shutdown).
    #[must_use]
    pub fn with_tiers(mut self, tiers: TiersConfig) -> Self {
        self.tiers = tiers;
        self
    }

    /// Chooses the victims by policies that `eviction` makes, one for each shard of the pool and each
    /// [priority](crate::evict::RetentionPriority) in use.
    #[must_use]
    pub fn with_eviction<E: Eviction>(
        mut self,
        eviction: impl Fn() -> E + Send + Sync + 'static,
    ) -> Self {
        self.eviction = EvictionFactory::new(eviction);
        self
    }
}
