//! Who holds all blocks of a prompt up to where a query is.

use std::sync::atomic::Ordering::Relaxed;

use dynamo_core::protocol::Tier;

use super::bits::{ones, to_u32};
use super::matches::Matches;
use super::segment::{Segment, TIERS, first_blocks};
use super::table::NONE;
use super::view::{Lanes, View};

/// The lanes that hold all blocks so far, and what was read of the segment that a query is at.
///
/// An active lane is in a *run* of blocks in one tier. Nothing is written of it while it goes on, but
/// where its run ends: most segments change nothing, and most others let a lane or two go.
#[derive(Debug, Default)]
pub(super) struct Path {
    /// By lane, 64 to a word.
    active: Vec<u64>,
    /// Of the active ones, those in a run of each tier; of others it says nothing.
    runs: [Vec<u64>; TIERS],
    /// Whether any may be in a run of a slower tier.
    in_slower: bool,
    /// By lane, blocks before the run that it is in.
    pub(super) since: Vec<u32>,
    /// Of the active ones, those that do not just go on in a run of the fastest tier.
    asked: Vec<u64>,
    /// Of the segment, lanes that hold all of it in each tier, if slower ones are looked at,
    whole: [Vec<u64>; TIERS],
    asks_slower: bool,
    /// and those asked for that hold some of it, and by lane and tier which.
    partly: Vec<u64>,
    has_partly: bool,
    masks: Vec<[u64; TIERS]>,
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
        for words_of in self.whole.iter_mut().chain(&mut self.runs).chain([&mut self.partly]) {
            words_of.clear();
            words_of.resize(words, 0);
        }
        for lanes_of in [&mut self.active, &mut self.runs[0], &mut self.asked] {
            lanes_of.clear();
            lanes_of.extend_from_slice(&lanes.live);
        }
        self.since.clear();
        self.since.resize(words * 64, 0);
        self.masks.resize(words * 64, [0; TIERS]);
        (self.in_slower, self.has_partly) = (false, false);
    }

    /// Tells whether any lane holds all blocks so far.
    pub(super) fn is_anyone(&self) -> bool {
        self.active.iter().any(|bits| *bits != 0)
    }

    /// Reads who holds the segment; tells whether each lane just goes on.
    #[inline]
    pub(super) fn read(&mut self, view: &View, segment: &Segment<'_>) -> bool {
        let lanes = self.active.iter().zip(&self.runs[0]).zip(&mut self.asked).enumerate();
        let anyone = lanes.fold(0, |anyone, (word, ((active, run), asked))| {
            *asked = active & !(segment.whole(0, word) & run);
            anyone | *asked
        });
        if anyone != 0 {
            self.read_asked(view, segment);
        }
        anyone == 0
    }

    /// Reads what those hold that are asked for.
    #[inline(never)]
    fn read_asked(&mut self, view: &View, segment: &Segment<'_>) {
        self.asks_slower = self.in_slower || segment.has_slower();
        if self.asks_slower {
            for (tier, words) in self.whole.iter_mut().enumerate() {
                let words = words.iter_mut().enumerate();
                words.for_each(|(word, bits)| *bits = segment.whole(tier, word));
            }
        }
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
            let Some(asked) = self.asked.get(lane.word()) else { continue };
            if asked & lane.bit() != 0 {
                let partly = &mut self.partly[lane.word()];
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

    fn is_in_slower(&self) -> bool {
        let words = self.runs[1..].iter().flat_map(|runs| runs.iter().zip(&self.active));
        words.fold(0, |any, (run, active)| any | run & active) != 0
    }
}

impl Matches {
    /// Lets those lanes go on that hold the stretch of the segment that was read.
    pub(super) fn pass(&mut self, stretch: Stretch) {
        for word in 0..self.path.asked.len() {
            let asked = self.path.asked[word];
            if asked != 0 && self.path.asks_slower {
                self.pass_tiers((word, asked), stretch);
            } else if asked != 0 {
                self.pass_fastest((word, asked), stretch);
            }
        }
        self.path.in_slower = self.path.asks_slower && self.path.is_in_slower();
    }

    /// Lets lanes go on where nobody holds anything in a slower tier: no run ends but the last.
    fn pass_fastest(&mut self, (word, asked): (usize, u64), stretch: Stretch) {
        let partly = self.path.partly[word] & asked;
        self.end_runs((word, asked & !partly), 0, to_u32(stretch.depth));
        self.path.active[word] &= !(asked & !partly);
        for bit in ones(partly) {
            let [mask, ..] = self.path.masks[word * 64 + bit];
            let held = (mask >> stretch.offset).trailing_ones() as usize;
            if held < stretch.count {
                let lane = word * 64 + bit;
                self.end_run(lane, 0, to_u32(stretch.depth + held));
                self.path.active[word] &= !(1 << bit);
            }
        }
    }

    /// Lets lanes go on, in the fastest tier in which they hold the stretch.
    fn pass_tiers(&mut self, (word, asked): (usize, u64), stretch: Stretch) {
        let depth = to_u32(stretch.depth);
        let partly = self.path.partly[word] & asked & !self.path.whole[0][word];
        let mut rest = asked & !partly;
        let mut begun = 0;
        for tier in 0..TIERS {
            let here = self.path.whole[tier][word] & rest;
            rest &= !here;
            let run = self.path.runs[tier][word];
            self.path.runs[tier][word] = run & !asked | here;
            self.end_runs((word, run & asked & !here), tier, depth);
            begun |= here & !run;
        }
        ones(begun).for_each(|bit| self.path.since[word * 64 + bit] = depth);
        self.path.active[word] &= !rest;
        for bit in ones(partly) {
            self.pass_partly((word, bit), stretch);
        }
    }

    /// Counts what a lane holds from the stretch's beginning on, whose run has ended there. If that is
    /// all of it, the next run begins behind.
    fn pass_partly(&mut self, (word, bit): (usize, usize), stretch: Stretch) {
        let lane = word * 64 + bit;
        let masks = self.path.masks_of(lane).map(|mask| mask >> stretch.offset);
        let any = masks.iter().fold(0, |any, mask| any | mask);
        let held = (any.trailing_ones() as usize).min(stretch.count);
        let mut rest = first_blocks(held);
        for (tier, mask) in masks.into_iter().enumerate() {
            self.add(lane, tier, (mask & rest).count_ones());
            rest &= !mask;
        }
        if held == stretch.count {
            self.path.runs[0][word] |= 1 << bit;
            self.path.since[lane] = to_u32(stretch.depth + held);
        } else {
            self.path.active[word] &= !(1 << bit);
        }
    }

    /// Ends the query after so many blocks.
    pub(super) fn end(&mut self, depth: usize) {
        for tier in 0..if self.path.in_slower { TIERS } else { 1 } {
            for word in 0..self.path.active.len() {
                let lanes = self.path.active[word] & self.path.runs[tier][word];
                self.end_runs((word, lanes), tier, to_u32(depth));
            }
        }
    }
}

/// Returns a tier's number, below [`TIERS`]: the fastest is zero.
pub(super) fn tier_index(tier: Tier) -> usize {
    (tier as usize).min(TIERS - 1)
}
