//! Who holds which prefix: exact, fed by events; pure.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use dynamo_core::protocol::{SequenceHash, Tier};

use crate::workers::Slot;

/// Takes in what workers store and remove; whoever asks does so through a
/// [`reader`](Self::reader).
#[derive(Debug, Default)]
pub struct PrefixIndex(Arc<RwLock<Blocks>>);

/// Finds prefixes in an index, from any thread; cheap to clone.
#[derive(Debug, Clone)]
pub struct PrefixReader(Arc<RwLock<Blocks>>);

/// One table from sequence hash to the workers that hold the block, shared by all workers.
///
/// A sequence hash stands for a block *and* its whole prefix, so a walk over a prompt's hashes that
/// keeps the workers seen at every step gives each worker's longest prefix.
#[derive(Debug, Default)]
struct Blocks {
    holders: HashMap<SequenceHash, Coverage>,
    /// By slot, the tiers that have each block: a bit for each.
    held: Vec<HashMap<SequenceHash, u8>>,
}

/// A set of slots, 64 to a word.
type Coverage = Vec<u64>;

/// The answer to [`PrefixReader::find`]; reuse it, and a query allocates nothing.
#[derive(Debug, Default)]
pub struct Matches {
    depths: Vec<(Slot, usize)>,
    active: Coverage,
}

impl Matches {
    /// Returns how many blocks of the prompt, from the first on, `worker` holds.
    pub fn depth(&self, worker: Slot) -> usize {
        self.depths.iter().find(|(known, _)| *known == worker).map_or(0, |(_, depth)| *depth)
    }

    /// Returns the workers that hold at least one block, with their depths.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, usize)> + '_ {
        self.depths.iter().copied()
    }
}

impl PrefixIndex {
    /// Records that `worker` holds a run of blocks in `tier`: the first follows `parent`, each other its
    /// predecessor.
    pub fn store(
        &mut self,
        worker: Slot,
        tier: Tier,
        _parent: Option<SequenceHash>,
        hashes: &[SequenceHash],
    ) {
        let blocks = &mut *self.write();
        if blocks.held.len() <= worker.index() {
            blocks.held.resize_with(worker.index() + 1, HashMap::new);
        }
        for &hash in hashes {
            let tiers = blocks.held[worker.index()].entry(hash).or_default();
            let was_held = *tiers != 0;
            *tiers |= bit(tier);
            if !was_held {
                set(blocks.holders.entry(hash).or_default(), worker.index());
            }
        }
    }

    /// Records that `worker` no longer holds the blocks in `tier`.
    pub fn remove(&mut self, worker: Slot, tier: Tier, hashes: &[SequenceHash]) {
        let blocks = &mut *self.write();
        let Some(held) = blocks.held.get_mut(worker.index()) else { return };
        for &hash in hashes {
            let Entry::Occupied(mut tiers) = held.entry(hash) else { continue };
            *tiers.get_mut() &= !bit(tier);
            if *tiers.get() == 0 {
                tiers.remove();
                uncover(&mut blocks.holders, hash, worker.index());
            }
        }
    }

    /// Records that `worker` holds nothing, or is gone; its memory is freed.
    pub fn clear(&mut self, worker: Slot) {
        let blocks = &mut *self.write();
        let held = blocks.held.get_mut(worker.index()).map(std::mem::take);
        for hash in held.into_iter().flat_map(HashMap::into_keys) {
            uncover(&mut blocks.holders, hash, worker.index());
        }
    }

    /// Returns what finds prefixes in this index.
    pub fn reader(&self) -> PrefixReader {
        PrefixReader(Arc::clone(&self.0))
    }

    /// Returns the number of different blocks that anyone holds.
    pub fn len(&self) -> usize {
        self.read().holders.len()
    }

    /// Tells whether nobody holds anything.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns how many blocks `worker` holds.
    pub fn held(&self, worker: Slot) -> usize {
        self.read().held.get(worker.index()).map_or(0, HashMap::len)
    }

    fn read(&self) -> RwLockReadGuard<'_, Blocks> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Blocks> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PrefixReader {
    /// Finds each worker's longest prefix of `hashes`, the sequence hashes of a prompt.
    pub fn find(&self, hashes: &[SequenceHash], matches: &mut Matches) {
        let blocks = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let Matches { depths, active } = matches;
        depths.clear();
        active.clear();
        let Some(first) = hashes.first().and_then(|hash| blocks.holders.get(hash)) else { return };
        active.extend_from_slice(first);
        for (depth, hash) in hashes.iter().enumerate().skip(1) {
            let coverage = blocks.holders.get(hash).map_or(&[][..], |coverage| coverage);
            let mut left = 0;
            for (word, bits) in active.iter_mut().enumerate() {
                let here = coverage.get(word).copied().unwrap_or(0);
                push_depths(word, *bits & !here, depth, depths);
                *bits &= here;
                left |= *bits;
            }
            if left == 0 {
                return;
            }
        }
        for (word, bits) in active.iter().enumerate() {
            push_depths(word, *bits, hashes.len(), depths);
        }
    }
}

fn push_depths(word: usize, mut bits: u64, depth: usize, depths: &mut Vec<(Slot, usize)>) {
    while bits != 0 {
        let slot = word * 64 + bits.trailing_zeros() as usize;
        bits &= bits - 1;
        depths.extend(Slot::from_index(slot).map(|slot| (slot, depth)));
    }
}

/// A tier's bit in what a worker holds.
fn bit(tier: Tier) -> u8 {
    1 << tier as u8
}

fn set(coverage: &mut Coverage, slot: usize) {
    if coverage.len() <= slot / 64 {
        coverage.resize(slot / 64 + 1, 0);
    }
    coverage[slot / 64] |= 1 << (slot % 64);
}

fn uncover(holders: &mut HashMap<SequenceHash, Coverage>, hash: SequenceHash, slot: usize) {
    if let Some(coverage) = holders.get_mut(&hash) {
        coverage[slot / 64] &= !(1 << (slot % 64));
        if coverage.iter().all(|word| *word == 0) {
            holders.remove(&hash);
        }
    }
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
