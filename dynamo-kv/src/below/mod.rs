//! What a manager does with the tiers below its memory: blocks go down, are found there, and come up.
//!
//! ```text
//! allocate ─► victim ─► Outbox: its slot waits, a spare one takes its place ─┐
//! register ─► guard, to tiers that are written through ─────────────────────┴► Level ─► Tier::store
//! acquire  ─► host ─► Outbox ─► tiers in order: match, plan, claim ─► Tier::load ─► register
//! tiers    ─► Catalog: what is where ─► events, snapshots
//! ```
//!
//! Locks are taken in this order: a shard of the pool, or a tier's own; catalog; publisher. The outbox
//! has one that is taken last. A pool of device memory takes its own before those of the pool of host
//! memory below it, which knows nothing of the one above.

mod acquire;
mod catalog;
mod claims;
mod config;
mod level;
mod outbox;
mod plan;
mod prefetch;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

use dynamo_core::time::{Clock, SystemClock};
use dynamo_core::{Error, ErrorKind, protocol};
use dynamo_transfer::{Slot, SlotList};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use acquire::Otherwise;
pub use acquire::{Acquired, Sources};
pub(crate) use catalog::Catalog;
pub use config::{Offload, TierConfig, TiersConfig};
pub(crate) use outbox::{Leaving, Offered};

use crate::block::{BlockRun, MutableBlock};
use crate::evict::BlockCost;
use crate::identity::BlockKey;
use crate::manager::{AllocateError, BlockManager};
use crate::pool::{Home, Pool, Published, Victim};
use crate::tier::{Outgoing, Tier, TierStats};
use crate::time::TIME_MAX;
use claims::Claims;
use level::Level;
use outbox::Outbox;

/// The tiers of a manager, and what is on its way to and from them.
pub(crate) struct Below {
    levels: Vec<Level>,
    outbox: Arc<Outbox>,
    catalog: Arc<Catalog>,
    claims: Claims,
    prefetches: mpsc::Sender<prefetch::Wanted>,
    recompute: Option<BlockCost>,
    acquire_timeout: Duration,
    reserve_timeout: Duration,
    /// The turn of those who wait for slots, one after the other.
    reserving: Semaphore,
    merged_total: AtomicU64,
    /// Blocks that were loaded ahead of their use.
    prefetched_total: Arc<AtomicU64>,
    prefetches_refused_total: AtomicU64,
    tasks: TaskTracker,
    /// Nothing is queued any more.
    closing: CancellationToken,
    /// Whatever still runs is given up.
    ended: CancellationToken,
}

/// What is below a manager's memory, tier by tier, and what happened so far.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TiersStats {
    /// The tiers in their order.
    pub tiers: Vec<TierReport>,
    /// Spare slots: those that are missing hold blocks that are on their way down.
    pub spares: usize,
    /// How often an acquire waited for blocks that another one was loading.
    pub merged_total: u64,
    /// Blocks that were loaded by [`prefetch`](crate::BlockManager::prefetch).
    pub prefetched_total: u64,
    /// Prefetches that found the queue full, or the tiers shut down.
    pub prefetches_refused_total: u64,
}

/// One tier of [`TiersStats`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TierReport {
    /// What events call it.
    pub kind: protocol::Tier,
    /// What the tier says of itself.
    pub stats: TierStats,
    /// Blocks that wait for the tier.
    pub queued: usize,
    /// Blocks that should have gone to the tier and were evicted without: nothing was spare.
    pub offload_dropped_total: u64,
}

/// What the tasks of a [`Below`] begin with.
pub(crate) struct Work {
    levels: Vec<level::Work>,
    prefetches: mpsc::Receiver<prefetch::Wanted>,
}

