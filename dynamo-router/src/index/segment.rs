//! Runs of blocks: their hashes, and what is known of each run as a whole.
//!
//! A *segment* is a run of up to 64 blocks of one sequence, each behind the one before. Segments with
//! room for equally many stand in *chunks*. A reader knows by a segment's version whether what it
//! has read belongs together.

use std::hint::black_box;
use std::sync::Arc;

use dynamo_core::protocol::SequenceHash;

use super::sync::{AtomicU32, AtomicU64, Ordering, fence, spin_loop};
use super::table::{NONE, Place};

/// Blocks of a segment at most: as many as a mask has bits.
pub(super) const SEGMENT_BLOCKS: usize = 64;

/// Hashes that a chunk has room for.
pub(super) const CHUNK_BLOCKS: usize = 1 << CHUNK_BITS;
const CHUNK_BITS: u32 = if cfg!(dynamo_loom) { 3 } else { 14 };

/// Segments have room for 4, 8, 16, 32 or 64 blocks.
pub(super) const SIZES: usize = 5;
const SMALLEST: usize = 4;

/// Tiers that are told apart; see [`Tier`](dynamo_core::protocol::Tier).
pub(super) const TIERS: usize = 4;

/// Segments of one size.
#[derive(Debug, Clone)]
pub(super) struct Chunk {
    /// Blocks that a segment has room for, as the power of two.
    shift: u32,
    hashes: Arc<[AtomicU64]>,
    heads: Arc<[Head]>,
    /// By tier and by 64 lanes, a word per segment: who holds all of its blocks. What nobody ever
    /// held is not there.
    planes: [Vec<Option<Plane>>; TIERS],
}

type Plane = Arc<[AtomicU64]>;

/// What is known of a segment but for its hashes and planes.
#[derive(Debug)]
pub(super) struct Head {
    /// Odd while it is written to.
    version: AtomicU32,
    pub(super) len: AtomicU32,
    /// The first of its partial entries.
    pub(super) partial: AtomicU32,
    /// Where the sequence probably goes on; may be stale.
    pub(super) next: AtomicU32,
    /// Blocks before it in the sequence, as far as is known.
    pub(super) depth: AtomicU32,
    /// When it was stored or found last, in the index's own time.
    pub(super) used: AtomicU32,
}

/// A segment where it stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment<'a> {
    pub(super) chunk: &'a Chunk,
    number: usize,
    /// Where its first block is.
    pub(super) first: Place,
}

impl Default for Head {
    fn default() -> Self {
        let [version, len, depth, used] = [0; 4].map(AtomicU32::new);
        let [partial, next] = [NONE; 2].map(AtomicU32::new);
        Self { version, len, partial, next, depth, used }
    }
}

/// Returns the number of the chunk that a place is in.
pub(super) fn chunk_of(place: Place) -> usize {
    (place >> CHUNK_BITS) as usize
}

/// Returns the first place of a chunk, if places go that far.
pub(super) fn first_of(chunk: usize) -> Option<Place> {
    let last = u32::try_from((chunk + 1) << CHUNK_BITS).ok()?;
    // The last place of all and the one before stand for none.
    Some(last - (1 << CHUNK_BITS))
}

/// Returns the smallest size of segments that have room for so many blocks.
pub(super) fn size_for(blocks: usize) -> usize {
    let blocks = blocks.clamp(SMALLEST, SEGMENT_BLOCKS).next_power_of_two();
    (blocks / SMALLEST).trailing_zeros() as usize
}

/// Returns how many blocks a segment of that size has room for.
pub(super) const fn blocks_of(size: usize) -> usize {
    SMALLEST << size
}

/// Returns the mask of the first `len` blocks.
pub(super) fn first_blocks(len: usize) -> u64 {
    if len == 0 { 0 } else { u64::MAX >> (SEGMENT_BLOCKS - len) }
}

fn zeros(words: usize) -> Plane {
    (0..words).map(|_| AtomicU64::new(0)).collect()
}

impl Chunk {
    pub(super) fn new(size: usize) -> Self {
        let heads = (0..CHUNK_BLOCKS / blocks_of(size)).map(|_| Head::default()).collect();
        let shift = blocks_of(size).trailing_zeros();
        Self { shift, hashes: zeros(CHUNK_BLOCKS), heads, planes: Default::default() }
    }

