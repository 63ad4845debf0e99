//! Segments that are not in use.

use std::sync::atomic::Ordering::Relaxed;

use super::PrefixIndex;
use super::segment::{CHUNK_BLOCKS, Chunk, SIZES, Segment, blocks_of, chunk_of};
use super::table::{NONE, Place};
use super::view::View;

/// Segments that are not in use, by size, and how many of each chunk are.
///
/// Each says where the next one is: it is nowhere else that they are listed.
#[derive(Debug)]
pub(super) struct Spare {
    first: [Place; SIZES],
    len: [usize; SIZES],
    pub(super) used: Vec<usize>,
}

impl Default for Spare {
    fn default() -> Self {
        Self { first: [NONE; SIZES], len: [0; SIZES], used: Vec::new() }
    }
}

impl Spare {
    /// Returns how many there are of the largest size.
    pub(super) fn largest(&self) -> usize {
        self.len[SIZES - 1]
    }

    fn push(&mut self, segment: &Segment<'_>) {
        let size = segment.chunk.size();
        segment.head().next.store(self.first[size], Relaxed);
        self.first[size] = segment.first;
        self.len[size] += 1;
    }

    /// Takes one of that size, or of the next larger one of which there are any.
    fn pop(&mut self, view: &View, size: usize) -> Option<Place> {
        let size = (size..SIZES).find(|size| self.len[*size] > 0)?;
        let first = self.first[size];
        let (segment, _) = view.segment(first)?;
        self.first[size] = segment.head().next.load(Relaxed);
        self.len[size] -= 1;
        Some(first)
    }

    /// Forgets those of a chunk of that size.
    fn forget(&mut self, view: &View, chunk: usize, size: usize) {
        let mut at = self.first[size];
        let mut last = None;
        self.first[size] = NONE;
        while let Some((segment, _)) = view.segment(at) {
            at = segment.head().next.load(Relaxed);
            if chunk_of(segment.first) == chunk {
                self.len[size] -= 1;
                continue;
            }
            segment.head().next.store(NONE, Relaxed);
            match last.replace(segment) {
                None => self.first[size] = segment.first,
                Some(last) => last.head().next.store(segment.first, Relaxed),
            }
        }
    }
}

impl PrefixIndex {
    /// Takes an empty segment of that size, or a larger one if there may be no more of it; `None` if
    /// there is none at all.
    pub(super) fn allocate(&mut self, size: usize, depth: u32) -> Option<Place> {
        if self.spare.len[size] == 0 && self.may_grow(Chunk::bytes_for(size)) {
            let places = self.change(|view| view.add_chunk(size)).unwrap_or_default();
            let segments = places.into_iter().filter_map(|place| self.view.segment(place));
            segments.for_each(|(segment, _)| self.spare.push(&segment));
        }
        let first = self.spare.pop(&self.view, size)?;
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
        let Some((segment, _)) = self.view.segment(first) else { return };
        let (size, chunk) = (segment.chunk.size(), chunk_of(first));
        self.spare.push(&segment);
        self.spare.used[chunk] -= 1;
        if self.spare.len[size] * blocks_of(size) > SPARE_BLOCKS {
            self.give_back(chunk);
        }
    }

    /// Gives the memory of a chunk back if nothing in it is in use; tells whether it did.
    pub(super) fn give_back(&mut self, chunk: usize) -> bool {
        // Where the last of its segments was freed that may have been done.
        let there = self.view.segment_of(chunk, 0).and_then(|place| self.view.segment(place));
        let Some((segment, _)) = there.filter(|_| self.spare.used[chunk] == 0) else {
            return false;
        };
        self.spare.forget(&self.view, chunk, segment.chunk.size());
        self.change(|view| view.remove_chunk(chunk));
        true
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
