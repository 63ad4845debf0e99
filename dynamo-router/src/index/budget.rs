//! How much memory the index may take, and what it drops to stay below.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::PrefixIndex;
use super::bits::{count, ones, to_u32};
use super::segment::{CHUNK_BLOCKS, Chunk, SEGMENT_BLOCKS, SIZES, TIERS};
use super::table::{Place, Table};
use super::view::Lane;

/// How an index is set up.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct IndexConfig {
    /// Bytes that the index may take; `None` for as many as it gets.
    pub bytes_max: Option<usize>,
}

impl IndexConfig {
    /// Takes no more than `bytes` of memory, or [`BYTES_MIN`](Self::BYTES_MIN) if that is more.
    ///
    /// Beyond it the ends of sequences are dropped that were not stored or found for the longest time,
    /// and counted. It holds for all that the index has allocated at any time: blocks, who holds them,
    /// lists of workers, and what is there twice while something is replaced. Only what a query looks
    /// at while it is replaced is beside it, until that query is over.
    #[must_use]
    pub fn with_bytes_max(mut self, bytes: usize) -> Self {
        self.bytes_max = Some(bytes.max(Self::BYTES_MIN));
        self
    }

    /// The smallest limit that an index can keep.
    pub const BYTES_MIN: usize = 4 << 20;
}

impl PrefixIndex {
    /// Returns how many blocks were dropped to stay below [`IndexConfig::bytes_max`], so far.
    ///
    /// What several workers held counts once where it is forgotten, and for each worker of which it could
    /// not be noted down.
    pub fn dropped_total(&self) -> u64 {
        self.dropped_total
    }

    pub(super) fn count_dropped(&mut self, blocks: usize) {
        self.dropped_total += blocks as u64;
    }

    /// Returns the index's own time; zero where nobody asks.
    pub(super) fn now(&self) -> u32 {
        self.view.clock.load(Relaxed)
    }

    /// Sees to it that so many blocks can be stored, [`STORED_MAX`] at most; tells whether they can.
    pub(super) fn has_room(&mut self, blocks: usize) -> bool {
        if self.config.bytes_max.is_none() {
            return true;
        }
        self.stores += 1;
        if self.stores.is_multiple_of(STORES_PER_TICK) {
            self.view.clock.fetch_add(1, Relaxed);
        }
        loop {
            let in_table =
                self.places + blocks <= self.view.table.blocks_max() || self.grow_table(blocks);
            let is_spare = self.spare.largest() > blocks / SEGMENT_BLOCKS + SEGMENTS_MORE;
            let chunks = if is_spare { 0 } else { CHUNKS_BYTES };
            if in_table && self.fits(chunks + MARGIN) {
                return true;
            }
            if !self.make_way() {
                return false;
            }
        }
    }

    /// Sees to it that something of that size may be added; tells whether it may.
    pub(super) fn has_space(&mut self, bytes: usize) -> bool {
        while !self.fits(bytes + MARGIN) {
            if !self.make_way() {
                return false;
            }
        }
        true
    }

    /// Tells whether something of that size may be added as it is.
    pub(super) fn may_grow(&self, bytes: usize) -> bool {
        self.fits(bytes + MARGIN / 2)
    }

    fn fits(&self, bytes: usize) -> bool {
        self.config.bytes_max.is_none_or(|bytes_max| self.bytes + bytes <= bytes_max)
    }

    /// Makes the table one for so many blocks more, if there may be two tables until it is done.
    fn grow_table(&mut self, blocks: usize) -> bool {
        let blocks = self.places * 2 + blocks;
        let is_room = self.fits(Table::bytes_for(blocks) + MARGIN);
        if is_room {
            self.rebuild(blocks);
        }
        is_room
    }

    /// Drops what is coldest; tells whether anything was there to give back.
    fn make_way(&mut self) -> bool {
        let is_over = !self.fits(MARGIN);
        let is_any = self.evict();
        let is_less = is_over && self.evict_chunk();
        if is_any || is_less {
            return true;
        }
        // Entries that no segment needs are given back only all at once.
        let before = self.bytes;
        self.tidy();
        self.bytes < before
    }

    /// Drops the coldest sixteenth of the segments, or as many as are looked for at a time; tells whether
    /// there was any.
    fn evict(&mut self) -> bool {
        let mut coldest = BinaryHeap::with_capacity(EVICTED_MAX);
        let mut count = 0_usize;
        for segment in self.view.segments().filter(|segment| segment.len() > 0) {
            let head = segment.head();
            let depth = Reverse(head.depth.load(Relaxed));
            let this = (head.used.load(Relaxed), depth, segment.first);
            count += 1;
            if coldest.len() < EVICTED_MAX {
                coldest.push(this);
            } else if let Some(mut last) = coldest.peek_mut()
                && *last > this
            {
                *last = this;
            }
        }
        let coldest = coldest.into_sorted_vec().into_iter().take(count.div_ceil(16));
        coldest.for_each(|(.., first)| self.drop_segment(first));
        count > 0
    }

    /// Drops the chunk of which least is in use, and gives its memory back; tells whether there is any.
    pub(super) fn evict_chunk(&mut self) -> bool {
        let used = self.spare.used.iter().enumerate();
        let used = used.filter(|(chunk, _)| self.view.segment_of(*chunk, 0).is_some());
        let Some(chunk) = used.min_by_key(|(_, used)| **used).map(|(chunk, _)| chunk) else {
            return false;
        };
        let firsts: Vec<_> =
            (0..CHUNK_BLOCKS).map_while(|at| self.view.segment_of(chunk, at)).collect();
        for first in firsts {
            if self.view.segment(first).is_some_and(|(segment, _)| segment.len() > 0) {
                self.drop_segment(first);
            }
        }
        self.give_back(chunk);
        true
    }

    /// Forgets all blocks of a segment, whoever holds them.
    fn drop_segment(&mut self, first: Place) {
        let view = Arc::clone(&self.view);
        let Some((segment, _)) = view.segment(first) else { return };
        for (word, live) in view.lanes.live.iter().enumerate() {
            let whole = (0..TIERS).fold(0, |bits, tier| bits | segment.whole(tier, word));
            let partly = view.partials(&segment).filter(|(_, lane, _)| lane.word() == word);
            let lanes = partly.fold(whole, |bits, (_, lane, _)| bits | lane.bit()) & live;
            for number in ones(lanes) {
                let number = to_u32(word * 64 + number);
                let held = view.holding(&segment, Lane { number, tier: 0 }).any;
                self.lanes.subtract(number, count(held));
            }
        }
        let held = count(view.held_by_anyone(&segment));
        self.blocks -= held;
        self.count_dropped(held);
        self.cut(first, 0);
    }
}

/// Blocks that are stored at a time.
pub(super) const STORED_MAX: usize = 4096;

/// What storing so many may add in chunks: a new one of each size, none larger than of the smallest.
const CHUNKS_BYTES: usize = SIZES * Chunk::bytes_for(0);

/// Segments that are needed beside the full ones.
const SEGMENTS_MORE: usize = 16;

/// Segments that are dropped at a time.
const EVICTED_MAX: usize = 4096;

/// What is left before anything is stored: a half for planes and partial entries that it needs, a half
/// for what is there for a moment only.
const MARGIN: usize = 512 << 10;

const STORES_PER_TICK: u64 = 64;
