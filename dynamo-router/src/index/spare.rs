//! Segments that are not in use.

use std::sync::atomic::Ordering::Relaxed;

use super::PrefixIndex;
use super::segment::{CHUNK_BLOCKS, Chunk, SIZES, blocks_of, chunk_of};
use super::table::Place;

/// Segments that are not in use, by size, and how many of each chunk are.
#[derive(Debug, Default)]
pub(super) struct Spare {
    pub(super) segments: [Vec<Place>; SIZES],
    pub(super) used: Vec<usize>,
}

impl PrefixIndex {
    /// Takes an empty segment of that size, or a larger one if there may be no more of it; `None` if
    /// there is none at all.
    pub(super) fn allocate(&mut self, size: usize, depth: u32) -> Option<Place> {
        if self.spare.segments[size].is_empty() && self.may_grow(Chunk::bytes_for(size)) {
            self.spare.segments[size] =
                self.change(|view| view.add_chunk(size)).unwrap_or_default();
        }
        let first = self.spare.segments[size..].iter_mut().find_map(Vec::pop)?;
        let chunk = chunk_of(first);
        self.spare.used.resize(self.spare.used.len().max(chunk + 1), 0);
        self.spare.used[chunk] += 1;
        let now = self.now();
        if let Some((segment, _)) = self.view.segment(first) {
            segment.write(|| segment.reset(depth, now));
        }
        Some(first)
    }

    /// Takes an empty segment back.
    pub(super) fn free(&mut self, first: Place) {
        let Some(size) = self.view.segment(first).map(|(segment, _)| segment.chunk.size()) else {
            return;
        };
        let chunk = chunk_of(first);
        self.spare.segments[size].push(first);
        self.spare.used[chunk] -= 1;
        if self.spare.segments[size].len() * blocks_of(size) > SPARE_BLOCKS {
            self.give_back(chunk);
        }
    }

    /// Gives the memory of a chunk back if nothing in it is in use.
    pub(super) fn give_back(&mut self, chunk: usize) {
        // Where the last of its segments was freed that may have been done.
        if self.spare.used[chunk] == 0 && self.view.segment_of(chunk, 0).is_some() {
            for segments in &mut self.spare.segments {
                segments.retain(|first| chunk_of(*first) != chunk);
            }
            self.change(|view| view.remove_chunk(chunk));
        }
    }

    /// Gives back what stands behind the first `len` blocks of a segment, which nobody holds.
    pub(super) fn cut(&mut self, first: Place, len: usize) {
        let Some((segment, _)) = self.view.segment(first) else { return };
        let old = segment.len();
        let hashes = segment.hashes()[..old].iter().zip(first..).skip(len);
        hashes.for_each(|(hash, place)| self.view.table.remove(hash.load(Relaxed), place));
        self.places -= old - len;
        segment.write(|| self.partials.shorten(&self.view, &segment, len));
        if len == 0 {
            self.free(first);
        }
    }
}

/// Room for blocks, in empty segments of one size, that is kept.
const SPARE_BLOCKS: usize = 2 * CHUNK_BLOCKS;