impl Below {
    /// Connects the tiers; tasks begin with [`start`](Self::start).
    pub(crate) fn new(
        config: TiersConfig,
        spares: SlotList<Home>,
        publisher: Arc<Published>,
    ) -> (Self, Work) {
        let TiersConfig { tiers, queue_blocks, recompute, .. } = config;
        let kinds = tiers.iter().map(|tier| tier.tier.kind()).collect();
        let catalog = Arc::new(Catalog::new(kinds, publisher));
        let (mut levels, mut work) = (Vec::new(), Vec::new());
        for (number, tier) in tiers.into_iter().enumerate() {
            catalog.watch(number, &tier.tier);
            let (level, its_work) = Level::new(tier, queue_blocks);
            levels.push(level);
            work.push(its_work);
        }
        let (prefetches, receiver) = mpsc::channel(config.prefetches.max(1));
        let below = Self {
            levels,
            outbox: Outbox::new(spares),
            catalog,
            claims: Claims::default(),
            prefetches,
            recompute,
            acquire_timeout: config.acquire_timeout,
            reserve_timeout: config.reserve_timeout,
            reserving: Semaphore::new(1),
            merged_total: AtomicU64::new(0),
            prefetched_total: Arc::default(),
            prefetches_refused_total: AtomicU64::new(0),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
            ended: CancellationToken::new(),
        };
        (below, Work { levels: work, prefetches: receiver })
    }

    /// Starts the tasks, within a runtime; they end when the pool is dropped, or at a shutdown.
    pub(crate) fn start(&self, work: Work) {
        for level in work.levels {
            let (closing, ended) = (self.closing.clone(), self.ended.clone());
            self.tasks.spawn(async move { ended.run_until_cancelled(level.run(closing)).await });
        }
        let (prefetching, closing) = (
            prefetch::run(work.prefetches, Arc::clone(&self.prefetched_total)),
            self.closing.clone(),
        );
        self.tasks.spawn(async move { closing.run_until_cancelled(prefetching).await });
    }

    /// Returns the pool of host memory below one of device memory.
    pub(crate) fn host(&self) -> Option<&BlockManager> {
        self.levels.iter().find_map(Level::host)
    }

    pub(crate) fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Takes a block that is evicted on its way to the tiers that want it; returns a slot in place of
    /// its own. Called under the lock of its shard.
    pub(crate) fn leave(&self, victim: Victim, slot: Slot<Home>) -> Slot<Home> {
        let Victim { key, uses } = victim;
        let there = self.catalog.levels(&key.identity);
        let wants = |(number, level): &(usize, &Level)| {
            there & (1 << number) == 0
                && level.offload().takes_evicted(uses)
                && !level.has_in_host(&key)
        };
        let mut wanted =
            self.levels.iter().enumerate().filter(wants).map(|(_, level)| level).peekable();
        if wanted.peek().is_none() {
            return slot;
        }
        match self.outbox.exchange(key.identity, slot) {
            Ok((spare, leaving)) => {
                wanted.for_each(|level| level.push(key, Outgoing::leaving(&leaving)));
                spare
            }
            Err(slot) => {
                wanted.for_each(Level::count_dropped);
                slot
            }
        }
    }

    /// Sends blocks that were registered to tiers that are written through, but for the one they came
    /// `from`.
    ///
    /// What there is no room for in a queue goes when it is evicted.
    pub(crate) fn write_through(&self, from: Option<usize>, keys: &[BlockKey], blocks: &BlockRun) {
        for (number, level) in self.levels.iter().enumerate() {
            if level.offload() != Offload::WriteThrough || from == Some(number) {
                continue;
            }
            for (key, block) in keys.iter().zip(blocks.clone()) {
                let there = self.catalog.levels(&key.identity) & (1 << number) != 0;
                if !there && !level.has_in_host(key) {
                    level.offer(key, || self.outbox.hold(block));
                }
            }
        }
    }

