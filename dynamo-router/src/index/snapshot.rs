//! The index as bytes: written at once, and read again by another process.
//!
//! Words of 64 bits, the lowest byte first:
//!
//! ```text
//! magic, version
//! number of workers
//! worker: instance, rank; from here on it is the number that it has in this list
//! number of segments
//! segment: blocks | goes on in the next one << 8 | entries << 16 | blocks before it << 32
//!          its hashes
//!          entry: 64 workers << 8 | tier, and which of these hold all of it
//!              or 1 << 63 | worker << 8 | tier, and the mask of the blocks that are held
//! checksum of all words before
//! ```

use std::error::Error;
use std::fmt;
use std::sync::atomic::Ordering::Relaxed;

use dynamo_core::protocol::{InstanceId, SequenceHash, WorkerId};

use super::bits::{end_of, low_bits, ones};
use super::segment::{SEGMENT_BLOCKS, Segment, TIERS, first_blocks, size_for};
use super::table::Place;
use super::view::{Lane, View};
use super::words::{Words, seal};
use super::{IndexConfig, PrefixIndex};
use crate::workers::Slot;

/// Why bytes are not taken for an index, or for what a router knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotError {
    /// They do not begin as a snapshot does.
    NotASnapshot,
    /// They are of a version that this code does not know.
    Version(u64),
    /// They end too early, or do not end where they should.
    Length,
    /// They are not what was written.
    Checksum,
    /// They say what no index says; the text names it.
    Damaged(&'static str),
    /// The index would be larger than its budget, or than what was read can mean.
    TooLarge,
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotASnapshot => write!(f, "not a snapshot, or of something else"),
            Self::Version(version) => {
                write!(f, "snapshot of version {version}, which is not known")
            }
            Self::Length => write!(f, "snapshot of a wrong length"),
            Self::Checksum => write!(f, "snapshot with a wrong checksum"),
            Self::Damaged(what) => write!(f, "snapshot with a wrong {what}"),
            Self::TooLarge => write!(f, "snapshot of an index that is too large"),
        }
    }
}

impl Error for SnapshotError {}

impl PrefixIndex {
    /// Writes down all blocks, and who holds them: the worker that `name` says is in a slot.
    ///
    /// What only workers without a name hold is left out.
    pub fn snapshot(&self, name: impl Fn(Slot) -> Option<WorkerId>) -> Vec<u8> {
        let slots = self.lanes.slots();
        let names: Vec<_> = slots.into_iter().map(|slot| name(slot?)).collect();
        let mut words = vec![MAGIC, VERSION];
        let numbers = write_workers(&names, &mut words);
        let count_at = words.len();
        words.push(0);
        let mut segments = self.view.segments().filter(|segment| segment.len() > 0).peekable();
        while let Some(segment) = segments.next() {
            let goes_on = segments.peek().is_some_and(|next| segment.goes_on_at(next.first));
            let is_any = write_segment(&self.view, &numbers, &segment, goes_on, &mut words);
            words[count_at] += u64::from(is_any);
        }
        seal(words.into_iter().flat_map(u64::to_le_bytes).collect())
    }

    /// Reads what [`snapshot`](Self::snapshot) wrote: each worker holds what it held, in the slot where
    /// `place` puts it.
    ///
    /// Workers without a place are left out, and what only they held. No more memory is taken than a
    /// small multiple of `bytes`, and than the budget.
    pub fn restore(
        config: IndexConfig,
        bytes: &[u8],
        place: impl FnMut(WorkerId) -> Option<Slot>,
    ) -> Result<Self, SnapshotError> {
        let mut words = Words::check(bytes, MAGIC, VERSION)?;
        let mut index = Self::new(config);
        let lanes = index.restore_workers(&mut words, place)?;
        let bytes_max = BYTES_MORE + bytes.len().saturating_mul(BYTES_FACTOR);
        let mut last = None;
        for _ in 0..words.next()? {
            last = index.restore_segment(last, &lanes, &mut words)?;
            if index.bytes > bytes_max {
                return Err(SnapshotError::TooLarge);
            }
        }
        if words.rest().is_empty() { Ok(index) } else { Err(SnapshotError::Length) }
    }

    /// Reads who there was; returns the lane of each that has a place.
    fn restore_workers(
        &mut self,
        words: &mut Words<'_>,
        mut place: impl FnMut(WorkerId) -> Option<Slot>,
    ) -> Result<Vec<Option<u32>>, SnapshotError> {
        let mut slots = Vec::new();
        for _ in 0..words.next()? {
            let instance = InstanceId(words.next()?);
            let rank =
                u32::try_from(words.next()?).map_err(|_| SnapshotError::Damaged("worker"))?;
            slots.push(place(WorkerId { instance, rank }));
        }
        let slots_end = slots.iter().flatten().map(|slot| slot.index() + 1).max().unwrap_or(0);
        if !self.has_space(self.lanes.bytes_for(slots.len(), slots_end)) {
            return Err(SnapshotError::TooLarge);
        }
        Ok(self.change_lanes(|book, lanes| {
            let mut lane_of = |slot| book.get(slot).unwrap_or_else(|| book.take(slot, lanes));
            slots.into_iter().map(|slot| slot.map(&mut lane_of)).collect()
        }))
    }

