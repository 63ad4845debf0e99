//! Who holds which prefix: exact, fed by events; pure.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use dynamo_core::protocol::{SequenceHash, Tier, WorkerId};

/// One table from sequence hash to the workers that hold the block, shared by all workers.
///
/// A sequence hash stands for a block *and* its whole prefix, so a walk over a prompt's hashes that
/// keeps the workers seen at every step gives each worker's longest prefix.
#[derive(Debug, Default)]
pub struct PrefixIndex {
    blocks: HashMap<SequenceHash, Coverage>,
    slots: HashMap<WorkerId, usize>,
    /// What each slot holds, and whose slot it is; a free slot is `None`.
    workers: Vec<Option<Held>>,
}

/// A set of slots, 64 to a word.
type Coverage = Vec<u64>;

#[derive(Debug)]
struct Held {
    worker: WorkerId,
    /// The tiers that have each block: a bit for each.
    blocks: HashMap<SequenceHash, u8>,
}

/// The answer to [`PrefixIndex::find`]; reuse it, and a query allocates nothing.
#[derive(Debug, Default)]
pub struct Matches {
    depths: Vec<(WorkerId, usize)>,
    active: Coverage,
}

impl Matches {
    /// Returns how many blocks of the prompt, from the first on, `worker` holds.
    pub fn depth(&self, worker: WorkerId) -> usize {
        self.depths.iter().find(|(known, _)| *known == worker).map_or(0, |(_, depth)| *depth)
    }

    /// Returns the workers that hold at least one block, with their depths.
    pub fn iter(&self) -> impl Iterator<Item = (WorkerId, usize)> + '_ {
        self.depths.iter().copied()
    }
}

impl PrefixIndex {
    /// Records that `worker` holds the blocks in `tier`; in which does not matter to who asks.
    pub fn store(
        &mut self,
        worker: WorkerId,
        tier: Tier,
        hashes: impl IntoIterator<Item = SequenceHash>,
    ) {
        let slot = self.slot(worker);
        let Some(held) = &mut self.workers[slot] else { return };
        for hash in hashes {
            let tiers = held.blocks.entry(hash).or_default();
            let was_held = *tiers != 0;
            *tiers |= bit(tier);
            if !was_held {
                set(self.blocks.entry(hash).or_default(), slot);
            }
        }
    }

    /// Records that `worker` no longer holds the blocks in `tier`.
    pub fn remove(
        &mut self,
        worker: WorkerId,
        tier: Tier,
        hashes: impl IntoIterator<Item = SequenceHash>,
    ) {
        let Some(&slot) = self.slots.get(&worker) else { return };
        let Some(held) = &mut self.workers[slot] else { return };
        for hash in hashes {
            let Entry::Occupied(mut tiers) = held.blocks.entry(hash) else { continue };
            *tiers.get_mut() &= !bit(tier);
            if *tiers.get() == 0 {
                tiers.remove();
                uncover(&mut self.blocks, hash, slot);
            }
        }
    }

    /// Records that `worker` holds nothing, or is gone; its memory is freed.
    pub fn clear(&mut self, worker: WorkerId) {
        let Some(slot) = self.slots.remove(&worker) else { return };
        let held = self.workers[slot].take();
        for hash in held.into_iter().flat_map(|held| held.blocks.into_keys()) {
            uncover(&mut self.blocks, hash, slot);
        }
    }

    /// Finds each worker's longest prefix of `hashes`, the sequence hashes of a prompt.
    pub fn find(&self, hashes: &[SequenceHash], matches: &mut Matches) {
        let Matches { depths, active } = matches;
        depths.clear();
        active.clear();
        let Some(first) = hashes.first().and_then(|hash| self.blocks.get(hash)) else { return };
        active.extend_from_slice(first);
        for (depth, hash) in hashes.iter().enumerate().skip(1) {
            let coverage = self.blocks.get(hash).map_or(&[][..], |coverage| coverage);
            let mut left = 0;
            for (word, bits) in active.iter_mut().enumerate() {
                let here = coverage.get(word).copied().unwrap_or(0);
                self.push_depths(word, *bits & !here, depth, depths);
                *bits &= here;
                left |= *bits;
            }
            if left == 0 {
                return;
            }
        }
        for (word, bits) in active.iter().enumerate() {
            self.push_depths(word, *bits, hashes.len(), depths);
        }
    }

    /// Returns the number of different blocks that anyone holds.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Tells whether nobody holds anything.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Returns how many blocks `worker` holds.
    pub fn held(&self, worker: WorkerId) -> usize {
        let slot = self.slots.get(&worker).and_then(|&slot| self.workers[slot].as_ref());
        slot.map_or(0, |held| held.blocks.len())
    }

    fn slot(&mut self, worker: WorkerId) -> usize {
        *self.slots.entry(worker).or_insert_with(|| {
            let held = Some(Held { worker, blocks: HashMap::new() });
            if let Some(free) = self.workers.iter().position(Option::is_none) {
                self.workers[free] = held;
                return free;
            }
            self.workers.push(held);
            self.workers.len() - 1
        })
    }

    fn push_depths(
        &self,
        word: usize,
        mut bits: u64,
        depth: usize,
        depths: &mut Vec<(WorkerId, usize)>,
    ) {
        while bits != 0 {
            let slot = word * 64 + bits.trailing_zeros() as usize;
            bits &= bits - 1;
            depths.extend(self.workers[slot].as_ref().map(|held| (held.worker, depth)));
        }
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

fn uncover(blocks: &mut HashMap<SequenceHash, Coverage>, hash: SequenceHash, slot: usize) {
    if let Some(coverage) = blocks.get_mut(&hash) {
        coverage[slot / 64] &= !(1 << (slot % 64));
        if coverage.iter().all(|word| *word == 0) {
            blocks.remove(&hash);
        }
    }
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
