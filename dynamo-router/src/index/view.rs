//! All that readers see: replaced where there is more or less of it, written to in place otherwise.

use std::sync::Arc;

use super::segment::{Chunk, Segment, TIERS, chunk_of, first_of};
use super::sync::{AtomicU32, AtomicU64, Ordering};
use super::table::{NONE, Place, Table};

/// A state of the index; what it refers to goes on changing.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) table: Arc<Table>,
    pub(super) chunks: Vec<Option<Arc<Chunk>>>,
    pages: Vec<Arc<[Partial]>>,
    pub(super) lanes: Arc<Lanes>,
    /// The index's own time, by which segments are noted to be used; zero for never.
    pub(super) clock: Arc<AtomicU32>,
}

/// Whose bits are whose.
///
/// A *lane* is the number by which coverage knows a slot, from one time that it is cleared to the
/// next: what is written of a lane that has ended says nothing to anyone.
#[derive(Debug, Clone, Default)]
pub(super) struct Lanes {
    /// Those that count, 64 to a word.
    pub(super) live: Vec<u64>,
    /// Each slot's lane.
    pub(super) of_slot: Arc<[u32]>,
    /// Of each lane that counts: as long as any view holds it, the number is not given to another.
    pub(super) lives: Vec<Option<Arc<()>>>,
}

/// A lane's bits in one tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lane {
    pub(super) number: u32,
    pub(super) tier: usize,
}

/// Which blocks of a segment one lane holds in one tier, if not all of them.
#[derive(Debug, Default)]
pub(super) struct Partial {
    pub(super) mask: AtomicU64,
    pub(super) lane: AtomicU32,
    /// The next entry of the same segment.
    pub(super) next: AtomicU32,
}

/// Partial entries of a page.
const PAGE_PARTIALS: usize = if cfg!(dynamo_loom) { 8 } else { 1024 };

impl Lane {
    pub(super) fn new(number: usize, tier: usize) -> Option<Self> {
        Some(Self { number: u32::try_from(number).ok()?, tier })
    }

    pub(super) fn pack(self) -> u32 {
        self.number * Self::TIERS + u32::try_from(self.tier).unwrap_or(0)
    }

    pub(super) fn unpack(lane: u32) -> Self {
        Self { number: lane / Self::TIERS, tier: (lane % Self::TIERS) as usize }
    }

    const TIERS: u32 = 4;

    pub(super) fn word(self) -> usize {
        (self.number / 64) as usize
    }

    pub(super) fn bit(self) -> u64 {
        1 << (self.number % 64)
    }
}

const _: () = assert!(Lane::TIERS as usize == TIERS);

impl Default for View {
    fn default() -> Self {
        let table = Arc::new(Table::for_blocks(0));
        Self {
            table,
            chunks: Vec::new(),
            pages: Vec::new(),
            lanes: Arc::default(),
            clock: Arc::default(),
        }
    }
}

impl View {
    /// Returns the segment of a place, and which of its blocks that is.
    ///
    /// `None` if it is in a chunk that this view does not have, which then is younger than the view.
    pub(super) fn segment(&self, place: Place) -> Option<(Segment<'_>, usize)> {
        Some(self.chunks.get(chunk_of(place))?.as_ref()?.segment(place))
    }

    /// Returns the hash that stands in a place.
    fn hash(&self, place: Place) -> Option<u64> {
        Some(self.chunks.get(chunk_of(place))?.as_ref()?.hash(place))
    }

    /// Tells whether the block in a place, if there is one, has that hash.
    pub(super) fn is_at(&self, place: Place, hash: u64) -> bool {
        self.hash(place) == Some(hash)
    }

    /// Finds a block.
    pub(super) fn find(&self, hash: u64) -> Option<Place> {
        self.table.find(hash, |place| self.is_at(place, hash))
    }

    pub(super) fn partial(&self, number: u32) -> Option<&Partial> {
        let number = number as usize;
        self.pages.get(number / PAGE_PARTIALS)?.get(number % PAGE_PARTIALS)
    }

