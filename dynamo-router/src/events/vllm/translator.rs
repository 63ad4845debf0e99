//! From an engine's events to the router's; pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use dynamo_core::protocol::{CacheNamespace, KvChange, KvCursor, KvEvent, WorkerId};

use super::batch::{Batch, Event, Group, Stored};
use super::cache::EngineCache;
use super::changes::Changes;
use super::config::VllmConfig;
use super::held::Held;
use super::problem::{Problem, VllmStats};

/// Translates what one publisher says, in its order, to the words and hashes of the router.
///
/// An engine hashes blocks in a way of its own, which differs by version and setting. So the hashes
/// are taken for names: the router's are computed from the tokens, and chained by what the names
/// stand for. What cannot be placed for sure is left out and counted ([`Problem`]).
///
/// The events that come out are numbered without a hole, rank by rank. Memory grows with the blocks
/// that the engine holds, and is given back with them.
#[derive(Debug)]
pub struct Translator {
    config: VllmConfig,
    epoch: u64,
    ranks: BTreeMap<u32, Rank>,
    /// The namespace of each adapter seen, the empty one included.
    namespaces: HashMap<String, Arc<CacheNamespace>>,
    stats: VllmStats,
}

/// One data-parallel rank of the engine.
#[derive(Debug)]
struct Rank {
    worker: WorkerId,
    /// The number of the next event.
    next: u64,
    cache: EngineCache,
    /// The one group of layers whose blocks are followed, once there is one.
    group: Option<u32>,
}

impl Translator {
    /// Knows nothing yet.
    pub fn new(config: VllmConfig) -> Self {
        let epoch = config.epoch;
        let (ranks, namespaces) = (BTreeMap::new(), HashMap::new());
        Self { config, epoch, ranks, namespaces, stats: VllmStats::default() }
    }

    /// Takes in what the publisher said next; calls `sink` with what that means to the router.
    pub fn apply(&mut self, batch: &Batch, sink: &mut impl FnMut(KvEvent)) {
        let number = batch.rank.unwrap_or(self.config.rank);
        if !self.ranks.contains_key(&number) && self.ranks.len() >= RANKS_MAX {
            return self.note(Problem::TooManyRanks { limit: RANKS_MAX });
        }
        let mut rank = self.ranks.remove(&number).unwrap_or_else(|| self.rank(number));
        self.stats.messages += 1;
        for event in &batch.events {
            self.stats.events += 1;
            self.take_in(event, &mut rank, sink);
        }
        self.ranks.insert(number, rank);
    }

    /// Forgets all ranks, because what happened to them may be lost.
    pub fn forget(&mut self, sink: &mut impl FnMut(KvEvent)) {
        for rank in self.ranks.values_mut() {
            rank.clear(self.epoch, sink);
        }
    }

    /// Forgets all ranks, because the publisher has restarted.
    pub fn restart(&mut self, sink: &mut impl FnMut(KvEvent)) {
        self.epoch += 1;
        for rank in self.ranks.values_mut() {
            rank.next = 0;
            rank.clear(self.epoch, sink);
        }
    }

    /// Tells of everything anew, in a new epoch, for who has forgotten it.
    pub fn retell(&mut self, sink: &mut impl FnMut(KvEvent)) {
        self.epoch += 1;
        for rank in self.ranks.values_mut() {
            rank.next = 0;
            rank.tell(self.epoch, [KvChange::AllBlocksCleared], sink);
            let mut changes = Vec::new();
            for (before, block, tier) in rank.cache.held().in_order() {
                KvChange::push_stored(&mut changes, before, &[block], tier);
            }
            rank.tell(self.epoch, changes, sink);
        }
    }

    /// Returns what came of the publisher so far.
    pub fn stats(&self) -> &VllmStats {
        &self.stats
    }

