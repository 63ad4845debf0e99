//! Sequence hash → place: read by any thread while one writes.

use std::hint::black_box;

use dynamo_core::protocol::SequenceHash;

use super::bits::{low_bits, spread};
use super::sync::{AtomicU64, Ordering};

/// Where a block is: the number of its hash among all that segments have room for.
pub(super) type Place = u32;

/// No place, and nothing else that is numbered so either.
pub(super) const NONE: u32 = u32::MAX;

/// Buckets of a cache line each; a block that finds its own full stands in a later one.
///
/// A hash is spread over 32 bits: these say the bucket, and what is left of them is a tag, which a cell
/// shows beside the place plus one, so that hardly ever another block is looked at. Bucket and tag are
/// all that it takes to fill a table of another size, in order and without a look at the blocks.
/// A bucket counts the blocks that had to go past it: where that is zero a search ends, and nothing is
/// left behind by a block that is removed.
#[derive(Debug)]
pub(super) struct Table(Box<[Bucket]>);

#[derive(Debug, Default)]
#[repr(align(64))]
struct Bucket {
    cells: [AtomicU64; CELLS],
    passed: AtomicU64,
}

/// Where a block is said to be.
struct Found<'a> {
    /// Buckets before the one that it stands in, from its own on.
    distance: usize,
    cell: &'a AtomicU64,
    place: Place,
}

const CELLS: usize = 7;
const EMPTY: u64 = 0;

impl Table {
    /// Creates a table in which so many blocks take `FILL` percent of the cells.
    pub(super) fn for_blocks(blocks: usize) -> Self {
        Self((0..buckets_for(blocks)).map(|_| Bucket::default()).collect())
    }

    /// Returns how many blocks may be in it.
    pub(super) fn blocks_max(&self) -> usize {
        self.0.len() * CELLS * FILL / 100
    }

    /// Returns its size in bytes.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.0)
    }

    /// Returns the size in bytes of a table for so many blocks.
    pub(super) fn bytes_for(blocks: usize) -> usize {
        buckets_for(blocks) * size_of::<Bucket>()
    }

    /// Finds the place of a block: the one of which `is_it` says so.
    pub(super) fn find(&self, hash: u64, is_it: impl Fn(Place) -> bool) -> Option<Place> {
        self.locate(self.home(hash), is_it).map(|found| found.place)
    }

    /// Finds the cell of a block.
    #[inline]
    fn locate(
        &self,
        (home, tag): (usize, u32),
        is_it: impl Fn(Place) -> bool,
    ) -> Option<Found<'_>> {
        for (distance, bucket) in self.from(home).enumerate() {
            if let Some((at, place)) = find_in(&bucket.cells(), tag, &is_it) {
                return Some(Found { distance, cell: &bucket.cells[at], place });
            }
            if bucket.passed.load(Ordering::Relaxed) == 0 {
                break;
            }
        }
        None
    }

    /// Adds a block, unless it is there: then returns where.
    ///
    /// # Panics
    /// If every cell is taken, which [`blocks_max`](Self::blocks_max) is far below.
    pub(super) fn insert(
        &self,
        hash: u64,
        place: Place,
        is_it: impl Fn(Place) -> bool,
    ) -> Option<Place> {
        let (home, tag) = self.home(hash);
        let mut free = None;
        for (distance, bucket) in self.from(home).enumerate() {
            let cells = bucket.cells();
            if let Some((_, there)) = find_in(&cells, tag, &is_it) {
                return Some(there);
            }
            free = free.or_else(|| Some((distance, &bucket.cells[first_empty(&cells)?])));
            if free.is_some() && bucket.passed.load(Ordering::Relaxed) == 0 {
                break;
            }
        }
        self.put(home, free.expect("a table has empty cells"), pack(tag, place));
        None
    }

    /// Creates a table of the same blocks, with room for so many.
    pub(super) fn resized(&self, blocks: usize) -> Self {
        let resized = Self::for_blocks(blocks);
        for (at, bucket) in self.0.iter().enumerate() {
            for (tag, place) in bucket.cells().into_iter().filter_map(unpack) {
                let spread = self.spread_of(at, tag).expect("a cell is behind its bucket");
                resized.insert_new(spread, place);
            }
        }
        resized
    }

    /// Adds a block that is not there.
    ///
    /// # Panics
    /// As [`insert`](Self::insert).
    fn insert_new(&self, spread: u32, place: Place) {
        let (home, tag) = self.home_of(spread);
        let free = self.from(home).enumerate().find_map(|(distance, bucket)| {
            Some((distance, &bucket.cells[first_empty(&bucket.cells())?]))
        });
        self.put(home, free.expect("a table has empty cells"), pack(tag, place));
    }

    fn put(&self, home: usize, (distance, cell): (usize, &AtomicU64), block: u64) {
        if distance > 0 {
            self.from(home).take(distance).for_each(|bucket| add(&bucket.passed, 1));
        }
        cell.store(block, Ordering::Release);
    }

    /// Says that a block is at another place.
    pub(super) fn replace(&self, hash: u64, old: Place, new: Place) {
        let (home, tag) = self.home(hash);
        if let Some(found) = self.locate((home, tag), |place| place == old) {
            found.cell.store(pack(tag, new), Ordering::Release);
        }
    }

    /// Removes a block.
    pub(super) fn remove(&self, hash: u64, place: Place) {
        let (home, tag) = self.home(hash);
        if let Some(found) = self.locate((home, tag), |other| other == place) {
            found.cell.store(EMPTY, Ordering::Relaxed);
            self.from(home).take(found.distance).for_each(|bucket| add(&bucket.passed, u64::MAX));
        }
    }

    /// Brings the cells of blocks that are looked up next into the cache, all at a time.
    pub(super) fn fetch(&self, hashes: &[SequenceHash]) {
        let load = |hash: &SequenceHash| self.0[self.home(hash.0).0].passed.load(Ordering::Relaxed);
        black_box(hashes.iter().fold(0, |all, hash| all ^ load(hash)));
    }

    /// Returns the bucket that a block belongs in, and the tag that its cell shows.
    fn home(&self, hash: u64) -> (usize, u32) {
        self.home_of(low_bits(spread(hash) >> 32))
    }

    fn home_of(&self, spread: u32) -> (usize, u32) {
        let at = u64::from(spread) * self.0.len() as u64;
        (usize::try_from(at >> 32).unwrap_or(0), low_bits(at))
    }

    /// Returns the spread hash of a cell that shows `tag` in bucket `at`, or went past others to there.
    ///
    /// From its own bucket it divides evenly, and from no other, since the number of buckets is odd.
    fn spread_of(&self, at: usize, tag: u32) -> Option<u32> {
        let buckets = self.0.len() as u64;
        let mut home = at;
        (0..buckets).find_map(|_| {
            let product = (home as u64) << 32 | u64::from(tag);
            home = home.checked_sub(1).unwrap_or(self.0.len() - 1);
            product.is_multiple_of(buckets).then(|| low_bits(product / buckets))
        })
    }

    /// Goes through the buckets, `home` first.
    fn from(&self, home: usize) -> impl Iterator<Item = &Bucket> {
        let mut at = home;
        (0..self.0.len()).map(move |_| {
            let bucket = &self.0[at];
            at = if at + 1 == self.0.len() { 0 } else { at + 1 };
            bucket
        })
    }
}

