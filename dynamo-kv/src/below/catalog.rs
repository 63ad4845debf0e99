//! Which block is in which tier, as the tiers tell, and what is published of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dynamo_core::protocol::{self, KvChange, LocalHash, SequenceHash, StoredBlock};

use crate::identity::{BlockIdentity, BlockKey};
use crate::pool::Published;
use crate::tier::{Tier, TierChange};

/// What all tiers of a manager hold.
pub(crate) struct Catalog {
    places: Mutex<HashMap<BlockIdentity, Place>>,
    /// What events call each tier.
    kinds: Vec<protocol::Tier>,
    publisher: Arc<Published>,
}

/// Where a block is, and how events name it.
struct Place {
    sequence: SequenceHash,
    local: LocalHash,
    parent: Option<SequenceHash>,
    /// Of the block before it.
    before: Option<BlockIdentity>,
    position: u32,
    chain: u64,
    /// A bit for each tier.
    levels: u8,
}

/// The catalog while nothing changes in it, nor is published.
pub(crate) struct Locked<'a> {
    catalog: &'a Catalog,
    places: MutexGuard<'a, HashMap<BlockIdentity, Place>>,
}

impl Catalog {
    pub(super) fn new(kinds: Vec<protocol::Tier>, publisher: Arc<Published>) -> Self {
        Self { places: Mutex::default(), kinds, publisher }
    }

    /// Takes note of what is in a tier, and of what changes in it.
    pub(super) fn watch(self: &Arc<Self>, level: usize, tier: &Arc<dyn Tier>) {
        // What changes before the list is in waits for that.
        let early = Arc::new(Mutex::new(Some(Vec::new())));
        let (catalog, waiting) = (Arc::clone(self), Arc::clone(&early));
        let there = tier.watch(Box::new(move |change| {
            if let Some(waiting) = &mut *lock(&waiting) {
                return waiting.push(change);
            }
            catalog.apply(level, change);
        }));
        self.add_all(level, there);
        let mut early = lock(&early);
        early.take().into_iter().flatten().for_each(|change| self.apply(level, change));
    }

    fn add_all(&self, level: usize, there: Vec<BlockKey>) {
        let mut catalog = self.lock();
        let mut run: Vec<BlockKey> = Vec::new();
        for key in there {
            if !catalog.add(level, &key) {
                continue;
            }
            if run.last().is_some_and(|last| Some(last.identity) != key.parent) {
                self.publish_stored(level, &std::mem::take(&mut run));
            }
            run.push(key);
        }
        self.publish_stored(level, &run);
    }

    fn apply(&self, level: usize, change: TierChange) {
        let mut catalog = self.lock();
        match change {
            TierChange::Stored(key) => {
                if catalog.add(level, &key) {
                    self.publish_stored(level, &[key]);
                }
            }
            TierChange::Removed(key) => {
                let gone = catalog.remove(level, &key.identity);
                self.publisher.removed(gone.into_iter().collect(), self.kinds[level]);
            }
            TierChange::Cleared => {
                let all: Vec<_> = catalog.places.keys().copied().collect();
                let gone = all.iter().filter_map(|identity| catalog.remove(level, identity));
                self.publisher.removed(gone.collect(), self.kinds[level]);
            }
        }
    }

    /// Says that blocks which follow each other are in a tier.
    fn publish_stored(&self, level: usize, run: &[BlockKey]) {
        let parent = run.first().and_then(|first| first.parent_sequence);
        let block = |key: &BlockKey| StoredBlock { sequence: key.sequence, local: key.local };
        self.publisher.stored(parent, run.iter().map(block).collect(), self.kinds[level], run);
    }

    /// Returns which tiers have a block: a bit for each.
    pub(super) fn levels(&self, identity: &BlockIdentity) -> u8 {
        self.lock().places.get(identity).map_or(0, |place| place.levels)
    }

    pub(crate) fn lock(&self) -> Locked<'_> {
        Locked { catalog: self, places: lock(&self.places) }
    }

    /// Returns the tiers that events call by the same name.
    fn namesakes(&self, level: usize) -> u8 {
        let same = self.kinds.iter().enumerate().filter(|(_, kind)| **kind == self.kinds[level]);
        same.fold(0, |levels, (other, _)| levels | 1 << other)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Locked<'_> {
    /// Adds a block; tells whether it is the first of that name.
    fn add(&mut self, level: usize, key: &BlockKey) -> bool {
        let namesakes = self.catalog.namesakes(level);
        let place = self.places.entry(key.identity).or_insert_with(|| Place {
            sequence: key.sequence,
            local: key.local,
            parent: key.parent_sequence,
            before: key.parent,
            position: key.position,
            chain: key.chain,
            levels: 0,
        });
        let is_first = place.levels & namesakes == 0;
        place.levels |= 1 << level;
        is_first
    }

    /// Removes a block; returns it if it was the last of that name.
    fn remove(&mut self, level: usize, identity: &BlockIdentity) -> Option<SequenceHash> {
        let place =
            self.places.get_mut(identity).filter(|place| place.levels & (1 << level) != 0)?;
        place.levels &= !(1 << level);
        let (levels, sequence) = (place.levels, place.sequence);
        if levels == 0 {
            self.places.remove(identity);
        }
        (levels & self.catalog.namesakes(level) == 0).then_some(sequence)
    }

    /// Returns what is stored in all tiers, parents before what follows them.
    pub(crate) fn stored(&self) -> Vec<KvChange> {
        let stored = self.keys().into_iter().map(|(key, tier)| KvChange::BlockStored {
            parent: key.parent_sequence,
            blocks: vec![StoredBlock { sequence: key.sequence, local: key.local }],
            tier,
        });
        stored.collect()
    }

    /// Returns all that names each block, once for each kind of tier that has it, parents before what
    /// follows them.
    pub(crate) fn keys(&self) -> Vec<(BlockKey, protocol::Tier)> {
        let mut places: Vec<_> = self.places.iter().collect();
        places.sort_by_key(|(_, place)| place.position);
        let keys = places.into_iter().flat_map(|(identity, place)| {
            let mut kinds: Vec<_> = self.catalog.kinds.iter().enumerate().collect();
            kinds.retain(|(level, _)| place.levels & (1 << level) != 0);
            kinds.dedup_by_key(|(_, kind)| **kind);
            let key = BlockKey {
                identity: *identity,
                parent: place.before,
                sequence: place.sequence,
                parent_sequence: place.parent,
                local: place.local,
                position: place.position,
                chain: place.chain,
            };
            kinds.into_iter().map(move |(_, tier)| (key, *tier))
        });
        keys.collect()
    }
}
