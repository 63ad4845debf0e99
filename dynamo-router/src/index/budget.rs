//! How much memory the index may take, and what it drops to stay below.

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::PrefixIndex;
use super::segment::{CHUNK_BLOCKS, SEGMENT_BLOCKS, SIZES, TIERS};
use super::table::{Place, Table};
use super::view::Lane;

/// How an index is set up.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct IndexConfig {
    /// Bytes that blocks and who holds them may take; `None` for as many as it gets.
    pub bytes_max: Option<usize>,
}

impl IndexConfig {
    /// Takes no more than `bytes` of memory, or [`BYTES_MIN`](Self::BYTES_MIN) if that is more.
    ///
    /// Beyond it the ends of sequences are dropped that were not stored or found for the longest time,
    /// and counted.
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
        let Some(bytes_max) = self.config.bytes_max else { return true };
        self.stores += 1;
        if self.stores.is_multiple_of(STORES_PER_TICK) {
            self.view.clock.fetch_add(1, Relaxed);
        }
        loop {
            let is_room = |more: usize| self.bytes + more + MARGIN <= bytes_max;
            let in_table = self.places + blocks <= self.view.table.blocks_max()
                || is_room(Table::bytes_for(self.places * 2 + blocks));
            let segments = self.spare.segments[SIZES - 1].len();
            let in_segments = is_room(0) && segments > blocks / SEGMENT_BLOCKS + SEGMENTS_MORE;
            if in_table && (in_segments || is_room(CHUNKS_BYTES)) {
                return true;
            }
            let is_over = !is_room(0);
            if !self.evict() {
                return false;
            }
            if is_over {
                self.evict_chunk();
            }
        }
    }

    /// Tells whether a chunk of segments of that size may be added.
    pub(super) fn may_grow(&self, bytes: usize) -> bool {
        self.config.bytes_max.is_none_or(|bytes_max| self.bytes + bytes + MARGIN / 2 <= bytes_max)
    }

    /// Drops the coldest sixteenth of the segments; tells whether there was any.
    fn evict(&mut self) -> bool {
        let segments = self.view.segments().filter(|segment| segment.len() > 0);
        let mut segments: Vec<_> = segments
            .map(|segment| {
                let head = segment.head();
                let depth = Reverse(head.depth.load(Relaxed));
                (head.used.load(Relaxed), depth, segment.first)
            })
            .collect();
        segments.sort_unstable();
        let count = segments.len().div_ceil(16);
        segments.iter().take(count).for_each(|(.., first)| self.drop_segment(*first));
        count > 0
    }

    /// Drops the chunk of which least is in use, and gives its memory back.
    pub(super) fn evict_chunk(&mut self) {
        let used = self.spare.used.iter().enumerate();
        let used = used.filter(|(chunk, _)| self.view.segment_of(*chunk, 0).is_some());
        let Some(chunk) = used.min_by_key(|(_, used)| **used).map(|(chunk, _)| chunk) else {
            return;
        };
        let firsts: Vec<_> =
            (0..CHUNK_BLOCKS).map_while(|at| self.view.segment_of(chunk, at)).collect();
        for first in firsts {
            if self.view.segment(first).is_some_and(|(segment, _)| segment.len() > 0) {
                self.drop_segment(first);
            }
        }
        self.give_back(chunk);
    }

    /// Forgets all blocks of a segment, whoever holds them.
    fn drop_segment(&mut self, first: Place) {
        let view = Arc::clone(&self.view);
        let Some((segment, _)) = view.segment(first) else { return };
        for (word, live) in view.lanes.live.iter().enumerate() {
            let whole = (0..TIERS).fold(0, |bits, tier| bits | segment.whole(tier, word));
            let partly = view.partials(&segment).filter(|(_, lane, _)| lane.word() == word);
            let lanes = partly.fold(whole, |bits, (_, lane, _)| bits | lane.bit()) & live;
            for number in super::path::ones(lanes) {
                let number = u32::try_from(word * 64 + number).unwrap_or(u32::MAX);
                let held = view.holding(&segment, Lane { number, tier: 0 }).any;
                self.lanes.subtract(number, held.count_ones() as usize);
            }
        }
        let held = view.held_by_anyone(&segment).count_ones() as usize;
        self.blocks -= held;
        self.count_dropped(held);
        self.cut(first, 0);
    }
}

/// Blocks that are stored at a time.
pub(super) const STORED_MAX: usize = 4096;

/// What storing so many may add in chunks, a new one of each size.
const CHUNKS_BYTES: usize = 5 * (CHUNK_BLOCKS * 8 + CHUNK_BLOCKS / 4 * 24);

/// Segments that are needed beside the full ones.
const SEGMENTS_MORE: usize = 16;

/// What is left for planes and partial entries.
const MARGIN: usize = 512 << 10;

const STORES_PER_TICK: u64 = 64;