    /// Returns the size of its segments, below [`SIZES`].
    pub(super) fn size(&self) -> usize {
        size_for(1 << self.shift)
    }

    /// Returns the places of its segments, if its own first place is `first`.
    pub(super) fn segments(&self, first: Place) -> impl DoubleEndedIterator<Item = Place> + use<> {
        (first..first + (1 << CHUNK_BITS)).step_by(1 << self.shift)
    }

    /// Returns the place of one of its segments, if there are so many.
    pub(super) fn segment_at(&self, first: Place, number: usize) -> Option<Place> {
        let offset = u32::try_from(number << self.shift).ok()?;
        (number < self.heads.len()).then_some(first + offset)
    }

    /// Returns the size in bytes of a chunk of segments of that size, without planes.
    pub(super) const fn bytes_for(size: usize) -> usize {
        CHUNK_BLOCKS * size_of::<u64>() + CHUNK_BLOCKS / blocks_of(size) * size_of::<Head>()
    }

    pub(super) fn segment(&self, place: Place) -> (Segment<'_>, usize) {
        let at = place as usize % CHUNK_BLOCKS;
        let mask = (1 << self.shift) - 1;
        let segment = Segment { chunk: self, number: at >> self.shift, first: place & !mask };
        (segment, (place & mask) as usize)
    }

    pub(super) fn hash(&self, place: Place) -> u64 {
        self.hashes[place as usize % CHUNK_BLOCKS].load(Ordering::Relaxed)
    }

    pub(super) fn has_plane(&self, tier: usize, word: usize) -> bool {
        self.planes[tier].get(word).is_some_and(Option::is_some)
    }

    pub(super) fn add_plane(&mut self, tier: usize, word: usize) {
        let planes = &mut self.planes[tier];
        planes.reserve_exact((word + 1).saturating_sub(planes.len()));
        planes.resize(planes.len().max(word + 1), None);
        planes[word] = Some(zeros(self.heads.len()));
    }

    /// Returns its size in bytes.
    pub(super) fn bytes(&self) -> usize {
        let planes: usize = self.planes.iter().map(|planes| planes.iter().flatten().count()).sum();
        let words = self.hashes.len() + planes * self.heads.len();
        words * size_of::<u64>() + size_of_val(&*self.heads) + self.lists_bytes()
    }

    /// Returns what a plane for a word of lanes takes, while the lists of planes are there twice.
    pub(super) fn plane_bytes(&self, word: usize) -> usize {
        let list = (word + 1) * size_of::<Option<Plane>>();
        self.heads.len() * size_of::<u64>() + self.lists_bytes() + list
    }

    /// Returns the size in bytes of the lists of planes.
    fn lists_bytes(&self) -> usize {
        self.planes.iter().map(|planes| size_of_val(&**planes)).sum::<usize>() + size_of::<Self>()
    }
}