    /// Allocates blocks, and waits while what has to go has no spare slot to leave by, or is held on its
    /// way down.
    pub(crate) async fn reserve(
        &self,
        pool: &Pool,
        count: usize,
    ) -> Result<Vec<MutableBlock>, AllocateError> {
        if count == 0 {
            // Without waiting for those who want some.
            return Ok(Vec::new());
        }
        let deadline = Instant::now() + self.reserve_timeout;
        let turn = tokio::time::timeout_at(deadline, self.reserving.acquire()).await;
        // What is freed is seen below, or that it is waited for is seen by `freed`.
        fence(Ordering::SeqCst);
        let mut blocks = Vec::with_capacity(count);
        while blocks.len() < count {
            let left = count - blocks.len();
            let lacks = |error| AllocateError { requested: count, ..error };
            let is_late = turn.is_err() || Instant::now() >= deadline;
            // Asked first: what is let go behind this has a wake-up kept for it.
            let is_held = self.outbox.held() > 0;
            match pool.check(left) {
                Err(_) if is_held && !is_late => {
                    // Late or not is seen above.
                    let _ = tokio::time::timeout_at(deadline, self.outbox.returned()).await;
                    continue;
                }
                checked => checked.map_err(lacks)?,
            }
            let step = left.min(pool.free_count() + self.outbox.spares());
            let step = if is_late { left } else { step };
            if step == 0 {
                // Late or not is seen above.
                let _ = tokio::time::timeout_at(deadline, self.outbox.returned()).await;
                continue;
            }
            blocks.extend(pool.allocate(step).map_err(lacks)?);
        }
        Ok(blocks)
    }

    /// Takes note that slots of the pool are free, or that a quota has room for them.
    pub(crate) fn freed(&self) {
        fence(Ordering::SeqCst);
        if self.reserving.available_permits() == 0 {
            self.outbox.say_returned();
        }
    }

    pub(crate) fn acquire_timeout(&self) -> Duration {
        self.acquire_timeout
    }

    /// Puts keys in the queue of those to be loaded; `false` if that is full.
    pub(crate) fn prefetch(&self, pool: &Arc<Pool>, keys: Vec<BlockKey>) -> bool {
        let wanted = (Arc::downgrade(pool), keys);
        let is_taken = !self.closing.is_cancelled() && self.prefetches.try_send(wanted).is_ok();
        if !is_taken {
            self.prefetches_refused_total.fetch_add(1, Ordering::Relaxed);
        }
        is_taken
    }

    pub(crate) fn stats(&self) -> TiersStats {
        TiersStats {
            tiers: self.levels.iter().map(Level::report).collect(),
            spares: self.outbox.spares(),
            merged_total: self.merged_total.load(Ordering::Relaxed),
            prefetched_total: self.prefetched_total.load(Ordering::Relaxed),
            prefetches_refused_total: self.prefetches_refused_total.load(Ordering::Relaxed),
        }
    }

    /// Writes what is queued, ends the tasks and shuts the tiers down.
    pub(crate) async fn shutdown(&self, within: Duration) -> dynamo_core::Result<()> {
        let until = Instant::from_std(SystemClock.now()) + within.min(TIME_MAX);
        self.closing.cancel();
        self.tasks.close();
        let drained = tokio::time::timeout_at(until, self.tasks.wait()).await;
        self.ended.cancel();
        self.tasks.wait().await;
        let mut outcome = drained.map_err(|_| {
            Error::new(ErrorKind::DeadlineExceeded, "blocks were still on their way to a tier")
        });
        for level in &self.levels {
            let left = until.saturating_duration_since(Instant::now());
            outcome = outcome.and(level.tier().shutdown(left).await);
        }
        outcome
    }
}

impl Below {
    fn tier(&self, level: usize) -> &dyn Tier {
        self.levels[level].tier()
    }

    /// Returns the tiers in their order.
    pub(crate) fn tiers(&self) -> impl Iterator<Item = &dyn Tier> {
        self.levels.iter().map(Level::tier)
    }

    /// Returns a bit for each tier that has a block.
    pub(crate) fn levels(&self, key: &BlockKey) -> u8 {
        self.catalog.levels(&key.identity)
    }
}