    /// Reads a segment; returns its place if the next one is to stand behind it.
    fn restore_segment(
        &mut self,
        before: Option<Place>,
        lanes: &[Option<u32>],
        words: &mut Words<'_>,
    ) -> Result<Option<Place>, SnapshotError> {
        let head = words.next()?;
        let [blocks, goes_on, low, high, ..] = head.to_le_bytes();
        let (entries, blocks) = (u16::from_le_bytes([low, high]), usize::from(blocks));
        if !(1..=SEGMENT_BLOCKS).contains(&blocks) || goes_on > 1 {
            return Err(SnapshotError::Damaged("length of a run"));
        }
        if !self.has_room(blocks) {
            return Err(SnapshotError::TooLarge);
        }
        let depth = low_bits(head >> 32);
        let first = self.allocate(size_for(blocks), depth).ok_or(SnapshotError::TooLarge)?;
        let mut hashes = [SequenceHash(0); SEGMENT_BLOCKS];
        for hash in &mut hashes[..blocks] {
            hash.0 = words.next()?;
        }
        if self.put(first, &hashes[..blocks]) < blocks {
            return Err(SnapshotError::Damaged("block that is there twice"));
        }
        let mut held = 0;
        for _ in 0..entries {
            let entry = Entry::read(words, lanes.len(), first_blocks(blocks))?;
            held |= entry.mask;
            for lane in entry.workers().filter_map(|worker| lanes[worker]) {
                if !self.cover(Lane { number: lane, tier: entry.tier }, first, entry.mask) {
                    return Err(SnapshotError::TooLarge);
                }
            }
        }
        if held >> (blocks - 1) == 0 {
            return Err(SnapshotError::Damaged("run of which nobody holds the end"));
        }
        // Perhaps those who held the end have no place.
        self.trim(first);
        let is_whole = self.view.segment(first).is_some_and(|(segment, _)| segment.len() == blocks);
        if is_whole {
            self.link(before, first);
        }
        Ok((is_whole && goes_on == 1).then_some(first))
    }
}

/// Who holds some blocks of a segment.
struct Entry {
    tier: usize,
    /// Workers that hold them: from this one on, a bit each.
    first: usize,
    bits: u64,
    mask: u64,
}

impl Entry {
    fn read(words: &mut Words<'_>, workers: usize, whole: u64) -> Result<Self, SnapshotError> {
        let damaged = SnapshotError::Damaged("holder");
        let [what, bits] = [words.next()?, words.next()?];
        let tier = usize::from(what.to_le_bytes()[0]);
        let number = usize::try_from(what << 1 >> 9).map_err(|_| damaged)?;
        let entry = if what & PARTIAL == 0 {
            let first = number.checked_mul(64).ok_or(damaged)?;
            Self { tier, first, bits, mask: whole }
        } else if bits & !whole == 0 {
            Self { tier, first: number, bits: 1, mask: bits }
        } else {
            return Err(SnapshotError::Damaged("mask"));
        };
        let is_any = bits != 0 && tier < TIERS;
        let last = end_of(entry.bits).saturating_sub(1);
        let is_known = entry.first.checked_add(last).is_some_and(|last| last < workers);
        if is_any && is_known { Ok(entry) } else { Err(damaged) }
    }

    fn workers(&self) -> impl Iterator<Item = usize> + use<> {
        let first = self.first;
        ones(self.bits).map(move |bit| first + bit)
    }
}

/// Writes who has a name; returns each lane's number among them.
fn write_workers(names: &[Option<WorkerId>], words: &mut Vec<u64>) -> Vec<Option<usize>> {
    let mut numbers = 0..;
    words.push(names.iter().flatten().count() as u64);
    let known = names.iter().flatten();
    words.extend(known.flat_map(|worker| [worker.instance.0, u64::from(worker.rank)]));
    names.iter().map(|name| name.and_then(|_| numbers.next())).collect()
}

/// Writes a segment as far as anyone holds it that has a number; tells whether there is anything.
fn write_segment(
    view: &View,
    numbers: &[Option<usize>],
    segment: &Segment<'_>,
    goes_on: bool,
    words: &mut Vec<u64>,
) -> bool {
    let number_of = |lane: usize| numbers.get(lane).copied().flatten();
    let mut entries: Vec<[u64; 2]> = Vec::new();
    for (tier, word, bits) in segment.planes() {
        let begun = entries.len();
        for number in ones(bits).filter_map(|bit| number_of(word * 64 + bit)) {
            let what = (number as u64 / 64) << 8 | tier as u64;
            match entries[begun..].iter_mut().find(|entry| entry[0] == what) {
                Some(entry) => entry[1] |= 1 << (number % 64),
                None => entries.push([what, 1 << (number % 64)]),
            }
        }
    }
    let mut held = if entries.is_empty() { 0 } else { first_blocks(segment.len()) };
    for (_, lane, mask) in view.partials(segment) {
        if let Some(number) = number_of(lane.number as usize) {
            entries.push([PARTIAL | (number as u64) << 8 | lane.tier as u64, mask]);
            held |= mask;
        }
    }
    // What only workers that are gone held is not written.
    let blocks = end_of(held);
    let entries_count = entries.len() as u64;
    if blocks == 0 || entries_count > u64::from(u16::MAX) {
        return false;
    }
    let depth = u64::from(segment.head().depth.load(Relaxed));
    let goes_on = u64::from(goes_on && blocks == segment.len());
    words.push(blocks as u64 | goes_on << 8 | entries_count << 16 | depth << 32);
    words.extend((0..blocks).map(|at| segment.hash(at)));
    words.extend(entries.into_iter().flatten());
    true
}

impl Segment<'_> {
    /// Tells whether its sequence goes on right behind it.
    fn goes_on_at(&self, first: Place) -> bool {
        let next = self.head().next.load(Relaxed);
        first == self.end() && next == first
    }
}

const MAGIC: u64 = u64::from_le_bytes(*b"DYNINDEX");
const VERSION: u64 = 2;
const PARTIAL: u64 = 1 << 63;

/// Bytes of an index per byte of its snapshot, at most, and beside these.
const BYTES_FACTOR: usize = 64;
const BYTES_MORE: usize = 64 << 20;
