//! The answer to a query.

use std::sync::Arc;

use super::bits::to_u32;
use super::path::Path;
use super::segment::TIERS;
use super::table::NONE;
use super::view::Lanes;
use crate::workers::Slot;

/// How much of a prompt each worker holds; reuse it, and a query allocates nothing.
#[derive(Debug, Default)]
pub struct Matches {
    /// By slot.
    lanes: Arc<[u32]>,
    /// By tier and lane, blocks of the prefix that are found there, and in no faster tier.
    counts: [Vec<u32>; TIERS],
    /// Whether any tier but the fastest counts anything.
    has_slower: bool,
    pub(super) path: Path,
    /// By slot, how much it will hold at least, as far as is known beside the index.
    expected: Vec<u32>,
    /// Slots of which anything is expected.
    expecting: Vec<Slot>,
}

impl Matches {
    /// Returns how many blocks of the prompt, from the first on, `worker` holds in any tier.
    #[inline]
    pub fn depth(&self, worker: Slot) -> usize {
        self.indexed(worker).max(self.expected(worker) as usize)
    }

    /// Returns how many of these blocks `worker` has in each tier, fastest first; what is in several
    /// counts for the fastest.
    pub fn tiers(&self, worker: Slot) -> [u32; TIERS] {
        let mut tiers = self.found(worker);
        tiers[0] += self.expected(worker).saturating_sub(tiers.iter().sum());
        tiers
    }

    /// Returns the workers that hold at least one block, with their depths.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, usize)> + '_ {
        let slots = (0..self.lanes.len().max(self.expected.len())).filter_map(Slot::from_index);
        slots.map(|slot| (slot, self.depth(slot))).filter(|(_, depth)| *depth > 0)
    }

    /// Writes how many blocks of the prompt the workers of the slots from `first` on hold in any tier.
    pub(crate) fn depths(&self, first: usize, depths: &mut [u32]) {
        let lanes = self.lanes.get(first..).unwrap_or_default();
        let known = depths.len().min(lanes.len());
        let count = |counts: &[u32], lane: u32| counts.get(lane as usize).copied().unwrap_or(0);
        for (depth, lane) in depths.iter_mut().zip(lanes) {
            *depth = count(&self.counts[0], *lane);
        }
        depths[known..].fill(0);
        for counts in self.counts.iter().skip(1).filter(|_| self.has_slower) {
            for (depth, lane) in depths.iter_mut().zip(lanes) {
                *depth += count(counts, *lane);
            }
        }
        let expected = self.expected.get(first..).unwrap_or_default();
        for (depth, expected) in depths.iter_mut().zip(expected) {
            *depth = (*depth).max(*expected);
        }
    }

    /// Returns how many of these blocks the index knows of, by what the worker said itself.
    #[inline]
    pub fn indexed(&self, worker: Slot) -> usize {
        self.found(worker).iter().sum::<u32>() as usize
    }

    /// Tells whether anything is in a tier but the fastest.
    pub(crate) fn is_tiered(&self) -> bool {
        self.has_slower
    }

    #[inline]
    fn expected(&self, worker: Slot) -> u32 {
        self.expected.get(worker.index()).copied().unwrap_or(0)
    }

    #[inline]
    fn found(&self, worker: Slot) -> [u32; TIERS] {
        let lane = self.lanes.get(worker.index()).copied().unwrap_or(NONE) as usize;
        let mut found = [0; TIERS];
        found[0] = self.counts[0].get(lane).copied().unwrap_or(0);
        if self.has_slower {
            for (found, counts) in found.iter_mut().zip(&self.counts).skip(1) {
                *found = counts.get(lane).copied().unwrap_or(0);
            }
        }
        found
    }

    /// Expects `worker` to hold `depth` blocks at least, in its fastest tier.
    pub(super) fn expect(&mut self, worker: Slot, depth: usize) {
        let at = worker.index();
        self.expected.resize(self.expected.len().max(at + 1), 0);
        if self.expected[at] == 0 {
            self.expecting.push(worker);
        }
        self.expected[at] = self.expected[at].max(to_u32(depth));
    }

    /// Says that nobody holds anything.
    pub(super) fn clear(&mut self) {
        self.begin(&Lanes::default());
    }

    /// Forgets the last answer.
    pub(super) fn begin(&mut self, lanes: &Lanes) {
        if !Arc::ptr_eq(&self.lanes, &lanes.of_slot) {
            self.lanes = Arc::clone(&lanes.of_slot);
        }
        for slot in self.expecting.drain(..) {
            self.expected[slot.index()] = 0;
        }
        let end = lanes.live.len() * 64;
        let stale = if std::mem::take(&mut self.has_slower) { TIERS } else { 1 };
        self.counts[..stale].iter_mut().for_each(Vec::clear);
        self.counts.iter_mut().for_each(|counts| counts.resize(end, 0));
        self.path.begin(lanes);
    }

    /// Counts blocks in a tier for one lane.
    pub(super) fn add(&mut self, lane: usize, tier: usize, blocks: u32) {
        self.counts[tier][lane] += blocks;
        self.has_slower |= tier > 0 && blocks > 0;
    }

    /// Counts a run of blocks in a tier, from where it began to `depth`.
    pub(super) fn end_run(&mut self, lane: usize, tier: usize, depth: u32) {
        self.add(lane, tier, depth - self.path.since[lane]);
    }

    /// Counts such runs, for lanes of one word.
    pub(super) fn end_runs(&mut self, (word, bits): (usize, u64), tier: usize, depth: u32) {
        // What began before the first block has nothing to count there.
        if bits == 0 || depth == 0 {
            return;
        }
        self.has_slower |= tier > 0;
        let lanes = word * 64..word * 64 + 64;
        let (counts, _) = self.counts[tier][lanes.clone()].as_chunks_mut::<8>();
        let (since, _) = self.path.since[lanes].as_chunks::<8>();
        for eight in (0..8).filter(|at| bits >> (at * 8) & 0xff != 0) {
            // All eight at a time, without a branch.
            for lane in 0..8 {
                let is_one = bits >> (eight * 8 + lane) & 1 != 0;
                counts[eight][lane] += if is_one { depth - since[eight][lane] } else { 0 };
            }
        }
    }
}
