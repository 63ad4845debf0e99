//! The way up.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dynamo_core::protocol;
use futures::stream::{FuturesOrdered, StreamExt};
use tokio::time::Instant;

use super::claims::Claim;
use super::plan::worth_loading;
use super::{Below, Leaving};
use crate::block::{BlockRun, CompleteBlock, MutableBlock, copy_across};
use crate::evict::BlockCost;
use crate::identity::BlockKey;
use crate::pool::Pool;
use crate::tier::Outgoing;

/// What [`BlockManager::acquire`](crate::BlockManager::acquire) found.
#[derive(Debug)]
#[non_exhaustive]
pub struct Acquired {
    /// The blocks of the first keys, ready to be read.
    pub blocks: BlockRun,
    /// Where they were.
    pub sources: Sources,
    /// The other keys: what is to be computed.
    pub compute: Range<usize>,
}

/// How many blocks came from where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sources {
    /// They were in device memory, or on their way down from it.
    pub device: usize,
    /// They were in host memory, or on their way down from it.
    pub host: usize,
    /// They were loaded from a disk.
    pub disk: usize,
    /// They were loaded from another agent or an object store.
    pub remote: usize,
}

impl Sources {
    fn of(tier: protocol::Tier, blocks: usize) -> Self {
        let mut sources = Self::default();
        sources.add(tier, blocks);
        sources
    }

    /// Returns where each block was, those of faster tiers first.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = protocol::Tier> {
        let counts = [
            (protocol::Tier::Device, self.device),
            (protocol::Tier::Host, self.host),
            (protocol::Tier::Disk, self.disk),
            (protocol::Tier::Remote, self.remote),
        ];
        counts.into_iter().flat_map(|(tier, count)| std::iter::repeat_n(tier, count))
    }

    fn add(&mut self, tier: protocol::Tier, blocks: usize) {
        match tier {
            protocol::Tier::Device => self.device += blocks,
            protocol::Tier::Disk => self.disk += blocks,
            protocol::Tier::Remote => self.remote += blocks,
            _ => self.host += blocks,
        }
    }
}

impl Acquired {
    pub(crate) fn new(keys: usize, tier: protocol::Tier, blocks: BlockRun) -> Self {
        let (sources, compute) = (Sources::of(tier, blocks.len()), blocks.len()..keys);
        Self { blocks, sources, compute }
    }

    /// Adds blocks that come next from one tier; tells whether there were any.
    fn push(&mut self, tier: protocol::Tier, blocks: BlockRun) -> bool {
        let is_any = !blocks.is_empty();
        self.push_from(&Sources::of(tier, blocks.len()), blocks);
        is_any
    }

    /// Adds blocks that come next.
    fn push_from(&mut self, sources: &Sources, blocks: BlockRun) {
        self.sources.device += sources.device;
        self.sources.host += sources.host;
        self.sources.disk += sources.disk;
        self.sources.remote += sources.remote;
        self.blocks.append(blocks);
        self.compute.start = self.blocks.len();
    }
}

/// What is done about a block that is not loaded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Otherwise {
    /// What that costs; without, any load is worth it.
    cost: Option<BlockCost>,
    /// How long loads are waited for.
    within: Duration,
}

/// Where the next blocks are.
enum Source {
    Leaving(Vec<Arc<Leaving>>),
    Tier { level: usize, count: usize },
}

impl Source {
    fn count(&self) -> usize {
        match self {
            Self::Leaving(blocks) => blocks.len(),
            Self::Tier { count, .. } => *count,
        }
    }
}

impl Below {
    /// Adds what tiers have of the keys that are not acquired, as far as it is worth it and comes in
    /// time.
    pub(crate) async fn acquire(
        &self,
        pool: &Arc<Pool>,
        keys: &[BlockKey],
        acquired: &mut Acquired,
        otherwise: Otherwise,
    ) {
        let until = Instant::now() + otherwise.within;
        let bringing = self.bring(pool, keys, acquired, (until, otherwise.cost));
        // What has come by then stands; what is under way is given up.
        let _ = tokio::time::timeout_at(until, bringing).await;
    }

