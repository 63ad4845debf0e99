//! Who holds all blocks of a prompt up to where a query is.

use std::sync::atomic::Ordering::Relaxed;

use dynamo_core::protocol::Tier;

use super::matches::Matches;
use super::segment::{Segment, TIERS, first_blocks};
use super::table::NONE;
use super::view::{Lanes, View};

/// The lanes that hold all blocks so far.
///
/// Lanes are noted down where their tier changes, not at every segment: a *run* of blocks in one tier
/// began at `since`.
#[derive(Debug, Default)]
pub(super) struct Path {
    /// By lane, 64 to a word.
    active: Vec<u64>,
    /// Of the active ones, those in a run of each tier.
    runs: [Vec<u64>; TIERS],
    /// By lane.
    pub(super) since: Vec<u32>,
    /// What was read of a segment: lanes that hold all of it,
    whole: [Vec<u64>; TIERS],
    /// lanes that hold some of it, and by lane and tier which.
    partly: Vec<u64>,
    masks: Vec<[u64; TIERS]>,
    /// Whether what was read says anything of slower tiers, and of those that hold some.
    has_slower: bool,
    has_partly: bool,
}

/// Blocks of a segment that a query goes over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stretch {
    /// The first of them in the segment.
    pub(super) offset: usize,
    pub(super) count: usize,
    /// Blocks of the prompt before them.
    pub(super) depth: usize,
}

impl Path {
    pub(super) fn begin(&mut self, lanes: &Lanes) {
        let words = lanes.live.len();
        self.active.clear();
        self.active.extend_from_slice(&lanes.live);
        for words_of in self.runs.iter_mut().chain(&mut self.whole).chain([&mut self.partly]) {
            words_of.clear();
            words_of.resize(words, 0);
        }
        self.since.clear();
        self.since.resize(words * 64, 0);
        self.masks.resize(words * 64, [0; TIERS]);
        (self.has_slower, self.has_partly) = (false, false);
    }

    /// Tells whether any lane holds all blocks so far.
    pub(super) fn is_anyone(&self) -> bool {
        self.active.iter().any(|bits| *bits != 0)
    }

    /// Reads who holds the segment in the fastest tier; tells whether that is all there is to know: each
    /// lane does, and is in a run of that tier.
    pub(super) fn goes_on(&mut self, segment: &Segment<'_>) -> bool {
        let lanes = self.active.iter().zip(&self.runs[0]).zip(&mut self.whole[0]).enumerate();
        lanes.fold(0, |rest, (word, ((active, run), whole))| {
            *whole = segment.whole(0, word);
            rest | active & !(*whole & run)
        }) == 0
    }

    /// Reads who else holds what of a segment.
    pub(super) fn read(&mut self, view: &View, segment: &Segment<'_>) {
        let has_slower = segment.has_slower();
        if has_slower || self.has_slower {
            for (tier, words) in self.whole.iter_mut().enumerate().skip(1) {
                let words = words.iter_mut().enumerate();
                words.for_each(|(word, bits)| *bits = segment.whole(tier, word));
            }
        }
        self.has_slower = has_slower;
        if self.has_partly {
            self.partly.fill(0);
        }
        self.has_partly = segment.head().partial.load(Relaxed) != NONE;
        if self.has_partly {
            self.read_partials(view, segment);
        }
    }

    fn read_partials(&mut self, view: &View, segment: &Segment<'_>) {
        for (_, lane, mask) in view.partials(segment) {
            // Lanes younger than the view say nothing in it.
            if let Some(partly) = self.partly.get_mut(lane.word()) {
                let masks = &mut self.masks[lane.number as usize];
                if *partly & lane.bit() == 0 {
                    *masks = [0; TIERS];
                }
                *partly |= lane.bit();
                masks[lane.tier] = mask;
            }
        }
    }

    /// Returns which blocks of the segment a lane holds in each tier.
    fn masks_of(&self, lane: usize) -> [u64; TIERS] {
        let mut masks = self.masks[lane];
        for (mask, whole) in masks.iter_mut().zip(&self.whole) {
            if whole[lane / 64] & 1 << (lane % 64) != 0 {
                *mask = u64::MAX;
            }
        }
        masks
    }
}

impl Matches {
    /// Lets those lanes go on that hold the stretch of the segment that was read.
    pub(super) fn pass(&mut self, stretch: Stretch) {
        for word in 0..self.path.active.len() {
            let active = self.path.active[word];
            if active & !(self.path.whole[0][word] & self.path.runs[0][word]) != 0 {
                self.pass_word(word, active, stretch);
            }
        }
    }

    fn pass_word(&mut self, word: usize, active: u64, stretch: Stretch) {
        let depth = u32::try_from(stretch.depth).unwrap_or(u32::MAX);
        let mut rest = active;
        let partly = self.path.partly[word] & rest & !self.path.whole[0][word];
        let mut begun = 0;
        for tier in 0..TIERS {
            let here = self.path.whole[tier][word] & rest & !partly;
            rest &= !here;
            let run = std::mem::replace(&mut self.path.runs[tier][word], here);
            self.end_runs((word, run & !here), tier, depth);
            begun |= here & !run;
        }
        if depth > 0 {
            ones(begun).for_each(|bit| self.path.since[word * 64 + bit] = depth);
        }
        self.path.active[word] = active & (!rest | partly);
        for bit in ones(partly) {
            if self.pass_partly(word * 64 + bit, stretch) < stretch.count {
                self.path.active[word] &= !(1 << bit);
            }
        }
    }

    /// Counts what a lane holds from the stretch's beginning on, and returns how much that is.
    fn pass_partly(&mut self, lane: usize, stretch: Stretch) -> usize {
        let masks = self.path.masks_of(lane).map(|mask| mask >> stretch.offset);
        let any = masks.iter().fold(0, |any, mask| any | mask);
        let held = (any.trailing_ones() as usize).min(stretch.count);
        let mut rest = first_blocks(held);
        for (tier, mask) in masks.into_iter().enumerate() {
            self.add(lane, tier, (mask & rest).count_ones());
            rest &= !mask;
        }
        held
    }

    /// Ends the query after so many blocks.
    pub(super) fn end(&mut self, depth: usize) {
        let depth = u32::try_from(depth).unwrap_or(u32::MAX);
        for word in 0..self.path.active.len() {
            for tier in 0..TIERS {
                self.end_runs((word, self.path.runs[tier][word]), tier, depth);
            }
        }
    }
}

/// Returns a tier's number, below [`TIERS`]: the fastest is zero.
pub(super) fn tier_index(tier: Tier) -> usize {
    (tier as usize).min(TIERS - 1)
}

/// Returns the numbers of the bits that are set.
pub(super) fn ones(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = (bits != 0).then(|| bits.trailing_zeros() as usize);
        bits &= bits.wrapping_sub(1);
        bit
    })
}