impl Bucket {
    #[inline]
    fn cells(&self) -> [u64; CELLS] {
        self.cells.each_ref().map(|cell| cell.load(Ordering::Acquire))
    }
}

/// Finds the block that `is_it` knows among those that show `tag`.
#[inline]
fn find_in(
    cells: &[u64; CELLS],
    tag: u32,
    is_it: impl Fn(Place) -> bool,
) -> Option<(usize, Place)> {
    let mut alike = bits(cells, |cell| low_bits(cell >> 32) == tag);
    while alike != 0 {
        let at = alike.trailing_zeros() as usize;
        // An empty cell may look alike, too.
        if let Some(place) = low_bits(cells[at]).checked_sub(1).filter(|place| is_it(*place)) {
            return Some((at, place));
        }
        alike &= alike - 1;
    }
    None
}

#[inline]
fn first_empty(cells: &[u64; CELLS]) -> Option<usize> {
    let empty = bits(cells, |cell| cell == EMPTY);
    (empty != 0).then(|| empty.trailing_zeros() as usize)
}

/// Returns a bit for each cell of which `is_it` says so: all are looked at, without a branch.
#[inline]
fn bits(cells: &[u64; CELLS], is_it: impl Fn(u64) -> bool) -> u32 {
    cells.iter().rev().fold(0, |bits, cell| bits << 1 | u32::from(is_it(*cell)))
}

fn buckets_for(blocks: usize) -> usize {
    (blocks * 100 / (CELLS * FILL) + 1).max(BUCKETS_MIN) | 1
}

fn pack(tag: u32, place: Place) -> u64 {
    u64::from(tag) << 32 | u64::from(place + 1)
}

fn unpack(cell: u64) -> Option<(u32, Place)> {
    Some((low_bits(cell >> 32), low_bits(cell).checked_sub(1)?))
}

/// Adds where only one thread writes.
fn add(count: &AtomicU64, more: u64) {
    count.store(count.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

/// Percent of the cells: beyond it too many blocks have to go past their bucket.
const FILL: usize = 70;
const BUCKETS_MIN: usize = if cfg!(dynamo_loom) { 1 } else { 16 };

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_table_is_a_map_whatever_collides(
            ops in prop::collection::vec((0..60_u64, any::<bool>()), 0..400),
            sizes in prop::collection::vec(60..2000_usize, 0..4),
        ) {
            let (mut table, mut model) = (Table::for_blocks(60), HashMap::new());
            let hashes: Vec<_> = (0..60).collect();
            // Few different upper halves: what is looked at is often another block.
            let is_it = |hash: u64| move |place: Place| u64::from(place) % 60 == hash;
            for (number, (hash, is_removed)) in (0..).zip(ops) {
                let place = number * 60 + low_bits(hash);
                match (is_removed, model.get(&hash).copied()) {
                    (true, Some(place)) => {
                        table.remove(hash, place);
                        model.remove(&hash);
                    }
                    (true, None) => {}
                    (false, there) => {
                        prop_assert_eq!(table.insert(hash, place, is_it(hash)), there);
                        model.entry(hash).or_insert(place);
                    }
                }
                for hash in &hashes {
                    prop_assert_eq!(table.find(*hash, is_it(*hash)), model.get(hash).copied());
                }
            }
            for size in sizes {
                table = table.resized(size);
                for hash in &hashes {
                    prop_assert_eq!(table.find(*hash, is_it(*hash)), model.get(hash).copied());
                }
            }
            model.into_iter().for_each(|(hash, place)| table.remove(hash, place));
            prop_assert!(table.0.iter().all(|bucket| bucket.passed.load(Ordering::Relaxed) == 0));
        }
    }
}