impl<'a> Segment<'a> {
    pub(super) fn head(&self) -> &'a Head {
        &self.chunk.heads[self.number]
    }

    /// Notes that it was used.
    pub(super) fn use_at(&self, now: u32) {
        if self.head().used.load(Ordering::Relaxed) != now {
            self.head().used.store(now, Ordering::Relaxed);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.head().len.load(Ordering::Relaxed) as usize
    }

    pub(super) fn room(&self) -> usize {
        1 << self.chunk.shift
    }

    /// Returns the place behind it.
    pub(super) fn end(&self) -> Place {
        self.first.wrapping_add(1 << self.chunk.shift)
    }

    /// Returns its hashes, those at the end included that stand for no block.
    pub(super) fn hashes(&self) -> &'a [AtomicU64] {
        let first = self.number << self.chunk.shift;
        &self.chunk.hashes[first..first + self.room()]
    }

    pub(super) fn hash(&self, offset: usize) -> u64 {
        self.hashes()[offset].load(Ordering::Relaxed)
    }

    /// Returns the lanes of one word that hold all of it in a tier.
    pub(super) fn whole(&self, tier: usize, word: usize) -> u64 {
        match self.chunk.planes[tier].get(word) {
            Some(Some(plane)) => plane[self.number].load(Ordering::Relaxed),
            _ => 0,
        }
    }

    /// Tells whether anyone may hold all of it in a tier but the fastest.
    pub(super) fn has_slower(&self) -> bool {
        self.chunk.planes.iter().skip(1).any(|planes| !planes.is_empty())
    }

    /// Returns the lanes that hold all of it, as (tier, word, bits).
    pub(super) fn planes(&self) -> impl Iterator<Item = (usize, usize, u64)> + use<'a> {
        let number = self.number;
        self.chunk.planes.iter().enumerate().flat_map(move |(tier, planes)| {
            let there = planes.iter().enumerate();
            let there = there.filter_map(|(word, plane)| Some((word, plane.as_ref()?)));
            there.map(move |(word, plane)| (tier, word, plane[number].load(Ordering::Relaxed)))
        })
    }

    /// Writes which lanes of a word hold all of it; there must be the plane.
    pub(super) fn set_whole(&self, tier: usize, word: usize, bits: u64) {
        if let Some(Some(plane)) = self.chunk.planes[tier].get(word) {
            plane[self.number].store(bits, Ordering::Relaxed);
        }
    }

    /// Returns how many of `hashes` stand in it from `offset` on.
    ///
    /// A hash is that of a block and of all before it: where the last ones agree, all do.
    #[inline]
    pub(super) fn matching(&self, offset: usize, hashes: &[SequenceHash]) -> usize {
        let end = self.len().saturating_sub(offset).min(hashes.len());
        let first = (self.number << self.chunk.shift) + offset;
        let hash = |at: usize| self.chunk.hashes[first + at].load(Ordering::Relaxed);
        if end == 0 || hash(end - 1) == hashes[end - 1].0 {
            return end;
        }
        self.matching_before(offset, &hashes[..end - 1])
    }

    /// Returns how many stand in it where those behind them do not.
    #[cold]
    fn matching_before(&self, offset: usize, hashes: &[SequenceHash]) -> usize {
        let is_same = |at: usize| self.hash(offset + at) == hashes[at].0;
        let (mut same, mut end) = (0, hashes.len());
        while same < end {
            let middle = same.midpoint(end);
            if is_same(middle) {
                same = middle + 1;
            } else {
                end = middle;
            }
        }
        same
    }

    /// Brings what a query of `blocks` more looks at into the cache, for this segment and those behind
    /// it, all at a time; returns for how many.
    pub(super) fn fetch_row(&self, blocks: usize) -> usize {
        let chunk = self.chunk;
        let row = (blocks >> chunk.shift).min(ROW).min(chunk.heads.len() - self.number).max(1);
        let heads = &chunk.heads[self.number..self.number + row];
        let mut all = 0;
        for (at, head) in heads.iter().enumerate() {
            let last = ((self.number + at + 1) << chunk.shift) - 1;
            all ^= u64::from(head.len.load(Ordering::Relaxed));
            all ^= chunk.hashes[last].load(Ordering::Relaxed);
        }
        for plane in chunk.planes[0].iter().flatten() {
            all ^= plane[self.number].load(Ordering::Relaxed);
            all ^= plane[self.number + row - 1].load(Ordering::Relaxed);
        }
        black_box(all);
        row
    }

    /// Returns its version; `None` while it is written to.
    fn version(&self) -> Option<u32> {
        let version = self.head().version.load(Ordering::Acquire);
        version.is_multiple_of(2).then_some(version)
    }

    /// Tells whether all that was read since it had that version belongs together.
    fn is_still(&self, version: u32) -> bool {
        fence(Ordering::Acquire);
        self.head().version.load(Ordering::Relaxed) == version
    }

    /// Reads what belongs together.
    ///
    /// Who reads waits for nobody: after a few attempts the answer is `None`.
    #[inline]
    pub(super) fn read<T>(&self, mut read: impl FnMut() -> T) -> Option<T> {
        for _ in 0..ATTEMPTS {
            if let Some(version) = self.version() {
                let value = read();
                if self.is_still(version) {
                    return Some(value);
                }
            }
            spin_loop();
        }
        None
    }

    /// Writes what belongs together; only one thread does, and not within another write.
    pub(super) fn write<T>(&self, write: impl FnOnce() -> T) -> T {
        let version = &self.head().version;
        let before = version.load(Ordering::Relaxed);
        version.store(before.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        let value = write();
        version.store(before.wrapping_add(2), Ordering::Release);
        value
    }
}

/// A write is over in less time, unless its thread was stopped in the middle.
const ATTEMPTS: usize = if cfg!(dynamo_loom) { 2 } else { 1_000 };

/// Segments that are fetched at a time: about as many lines as a core waits for at once.
const ROW: usize = 8;
