use std::sync::Arc;
use std::time::Duration;

use crate::evict::BlockCost;
use crate::manager::BlockManager;
use crate::tier::{HostTier, Tier};
use crate::time::TIME_MAX;

/// When a block goes down to a tier that does not have it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Offload {
    /// As it is evicted.
    #[default]
    OnEviction,
    /// As it is registered, and it is held until it is there, which
    /// [`reserve`](crate::BlockManager::reserve) waits for; as it is evicted, if the queue was full
    /// then.
    WriteThrough,
    /// As it is evicted, if it was found so often since it was registered.
    AfterUses(u32),
}

impl Offload {
    /// Tells whether a block that was found so often goes down as it is evicted.
    pub(super) fn takes_evicted(self, uses: u32) -> bool {
        match self {
            Self::OnEviction | Self::WriteThrough => true,
            Self::AfterUses(wanted) => uses >= wanted,
        }
    }
}

/// A tier below a manager's memory, and what it is for.
#[derive(Debug, Clone)]
pub struct TierConfig {
    pub(super) tier: Arc<dyn Tier>,
    pub(super) offload: Offload,
    pub(super) is_exclusive: bool,
    /// What the tier is, if that is a pool of host memory.
    pub(super) host: Option<BlockManager>,
}

impl TierConfig {
    /// Describes a tier that gets blocks as they are evicted, and keeps those that come up again.
    pub fn new(tier: Arc<dyn Tier>) -> Self {
        Self { tier, offload: Offload::default(), is_exclusive: false, host: None }
    }

    /// Describes the blocks of `manager`, which lie in host memory, as the tier below a pool of device
    /// memory; see [`BlockManager::above`].
    ///
    /// What is evicted from device memory is copied into blocks of `manager`, and what comes up is copied
    /// from there, wherever it had to come from: whatever tiers `manager` has are below both, with
    /// offload and costs of their own. Bytes in memory are trusted, as among those who share a pool; what
    /// comes from tiers below is verified there.
    pub fn host(manager: BlockManager) -> Self {
        let tier = Arc::new(HostTier::new(manager.clone()));
        Self { host: Some(manager), ..Self::new(tier) }
    }

    /// Says when blocks go down.
    #[must_use]
    pub fn with_offload(mut self, offload: Offload) -> Self {
        self.offload = offload;
        self
    }

    /// Has a block that comes up removed below, so that the two hold more between them; it is written
    /// again when it is evicted, which is why that must be what it goes down by. A tier of
    /// [`host`](Self::host) memory cannot be exclusive: its blocks are there for others too.
    #[must_use]
    pub fn with_exclusive(mut self, is_exclusive: bool) -> Self {
        self.is_exclusive = is_exclusive;
        self
    }
}

/// The tiers below a manager's memory; the default is none.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TiersConfig {
    /// The tiers, fastest first: at most [`TiersConfig::TIERS_MAX`].
    pub tiers: Vec<TierConfig>,
    /// Slots beside the pool's, for blocks on their way down. Each tier's queue is twice as long: so many
    /// places for those blocks, and as many again for blocks that are written through.
    pub queue_blocks: usize,
    /// What it costs to compute a block: one that is dearer to load is not loaded. Without, whatever is
    /// found is loaded.
    pub recompute: Option<BlockCost>,
    /// How long an acquire waits for tiers: what has not come by then is computed.
    pub acquire_timeout: Duration,
    /// How long a reserve waits for spare slots: then blocks are evicted without going down.
    pub reserve_timeout: Duration,
    /// Prefetches that wait.
    pub prefetches: usize,
}

impl Default for TiersConfig {
    fn default() -> Self {
        Self {
            tiers: Vec::new(),
            queue_blocks: QUEUE_BLOCKS,
            recompute: None,
            acquire_timeout: ACQUIRE_TIMEOUT,
            reserve_timeout: RESERVE_TIMEOUT,
            prefetches: PREFETCHES,
        }
    }
}

impl TiersConfig {
    /// Tiers that a manager can tell apart.
    pub const TIERS_MAX: usize = 8;

    /// Adds a tier below those before it.
    #[must_use]
    pub fn with_tier(mut self, tier: TierConfig) -> Self {
        self.tiers.push(tier);
        self
    }

    /// Limits the blocks that are on their way down.
    #[must_use]
    pub fn with_queue_blocks(mut self, queue_blocks: usize) -> Self {
        self.queue_blocks = queue_blocks;
        self
    }

    /// Says what it costs to compute a block.
    #[must_use]
    pub fn with_recompute(mut self, recompute: BlockCost) -> Self {
        self.recompute = Some(recompute);
        self
    }

    /// Bounds the wait of an acquire.
    #[must_use]
    pub fn with_acquire_timeout(mut self, acquire_timeout: Duration) -> Self {
        self.acquire_timeout = acquire_timeout;
        self
    }

    /// Bounds the wait of a reserve.
    #[must_use]
    pub fn with_reserve_timeout(mut self, reserve_timeout: Duration) -> Self {
        self.reserve_timeout = reserve_timeout;
        self
    }

    /// Limits the prefetches that wait.
    #[must_use]
    pub fn with_prefetches(mut self, prefetches: usize) -> Self {
        self.prefetches = prefetches;
        self
    }

    /// Returns the pool of host memory among them.
    pub(crate) fn host(&self) -> Option<&BlockManager> {
        self.tiers.iter().find_map(|tier| tier.host.as_ref())
    }

    /// Checks what the types leave open; `is_device` says whether the pool above is in device memory.
    pub(crate) fn check(&self, is_device: bool) -> dynamo_core::Result<()> {
        let invalid = |what: String| Err(dynamo_core::Error::invalid(what));
        if self.tiers.len() > Self::TIERS_MAX {
            return invalid(format!("{} tiers below a block pool", self.tiers.len()));
        }
        let times = [("acquire", self.acquire_timeout), ("reserve", self.reserve_timeout)];
        if let Some((name, time)) = times.into_iter().find(|(_, time)| *time > TIME_MAX) {
            return invalid(format!("{name}_timeout of {time:?}"));
        }
        if !self.tiers.is_empty() && self.queue_blocks == 0 {
            return invalid("tiers with a queue of 0 blocks on their way down".into());
        }
        if is_device && self.tiers.len() > 1 {
            return invalid("more than one tier below a block pool of device memory".into());
        }
        for TierConfig { tier, offload, is_exclusive, host } in &self.tiers {
            let kind = tier.kind();
            if *is_exclusive && (*offload != Offload::OnEviction || host.is_some()) {
                return invalid(format!("an exclusive {kind:?} tier that offloads by {offload:?}"));
            }
            if is_device != host.is_some() {
                let pool = if is_device { "device" } else { "host" };
                return invalid(format!("a {kind:?} tier below a block pool of {pool} memory"));
            }
        }
        if !self.tiers.is_empty() && tokio::runtime::Handle::try_current().is_err() {
            return invalid("tiers below a block pool, outside of a tokio runtime".into());
        }
        Ok(())
    }
}

/// Two batches to a tier: one that is written while the other fills.
const QUEUE_BLOCKS: usize = 2 * super::level::BATCH_BLOCKS;

/// What a user waits for a first token anyway.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

const RESERVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Requests that a worker is about to get.
const PREFETCHES: usize = 64;
