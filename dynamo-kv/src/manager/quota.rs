use std::sync::Arc;

use std::fmt;

use super::BlockManager;

/// There are not enough blocks: nothing was allocated.
///
/// Nothing was evicted either, unless another thread took at the same time what there was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{requested} blocks requested, {available} of the {limit}'s {capacity} are free or evictable"
)]
pub struct AllocateError {
    /// Blocks asked for.
    pub requested: usize,
    /// Blocks that are free or cached.
    pub available: usize,
    /// Blocks in all.
    pub capacity: usize,
    /// Whose blocks those are.
    pub limit: Limit,
}

/// What has too few blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// The whole manager, whoever has its blocks.
    Pool,
    /// The quota that was asked for them ([`BlockManager::with_quota`]).
    Quota,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pool => "pool",
            Self::Quota => "quota",
        })
    }
}

impl BlockManager {
    /// Returns a manager of the same memory whose blocks, of all states together, are never more than
    /// `blocks`: what one tenant has.
    ///
    /// It has the same layout, tiers and events. What differs:
    /// - [`allocate`](Self::allocate) evicts its own cached blocks where it would have more, and fails with
    ///   [`Limit::Quota`] if too few can be evicted.
    /// - It finds what was registered through it (or a clone of it) and nothing else, and registers what was
    ///   allocated through it. So whatever has one cache namespace goes through one manager: the same block
    ///   registered through two would be two, and events would tell of both by one name.
    /// - [`stats`](Self::stats) counts its blocks, of as many as the quota. Those of the manager it was made
    ///   of, and [`clear`](Self::clear), go for all blocks; [`tiers`](Self::tiers),
    ///   [`snapshot`](Self::snapshot) and [`shutdown`](Self::shutdown) are those of the whole wherever they
    ///   are asked for.
    /// - When it is dropped, with all clones and all guards, its cached blocks are evicted.
    ///
    /// A quota is a limit and no reservation: quotas may add up to more than there is, and where the pool is
    /// full the next victim is chosen among the cached blocks of all. What it costs: shards of its own, of
    /// which an allocation that evicts looks at all, and 4 bytes for each block of the pool, once for all
    /// quotas.
    ///
    /// Fails with [`InvalidArgument`](dynamo_core::ErrorKind::InvalidArgument) for no blocks, for more than
    /// there are, and for a quota of a quota; with [`Overloaded`](dynamo_core::ErrorKind::Overloaded) beyond
    /// 1,024 quotas.
    ///
    /// ```
    /// use dynamo_core::protocol::{BlockSize, CacheNamespace, InstanceId, WorkerId};
    /// use dynamo_kv::manager::Limit;
    /// use dynamo_kv::{BlockLayout, BlockManager, DType, ManagerConfig, TokenSequence};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let layout = BlockLayout::new(2, 1, 4, BlockSize::DEFAULT, DType::F32)?;
    /// let worker = WorkerId::new(InstanceId(1));
    /// let manager = BlockManager::new(ManagerConfig::new(layout, 8), worker, Box::new(|_event| {}))?;
    ///
    /// let acme = manager.with_quota(3)?;
    /// let namespace = CacheNamespace { tenant: "acme".into(), ..CacheNamespace::default() };
    /// let sequence = TokenSequence::new(&namespace, BlockSize::DEFAULT, &[7; 16]);
    /// let block = acme.allocate(1)?.remove(0);
    /// drop(acme.register(block.complete(sequence.keys()[0])));
    /// assert_eq!(acme.match_prefix(sequence.keys()).len(), 1);
    /// assert_eq!((acme.stats().cached, acme.stats().capacity), (1, 3));
    ///
    /// // Its cached block makes room; beyond that there is none, though the pool has some.
    /// let held = acme.allocate(3)?;
    /// assert_eq!(acme.allocate(1).unwrap_err().limit, Limit::Quota);
    /// assert_eq!(manager.stats().free, 5);
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_quota(&self, blocks: usize) -> dynamo_core::Result<Self> {
        Ok(Self { pool: self.pool.with_quota(blocks)?, layout: Arc::clone(&self.layout) })
    }
}