    /// Returns the number of each partial entry of a segment, whose it is, and its mask.
    pub(super) fn partials(
        &self,
        segment: &Segment<'_>,
    ) -> impl Iterator<Item = (u32, Lane, u64)> + use<'_> {
        let mut number = segment.head().partial.load(Ordering::Relaxed);
        // Mostly that of the entry before: then it takes no look at the list of pages.
        let (mut page_number, mut page) = (usize::MAX, &[][..]);
        let next = move || {
            let at = number as usize / PAGE_PARTIALS;
            if at != page_number {
                (page_number, page) = (at, self.pages.get(at)?);
            }
            let entry = page.get(number as usize % PAGE_PARTIALS)?;
            let lane = Lane::unpack(entry.lane.load(Ordering::Relaxed));
            let read = (number, lane, entry.mask.load(Ordering::Relaxed));
            number = entry.next.load(Ordering::Relaxed);
            Some(read)
        };
        // Of a list that is changed meanwhile no more is read than a list can have.
        std::iter::from_fn(next).take(self.lanes.lives.len() * TIERS)
    }

    /// Adds a chunk of segments of that size and returns their places, the last first; `None` if
    /// there are no more numbers for places.
    pub(super) fn add_chunk(&mut self, size: usize) -> Option<Vec<Place>> {
        let at = self.chunks.iter().position(Option::is_none).unwrap_or(self.chunks.len());
        let first = first_of(at)?;
        let chunk = Chunk::new(size);
        let places = chunk.segments(first).rev().collect();
        self.chunks.reserve_exact((at + 1).saturating_sub(self.chunks.len()));
        self.chunks.resize(self.chunks.len().max(at + 1), None);
        self.chunks[at] = Some(Arc::new(chunk));
        Some(places)
    }

    pub(super) fn remove_chunk(&mut self, chunk: usize) {
        self.chunks[chunk] = None;
        while self.chunks.last().is_some_and(Option::is_none) {
            self.chunks.pop();
        }
    }

    pub(super) fn add_plane(&mut self, chunk: usize, tier: usize, word: usize) {
        if let Some(chunk) = &mut self.chunks[chunk] {
            let mut with_plane = Chunk::clone(chunk);
            with_plane.add_plane(tier, word);
            *chunk = Arc::new(with_plane);
        }
    }

    /// Adds partial entries and returns their numbers.
    pub(super) fn add_page(&mut self) -> impl Iterator<Item = u32> + use<> {
        let end = NONE / 2;
        let first = u32::try_from(self.pages.len() * PAGE_PARTIALS).unwrap_or(end);
        self.pages.reserve_exact(1);
        self.pages.push((0..PAGE_PARTIALS).map(|_| Partial::default()).collect());
        (0..).take(PAGE_PARTIALS).map(move |number| first + number)
    }

    /// Forgets all blocks.
    pub(super) fn remove_all(&mut self) {
        let (lanes, clock) = (Arc::clone(&self.lanes), Arc::clone(&self.clock));
        *self = Self { lanes, clock, ..Self::default() };
    }

    /// Returns the place where segment `number` of a chunk begins, if there is one.
    pub(super) fn segment_of(&self, chunk: usize, number: usize) -> Option<Place> {
        let (chunk, first) = self.chunks.get(chunk)?.as_ref().zip(first_of(chunk))?;
        chunk.segment_at(first, number)
    }

    /// Returns all segments that there are.
    pub(super) fn segments(&self) -> impl Iterator<Item = Segment<'_>> {
        let chunks = self.chunks.iter().enumerate();
        let chunks = chunks.filter_map(|(at, chunk)| Some((chunk.as_ref()?, first_of(at)?)));
        chunks.flat_map(|(chunk, first)| chunk.segments(first).map(|place| chunk.segment(place).0))
    }

    /// Returns its size in bytes, without that of lanes; its lists are there twice while it changes.
    pub(super) fn bytes(&self) -> usize {
        let chunks: usize = self.chunks.iter().flatten().map(|chunk| chunk.bytes()).sum();
        let lists = size_of_val(&*self.chunks) * 2 + size_of_val(&*self.pages) * 2;
        chunks + lists + self.pages.len() * PAGE_BYTES + self.table.bytes()
    }
}

/// Of each entry its number is in a list while it is free, and in two while that list grows.
pub(super) const PAGE_BYTES: usize = PAGE_PARTIALS * (size_of::<Partial>() + 3 * size_of::<u32>());
