//! What the writer does when blocks are removed, and when workers are gone.

use std::sync::Arc;

use dynamo_core::protocol::SequenceHash;

use super::PrefixIndex;
use super::bits::{count, end_of};
use super::segment::SEGMENT_BLOCKS;
use super::spare::Spare;
use super::table::{Place, Table};
use super::view::{Lane, View};

/// Blocks of one segment.
#[derive(Debug, Clone, Copy, Default)]
struct Run {
    first: Place,
    mask: u64,
}

/// How far the segments are swept of workers that are gone.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    chunk: usize,
    segment: usize,
}

impl PrefixIndex {
    pub(super) fn remove_run(&mut self, lane: Lane, hashes: &[SequenceHash]) {
        let mut run = Run::default();
        let mut last = None;
        for hashes in hashes.chunks(SEGMENT_BLOCKS) {
            self.view.table.fetch(hashes);
            for hash in hashes {
                let near = last.and_then(|last| beside(&self.view, last, hash.0));
                last = near.or_else(|| self.view.find(hash.0));
                let Some((segment, offset)) = last.and_then(|at| self.view.segment(at)) else {
                    continue;
                };
                let first = segment.first;
                if run.mask != 0 && run.first != first {
                    self.uncover(lane, std::mem::take(&mut run));
                }
                run = Run { first, mask: run.mask | 1 << offset };
            }
        }
        self.uncover(lane, run);
    }

    /// Records that a lane does not hold some blocks of a segment.
    fn uncover(&mut self, lane: Lane, run: Run) {
        let Some((segment, _)) = self.view.segment(run.first) else { return };
        let before = self.view.holding(&segment, lane);
        if before.own & run.mask == 0 {
            return;
        }
        let rest = before.own & !run.mask;
        if !self.set(lane, run.first, rest) {
            // There is no room to note down which ones are left: then none are.
            self.set(lane, run.first, 0);
            self.count_dropped(count(rest));
        }
        let Some((segment, _)) = self.view.segment(run.first) else { return };
        let gone = before.any & !self.view.holding(&segment, lane).any;
        if gone != 0 {
            let anyone = self.view.held_by_anyone(&segment);
            self.lanes.subtract(lane.number, count(gone));
            self.blocks -= count(gone & !anyone);
            self.trim(run.first);
        }
    }

    /// Gives back what stands behind the last block of a segment that anyone holds.
    pub(super) fn trim(&mut self, first: Place) {
        let Some((segment, _)) = self.view.segment(first) else { return };
        let held = self.view.held_by_anyone(&segment);
        let (len, end) = (segment.len(), end_of(held));
        if end < len || end == 0 {
            self.cut(first, end);
        }
    }

    /// Writes that lanes that are doomed hold nothing of a segment.
    pub(super) fn bury(&mut self, place: Place) {
        if self.lanes.doomed().is_empty() {
            return;
        }
        let Some((segment, _)) = self.view.segment(place).filter(|(segment, _)| segment.len() > 0)
        else {
            return;
        };
        let first = segment.first;
        let before = self.view.held_by_anyone(&segment);
        segment.write(|| self.partials.bury(&self.view, &segment, self.lanes.doomed()));
        let gone = before & !self.view.held_by_anyone(&segment);
        if gone != 0 {
            self.blocks -= count(gone);
            self.trim(first);
        }
    }

    /// Sweeps a few segments.
    pub(super) fn sweep_some(&mut self) {
        for _ in 0..STEPS {
            if !self.lanes.doom() {
                return;
            }
            self.sweep_next();
        }
    }

    /// Gives back the memory of all that was cleared; looks at every segment there is.
    pub fn sweep(&mut self) {
        while self.lanes.doom() {
            self.sweep_next();
        }
        self.tidy();
    }

    fn sweep_next(&mut self) {
        let Sweep { chunk, segment } = self.sweep;
        let place = self.view.segment_of(chunk, segment);
        match place {
            Some(place) => {
                self.sweep.segment += 1;
                self.bury(place);
            }
            None if chunk < self.view.chunks.len() => {
                self.sweep = Sweep { chunk: chunk + 1, segment: 0 };
            }
            None => {
                self.sweep = Sweep::default();
                self.lanes.swept();
            }
        }
    }

    /// Gives memory back: all of it if there is no block, or much of the table if it is nearly empty.
    pub(super) fn tidy(&mut self) {
        if self.lanes.held_total() == 0 && !self.spare.used.is_empty() {
            self.blocks = 0;
            self.places = 0;
            self.spare = Spare::default();
            self.partials = Default::default();
            self.sweep = Sweep::default();
            self.lanes.swept_all();
            self.change(View::remove_all);
        } else if self.places * 8 < self.view.table.blocks_max()
            && self.places > TABLE_BLOCKS_MIN
            && self.may_grow(Table::bytes_for(self.places * 2))
        {
            self.rebuild(self.places * 2);
        }
    }
}

/// Finds a block beside another: what is removed together often stood together.
fn beside(view: &Arc<View>, place: Place, hash: u64) -> Option<Place> {
    let (segment, offset) = view.segment(place)?;
    let is_at = |offset: usize| offset < segment.len() && segment.hash(offset) == hash;
    if is_at(offset + 1) {
        return Some(place + 1);
    }
    (offset > 0 && is_at(offset - 1)).then(|| place - 1)
}

/// Segments that are swept with each change.
const STEPS: usize = if cfg!(dynamo_loom) { 1 } else { 64 };

/// A table for fewer blocks is not worth a smaller one.
const TABLE_BLOCKS_MIN: usize = 4096;