    /// Blocks that are not loaded are computed.
    pub(crate) fn computed(&self) -> Otherwise {
        Otherwise { cost: self.recompute, within: self.acquire_timeout }
    }

    /// `count` blocks come by another way if they are not loaded.
    pub(crate) fn otherwise(
        &self,
        count: usize,
        per_block: Duration,
        within: Duration,
    ) -> Otherwise {
        let all = per_block.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX));
        let within = all.min(within).min(self.acquire_timeout);
        Otherwise { cost: Some(BlockCost::new(per_block.as_secs_f64(), 0.0)), within }
    }

    async fn bring(
        &self,
        pool: &Arc<Pool>,
        keys: &[BlockKey],
        acquired: &mut Acquired,
        bound: (Instant, Option<BlockCost>),
    ) {
        while let Some(rest) = keys.get(acquired.compute.start..).filter(|rest| !rest.is_empty()) {
            let Some(source) = self.source(rest).await else {
                // Perhaps it has just come up.
                if !acquired.push(pool.tier(), pool.find_prefix(rest)) {
                    return;
                }
                continue;
            };
            let rest = &rest[..source.count()];
            let claims = match self.claims.claim(rest) {
                Ok(claims) => claims,
                Err(other) => {
                    self.merged_total.fetch_add(1, Ordering::Relaxed);
                    other.ended().await;
                    acquired.push(pool.tier(), pool.find_prefix(rest));
                    continue;
                }
            };
            // Whoever had a claim before has registered what it loaded.
            let rest = &rest[..claims.len()];
            if acquired.push(pool.tier(), pool.find_prefix(rest)) {
                continue;
            }
            if !self.bring_from(source, pool, (rest, claims), bound, acquired).await {
                return;
            }
        }
    }

    /// Counts the first blocks that are in memory, leave it, or are in a tier.
    pub(crate) async fn probe(&self, pool: &Arc<Pool>, keys: &[BlockKey]) -> usize {
        let mut found = 0;
        loop {
            found += pool.count_prefix(&keys[found..]);
            if found == keys.len() {
                return found;
            }
            let Some(source) = self.source(&keys[found..]).await else { return found };
            found += source.count();
        }
    }

    /// Finds the first of the blocks, and as many behind it as are in the same place.
    async fn source(&self, keys: &[BlockKey]) -> Option<Source> {
        let leaving: Vec<_> =
            keys.iter().map_while(|key| self.outbox.find(&key.identity)).collect();
        if !leaving.is_empty() {
            return Some(Source::Leaving(leaving));
        }
        for level in 0..self.levels.len() {
            let count = self.tier(level).match_prefix(keys).await.min(keys.len());
            if count > 0 {
                return Some(Source::Tier { level, count });
            }
        }
        None
    }

    /// Brings the blocks of one source; tells whether all came, so that there may be more.
    async fn bring_from<'a>(
        &'a self,
        source: Source,
        pool: &Arc<Pool>,
        (keys, mut claims): (&[BlockKey], Vec<Claim<'a>>),
        (until, cost): (Instant, Option<BlockCost>),
        acquired: &mut Acquired,
    ) -> bool {
        let (level, count) = match source {
            Source::Leaving(leaving) => {
                return self.copy(leaving, pool, keys, acquired).await;
            }
            Source::Tier { level, .. } => (level, keys.len()),
        };
        let (tier, depth) = (self.tier(level), keys[0].position);
        let left = until.saturating_duration_since(Instant::now());
        let load = |blocks| tier.estimate(blocks);
        let planned = worth_loading(count, depth, left, cost.as_ref(), load);
        claims.truncate(planned);
        let mut waves = keys[..planned].chunks(WAVE_BLOCKS);
        let (mut loads, mut claims, mut came) = (FuturesOrdered::new(), claims.into_iter(), 0);
        loop {
            while loads.len() < WAVES
                && let Some(wave) = waves.next()
            {
                loads.push_back(self.load(level, pool, wave));
            }
            let Some((wave, sources, blocks)) = loads.next().await else { break };
            let loaded = &wave[..blocks.len()];
            let blocks = pool.register(blocks);
            self.write_through(Some(level), loaded, &blocks);
            acquired.push_from(&sources, blocks);
            // Whoever waits for them finds them now.
            claims.by_ref().take(loaded.len()).for_each(drop);
            came += loaded.len();
            if loaded.len() < wave.len() {
                break;
            }
        }
        drop(loads);
        self.drop_below(level, &keys[..came]).await;
        came == count
    }

    /// Removes blocks that came up from a tier that is exclusive.
    async fn drop_below(&self, level: usize, keys: &[BlockKey]) {
        let level = &self.levels[level];
        if level.is_exclusive()
            && let Err(error) = level.tier().remove(keys).await
        {
            tracing::debug!(%error, tier = ?level.tier().kind(), "blocks that came up stay below");
        }
    }

    /// Loads the first of the blocks, up to one that is missed or has no room.
    async fn load<'a>(
        &self,
        level: usize,
        pool: &Arc<Pool>,
        keys: &'a [BlockKey],
    ) -> (&'a [BlockKey], Sources, Vec<CompleteBlock>) {
        let room = pool.reserve_up_to(keys.len()).await;
        let targets = keys.iter().copied().zip(room).collect();
        let (tier, mut sources) = (self.tier(level), Sources::default());
        let outcomes = tier.load(targets).await;
        let hits = outcomes.into_iter().zip(keys).map_while(|(outcome, key)| match outcome {
            Ok(loaded) => {
                let source = loaded.source().unwrap_or_else(|| tier.kind());
                let block = loaded.complete_as(key)?;
                sources.add(source, 1);
                Some(block)
            }
            Err(miss) => {
                tracing::debug!(reason = %miss.reason, "a block that was to come up does not");
                None
            }
        });
        let blocks = hits.collect();
        (keys, sources, blocks)
    }

    /// Copies the first of blocks that have not gone, as many as there is room for; tells whether there
    /// may be more.
    async fn copy(
        &self,
        mut leaving: Vec<Arc<Leaving>>,
        pool: &Arc<Pool>,
        keys: &[BlockKey],
        acquired: &mut Acquired,
    ) -> bool {
        // Room beyond that would cost blocks that have no spare slot to leave by.
        let ready = pool.free_count() + self.outbox.spares();
        if ready == 0 {
            // Not while these are held: the next slot to be spare may be one of theirs.
            drop(leaving);
            let is_room = !pool.reserve_up_to(keys.len()).await.is_empty();
            return is_room;
        }
        let targets = pool.allocate_up_to(keys.len().min(ready));
        leaving.truncate(targets.len());
        let sources = leaving.iter().map(Outgoing::leaving).collect();
        let copied = match pool.tier() {
            protocol::Tier::Device => copy_across(sources, targets).await,
            _ => sources.iter().zip(targets).map(|(source, target)| fill(target, source)).collect(),
        };
        let is_any = !copied.is_empty();
        let blocks = copied.into_iter().zip(keys).map(|(block, key)| block.complete(*key));
        acquired.push(pool.tier(), pool.register(blocks.collect()));
        is_any
    }
}

fn fill(mut target: MutableBlock, source: &Outgoing) -> MutableBlock {
    target.copy_from_slice(source.as_ref());
    target
}

/// Loaded by one call, and registered before the next but one is loaded.
const WAVE_BLOCKS: usize = 64;

/// While one wave is registered the next is read.
const WAVES: usize = 2;
