//! What the writer does when blocks are stored.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use dynamo_core::protocol::SequenceHash;

use super::PrefixIndex;
use super::bits::{count, to_u32};
use super::budget::STORED_MAX;
use super::coverage::SHARED_MAX;
use super::segment::{SEGMENT_BLOCKS, TIERS, chunk_of, first_blocks, size_for};
use super::table::{NONE, Place};
use super::view::{Lane, PAGE_BYTES, View};

impl PrefixIndex {
    pub(super) fn store_run(
        &mut self,
        lane: Lane,
        parent: Option<SequenceHash>,
        hashes: &[SequenceHash],
    ) {
        let mut parent = parent;
        let mut rest = hashes;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(STORED_MAX));
            let stored =
                if self.has_room(now.len()) { self.store_some(lane, parent, now) } else { 0 };
            if stored < now.len() {
                return self.count_dropped(rest.len() - stored);
            }
            (parent, rest) = (now.last().copied(), later);
        }
    }

    /// Stores as many blocks as there is room for; returns how many.
    fn store_some(
        &mut self,
        lane: Lane,
        parent: Option<SequenceHash>,
        hashes: &[SequenceHash],
    ) -> usize {
        let mut before = parent.and_then(|parent| self.view.find(parent.0));
        let mut rest = hashes;
        while let Some(first) = rest.first() {
            let stored = match self.locate(before, first.0) {
                Some(place) => self.store_known(lane, (before, place), rest),
                None => self.append(lane, before, rest),
            };
            let Some((count, last)) = stored else { break };
            before = Some(last);
            rest = &rest[count.clamp(1, rest.len())..];
        }
        hashes.len() - rest.len()
    }

    /// Finds a block: behind the one before, as is likely, or anywhere.
    fn locate(&self, before: Option<Place>, hash: u64) -> Option<Place> {
        let near = before.and_then(|before| {
            let (segment, offset) = self.view.segment(before)?;
            let is_last = offset + 1 >= segment.len();
            let next = if is_last { segment.head().next.load(Relaxed) } else { before + 1 };
            let (segment, offset) = self.view.segment(next)?;
            (offset < segment.len() && segment.hash(offset) == hash).then_some(next)
        });
        near.or_else(|| self.view.find(hash))
    }

    /// Records that a lane holds blocks that are there; returns how many, and the last one's place.
    /// `None` if there is no room to note it down.
    fn store_known(
        &mut self,
        lane: Lane,
        (before, place): (Option<Place>, Place),
        hashes: &[SequenceHash],
    ) -> Option<(usize, Place)> {
        let (segment, offset) = self.view.segment(place)?;
        let count = segment.matching(offset, hashes).max(1);
        if offset == 0 {
            self.link(before, place);
        }
        segment.use_at(self.now());
        let is_noted = self.cover(lane, place, first_blocks(count) << offset);
        is_noted.then(|| (count, place + to_u32(count) - 1))
    }

    /// Notes down that a sequence goes on at `next`.
    pub(super) fn link(&self, before: Option<Place>, next: Place) {
        if let Some((before, _)) = before.and_then(|before| self.view.segment(before))
            && before.head().next.load(Relaxed) != next
            && before.len() > 0
        {
            before.head().next.store(next, Relaxed);
        }
    }

    /// Records that a lane holds some blocks of a segment; tells whether there is room to note it down.
    pub(super) fn cover(&mut self, lane: Lane, place: Place, mask: u64) -> bool {
        let Some((segment, _)) = self.view.segment(place) else { return false };
        if segment.whole(lane.tier, lane.word()) & lane.bit() != 0 {
            return true;
        }
        let holding = self.view.holding(&segment, lane);
        if holding.own & mask == mask {
            return true;
        }
        let fresh = mask & !holding.any;
        let anyone = if fresh == 0 { mask } else { self.view.held_by_anyone(&segment) };
        let first = segment.first;
        let is_noted = self.set(lane, first, holding.own | mask);
        if is_noted {
            self.lanes.add(lane.number, count(fresh));
            self.blocks += count(mask & !anyone);
        }
        is_noted
    }

    /// Writes what a lane holds of a segment; tells whether there is room for it. For nothing there is.
    pub(super) fn set(&mut self, lane: Lane, first: Place, mask: u64) -> bool {
        let is_prepared = self.prepare(first, lane, usize::from(mask != 0));
        if is_prepared && let Some((segment, _)) = self.view.segment(first) {
            segment.write(|| self.partials.set(&self.view, &segment, lane, mask));
        }
        is_prepared
    }

    /// Sees to it that a lane's plane is there, and so many partial entries; tells whether they are.
    ///
    /// Whoever holds anything in a chunk has its plane there.
    fn prepare(&mut self, place: Place, lane: Lane, entries: usize) -> bool {
        let Some((segment, _)) = self.view.segment(place) else { return false };
        if !segment.chunk.has_plane(lane.tier, lane.word()) {
            if !self.may_grow(segment.chunk.plane_bytes(lane.word())) {
                return false;
            }
            self.change(|view| view.add_plane(chunk_of(place), lane.tier, lane.word()));
        }
        while self.partials.len() < entries {
            if !self.may_grow(PAGE_BYTES) {
                return false;
            }
            let more = self.change(View::add_page);
            self.partials.add(more);
        }
        true
    }

    /// Appends blocks that are nowhere, as many as one segment has room for and up to one that is
    /// somewhere; returns how many, and the last one's place. `None` if there is no room.
    fn append(
        &mut self,
        lane: Lane,
        before: Option<Place>,
        hashes: &[SequenceHash],
    ) -> Option<(usize, Place)> {
        let before = before.filter(|before| self.part(*before));
        let first = before
            .and_then(|before| self.open(lane, before, hashes.len()))
            .or_else(|| self.begin(before, hashes.len()))?;
        let (segment, _) = self.view.segment(first)?;
        let room = segment.room() - segment.len();
        let pushed = self.push(lane, first, &hashes[..room.min(hashes.len())]);
        if pushed.is_none_or(|(count, _)| count == 0) {
            self.trim(first);
        }
        pushed
    }

    /// Sees to it that the segment of a block ends with it; tells whether it does.
    fn part(&mut self, last: Place) -> bool {
        self.bury(last);
        let Some((segment, offset)) = self.view.segment(last) else { return false };
        let (first, len) = (segment.first, segment.len());
        if offset + 1 < len {
            if self.move_tail(first, offset + 1, size_for(len - offset - 1)).is_none() {
                return false;
            }
            // Perhaps nobody holds what was before.
            self.trim(first);
        }
        self.view.segment(last).is_some_and(|(segment, offset)| offset < segment.len())
    }

    /// Returns the segment that ends with `last` if `more` blocks that this lane holds belong in it, with
    /// room for them as far as a segment can have it.
    ///
    /// One that others hold, too, is appended to where that saves another: what goes on beyond it needs
    /// one of its own anyway, and sequences part where they did not go on before.
    fn open(&mut self, lane: Lane, last: Place, more: usize) -> Option<Place> {
        let (segment, _) = self.view.segment(last)?;
        let (len, room, first) = (segment.len(), segment.room(), segment.first);
        // A segment that goes on elsewhere would only be parted again.
        let goes_on = segment.head().next.load(Relaxed) != NONE;
        let is_one_less = || len + more <= SEGMENT_BLOCKS && self.view.is_shared_by_few(&segment);
        let may_grow = self.view.is_alone(&segment, lane) || is_one_less();
        if goes_on || len == SEGMENT_BLOCKS || !may_grow {
            return None;
        }
        if len + more <= room || room == SEGMENT_BLOCKS {
            return Some(first);
        }
        self.move_tail(first, 0, size_for(len + more))
    }

    /// Takes an empty segment, to stand behind `before`.
    fn begin(&mut self, before: Option<Place>, blocks: usize) -> Option<Place> {
        let behind = before.and_then(|before| self.view.segment(before));
        let depth = behind.map_or(0, |(segment, offset)| {
            segment.head().depth.load(Relaxed).saturating_add(to_u32(offset) + 1)
        });
        let first = self.allocate(size_for(blocks), depth)?;
        self.link(before, first);
        Some(first)
    }

    /// Appends blocks to a segment, up to one that is somewhere already.
    fn push(&mut self, lane: Lane, first: Place, fresh: &[SequenceHash]) -> Option<(usize, Place)> {
        if !self.prepare(first, lane, SHARED_MAX + TIERS) {
            return None;
        }
        let view = Arc::clone(&self.view);
        let (segment, _) = view.segment(first)?;
        let len = segment.len();
        let held = view.holding(&segment, lane).own;
        let count = self.put_hashes(first, fresh);
        if count > 0 {
            let more = first_blocks(len + count) & !first_blocks(len);
            segment.write(|| {
                self.partials.lengthen(&view, &segment, to_u32(len + count), lane);
                self.partials.set(&view, &segment, lane, held | more);
            });
            self.blocks += count;
            self.lanes.add(lane.number, count);
        }
        Some((count, (first + to_u32(len + count)).saturating_sub(1)))
    }

    /// Writes blocks behind those of a segment, up to one that is somewhere already; returns how many.
    ///
    /// To readers they are not there before the length says so.
    fn put_hashes(&mut self, first: Place, fresh: &[SequenceHash]) -> usize {
        self.make_room(fresh.len());
        let view = Arc::clone(&self.view);
        let Some((segment, _)) = view.segment(first) else { return 0 };
        let len = segment.len();
        view.table.fetch(fresh);
        let mut there = fresh.iter().zip(segment.hashes()[len..].iter().zip(first + to_u32(len)..));
        let known = there.position(|(hash, (to, place))| {
            to.store(hash.0, Relaxed);
            view.table.insert(hash.0, place, |other| view.is_at(other, hash.0)).is_some()
        });
        let count = known.unwrap_or(fresh.len());
        self.places += count;
        count
    }

    /// Fills an empty segment with blocks that nobody holds yet; returns how many were nowhere before.
    pub(super) fn put(&mut self, first: Place, fresh: &[SequenceHash]) -> usize {
        let count = self.put_hashes(first, fresh);
        if let Some((segment, _)) = self.view.segment(first) {
            segment.write(|| segment.head().len.store(to_u32(count), Relaxed));
        }
        count
    }

    /// Moves a segment's blocks from `at` on to one of that size of their own, and returns where.
    fn move_tail(&mut self, first: Place, at: usize, size: usize) -> Option<Place> {
        let depth = self.view.segment(first).map_or(0, |(segment, _)| {
            segment.head().depth.load(Relaxed).saturating_add(to_u32(at))
        });
        let new_first = self.allocate(size, depth)?;
        if !self.prepare_like(new_first, first) {
            self.free(new_first);
            return None;
        }
        let view = Arc::clone(&self.view);
        let ((old, _), (new, _)) = (view.segment(first)?, view.segment(new_first)?);
        let len = old.len();
        new.write(|| {
            new.head().len.store(to_u32(len - at), Relaxed);
            new.head().next.store(old.head().next.load(Relaxed), Relaxed);
            new.head().used.store(old.head().used.load(Relaxed), Relaxed);
            for (to, from) in new.hashes().iter().zip(&old.hashes()[at..len]) {
                to.store(from.load(Relaxed), Relaxed);
            }
            old.planes().filter(|(.., bits)| *bits != 0).for_each(|(tier, word, bits)| {
                new.set_whole(tier, word, bits);
            });
            for (_, lane, mask) in view.partials(&old) {
                self.partials.set_new(&view, &new, lane, mask >> at & first_blocks(len - at));
            }
        });
        for (offset, hash) in old.hashes()[at..len].iter().enumerate() {
            let (from, to) = (first + to_u32(at + offset), new_first + to_u32(offset));
            view.table.replace(hash.load(Relaxed), from, to);
        }
        old.write(|| {
            self.partials.shorten(&view, &old, at);
            old.head().next.store(new_first, Relaxed);
        });
        if at == 0 {
            self.free(first);
        }
        Some(new_first)
    }

    /// Sees to it that what one segment has in planes and partial entries may be written of another;
    /// tells whether it may.
    fn prepare_like(&mut self, new: Place, old: Place) -> bool {
        let view = Arc::clone(&self.view);
        let Some((old, _)) = view.segment(old) else { return false };
        let in_planes = old.planes().filter(|(.., bits)| *bits != 0);
        let in_planes = in_planes.map(|(tier, word, _)| Lane { number: to_u32(word) * 64, tier });
        let entries = view.partials(&old).count();
        let mut lanes = in_planes.chain(view.partials(&old).map(|(_, lane, _)| lane));
        lanes.all(|lane| self.prepare(new, lane, entries))
    }

    /// Makes room in the table for so many blocks more.
    fn make_room(&mut self, blocks: usize) {
        if self.places + blocks > self.view.table.blocks_max() {
            self.rebuild(self.places * 2 + blocks);
        }
    }

    /// Builds the table anew, with room for so many blocks.
    pub(super) fn rebuild(&mut self, blocks: usize) {
        let table = self.view.table.resized(blocks);
        self.change(|view| view.table = Arc::new(table));
    }
}