    /// Returns the workers that anything was heard of.
    pub(super) fn workers(&self) -> impl Iterator<Item = WorkerId> + '_ {
        self.ranks.values().map(|rank| rank.worker)
    }

    /// Returns how far the events of a worker were told; `None` if nobody said that it is one of this
    /// publisher's.
    pub(super) fn cursor(&self, worker: WorkerId) -> Option<KvCursor> {
        let is_ours = worker.instance == self.config.instance;
        let next = match self.ranks.get(&worker.rank) {
            _ if !is_ours => return None,
            Some(rank) => rank.next,
            None if worker.rank == self.config.rank => 0,
            None => return None,
        };
        Some(KvCursor { epoch: self.epoch, next })
    }

    /// Returns what a worker holds, and behind which of its events.
    pub(super) fn held(&self, worker: WorkerId) -> Option<(KvCursor, Held)> {
        let held = self.ranks.get(&worker.rank).map(|rank| rank.cache.held());
        Some((self.cursor(worker)?, held.unwrap_or_default()))
    }

    /// Returns how many of the engine's blocks are known.
    #[cfg(test)]
    pub(super) fn known_blocks(&self) -> usize {
        self.ranks.values().map(|rank| rank.cache.len()).sum()
    }

    pub(super) fn stats_mut(&mut self) -> &mut VllmStats {
        &mut self.stats
    }

    /// Counts a problem.
    pub(super) fn note(&mut self, problem: Problem) {
        self.stats.note(&self.config.endpoint, problem);
    }

    fn take_in(&mut self, event: &Event, rank: &mut Rank, sink: &mut impl FnMut(KvEvent)) {
        let mut changes = Changes::default();
        match event {
            Event::BlockStored(run) => {
                if !rank.follows(run.group) {
                    self.stats.other_groups += 1;
                    return;
                }
                let root = self.namespace(run);
                if let Err(problem) = rank.cache.store(run, &root, &mut changes) {
                    self.note(problem);
                }
            }
            Event::BlockRemoved(removed) => {
                if !rank.has(removed.group) {
                    self.stats.other_groups += 1;
                    return;
                }
                rank.cache.remove(&removed.hashes, removed.tier, &mut changes);
            }
            Event::AllBlocksCleared => rank.clear(self.epoch, sink),
            Event::Unknown(name) => self.note(Problem::UnknownEvent { name: name.clone() }),
        }
        self.stats.blocks_stored += changes.stored;
        self.stats.blocks_removed += changes.removed;
        rank.tell(self.epoch, changes.list, sink);
    }

    fn rank(&self, rank: u32) -> Rank {
        let worker = WorkerId { instance: self.config.instance, rank };
        let cache = EngineCache::new(self.config.block_size, self.config.blocks_max);
        Rank { worker, next: 0, cache, group: None }
    }

    /// Returns the namespace of a sequence that starts with this run.
    fn namespace(&mut self, run: &Stored) -> Arc<CacheNamespace> {
        if let Some(known) = self.namespaces.get(&run.adapter) {
            return known.clone();
        }
        if self.namespaces.len() >= ADAPTERS_MAX {
            self.namespaces.clear();
        }
        let mut namespace = self.config.namespace.clone();
        if !run.adapter.is_empty() {
            namespace.adapter.clone_from(&run.adapter);
        }
        let namespace = Arc::new(namespace);
        self.namespaces.insert(run.adapter.clone(), namespace.clone());
        namespace
    }
}

impl Rank {
    /// Tells whether a run is of the group of layers that is followed: the first one that reads
    /// whole prefixes.
    fn follows(&mut self, group: Group) -> bool {
        if group.is_windowed {
            return false;
        }
        self.group = self.group.or(group.index);
        self.has(group)
    }

    /// Tells whether blocks are of the group that is followed; who names none means all.
    fn has(&self, group: Group) -> bool {
        group.index.is_none() || group.index == self.group
    }

    fn clear(&mut self, epoch: u64, sink: &mut impl FnMut(KvEvent)) {
        self.cache.clear();
        self.tell(epoch, [KvChange::AllBlocksCleared], sink);
    }

    /// Calls `sink` with the next events.
    fn tell(
        &mut self,
        epoch: u64,
        changes: impl IntoIterator<Item = KvChange>,
        sink: &mut impl FnMut(KvEvent),
    ) {
        for change in changes {
            let seq = self.next;
            self.next += 1;
            sink(KvEvent { worker: self.worker, epoch, seq, change });
        }
    }
}

/// Far more ranks than one publisher speaks for.
const RANKS_MAX: usize = 1024;

/// Namespaces that are kept; those in use live on by themselves.
const ADAPTERS_MAX: usize = 1024;
