//! Who holds which blocks of a segment: a bit for all of them, or a partial entry with a mask.

use std::sync::atomic::Ordering::Relaxed;

use super::bits::{count, ones};
use super::segment::{Segment, TIERS, first_blocks};
use super::table::NONE;
use super::view::{Lane, View};

/// What one lane holds of a segment.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Holding {
    /// In the tier that is asked for.
    pub(super) own: u64,
    /// In any tier.
    pub(super) any: u64,
}

impl View {
    /// Returns what a lane holds.
    pub(super) fn holding(&self, segment: &Segment<'_>, lane: Lane) -> Holding {
        let whole = first_blocks(segment.len());
        let is_whole = |tier| segment.whole(tier, lane.word()) & lane.bit() != 0;
        let mut holding = Holding {
            own: if is_whole(lane.tier) { whole } else { 0 },
            any: if (0..TIERS).any(is_whole) { whole } else { 0 },
        };
        for (_, other, mask) in self.partials(segment) {
            if other.number == lane.number {
                holding.any |= mask;
                holding.own |= if other == lane { mask } else { 0 };
            }
        }
        holding
    }

    /// Returns which blocks anyone holds.
    pub(super) fn held_by_anyone(&self, segment: &Segment<'_>) -> u64 {
        if segment.planes().any(|(.., bits)| bits != 0) {
            return first_blocks(segment.len());
        }
        self.partials(segment).fold(0, |all, (.., mask)| all | mask)
    }

    /// Tells whether a segment may be appended to for a lane, although others hold some of it.
    ///
    /// Each of those that hold all of it then needs an entry, which queries read.
    pub(super) fn is_shared_by_few(&self, segment: &Segment<'_>) -> bool {
        let whole = segment.planes().map(|(.., bits)| count(bits));
        whole.sum::<usize>() <= SHARED_MAX
    }

    /// Tells whether no other lane holds anything.
    pub(super) fn is_alone(&self, segment: &Segment<'_>, lane: Lane) -> bool {
        let own = |word| if word == lane.word() { lane.bit() } else { 0 };
        segment.planes().all(|(_, word, bits)| bits & !own(word) == 0)
            && self.partials(segment).all(|(_, other, _)| other.number == lane.number)
    }
}

/// Lanes and tiers that hold all of a segment which is appended to for another.
pub(super) const SHARED_MAX: usize = 8;

/// Partial entries that are not in use.
///
/// Everything here is called within a segment's [`write`](Segment::write).
#[derive(Debug, Default)]
pub(super) struct Partials(Vec<u32>);

impl Partials {
    pub(super) fn add(&mut self, numbers: impl IntoIterator<Item = u32>) {
        self.0.extend(numbers);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Writes that a lane holds exactly `mask`.
    ///
    /// The segment's chunk must have the lane's plane, and an entry must be left.
    pub(super) fn set(&mut self, view: &View, segment: &Segment<'_>, lane: Lane, mask: u64) {
        if let Some((number, ..)) = view.partials(segment).find(|(_, other, _)| *other == lane) {
            self.unlink(view, segment, number);
        }
        self.set_new(view, segment, lane, mask);
    }

    /// Writes the same of a lane that has no entry.
    pub(super) fn set_new(&mut self, view: &View, segment: &Segment<'_>, lane: Lane, mask: u64) {
        let is_whole = mask == first_blocks(segment.len()) && mask != 0;
        segment.mark(lane, is_whole);
        if !is_whole && mask != 0 {
            self.link(view, segment, lane, mask);
        }
    }

    /// Writes that the segment ends after `len` blocks, more than before: of these nobody holds any
    /// yet, and who held all of it holds some. An entry must be left for each.
    ///
    /// What `lane` holds is left to be set.
    pub(super) fn lengthen(&mut self, view: &View, segment: &Segment<'_>, len: u32, lane: Lane) {
        let held = first_blocks(segment.len());
        segment.head().len.store(len, Relaxed);
        for (tier, word, bits) in segment.planes().filter(|(.., bits)| *bits != 0) {
            segment.set_whole(tier, word, 0);
            let lanes = ones(bits).filter_map(|bit| Lane::new(word * 64 + bit, tier));
            lanes.filter(|other| *other != lane).for_each(|other| {
                self.link(view, segment, other, held);
            });
        }
    }

    /// Writes that the segment ends after `len` blocks, whoever held those beyond.
    pub(super) fn shorten(&mut self, view: &View, segment: &Segment<'_>, len: usize) {
        segment.head().len.store(u32::try_from(len).unwrap_or(0), Relaxed);
        if len == 0 {
            segment.planes().for_each(|(tier, word, _)| segment.set_whole(tier, word, 0));
        }
        self.rewrite(view, segment, |_, mask| mask & first_blocks(len));
    }

    /// Writes that these lanes, 64 to a word, hold nothing.
    pub(super) fn bury(&mut self, view: &View, segment: &Segment<'_>, lanes: &[u64]) {
        let gone = |word: usize| lanes.get(word).copied().unwrap_or(0);
        for (tier, word, bits) in segment.planes().filter(|(_, word, bits)| bits & gone(*word) != 0)
        {
            segment.set_whole(tier, word, bits & !gone(word));
        }
        self.rewrite(
            view,
            segment,
            |lane, mask| {
                if gone(lane.word()) & lane.bit() != 0 { 0 } else { mask }
            },
        );
    }

    /// Writes another mask for each partial entry.
    fn rewrite(&mut self, view: &View, segment: &Segment<'_>, mask: impl Fn(Lane, u64) -> u64) {
        let mut number = segment.head().partial.load(Relaxed);
        segment.head().partial.store(NONE, Relaxed);
        while let Some(entry) = view.partial(number) {
            self.0.push(number);
            number = entry.next.load(Relaxed);
            let lane = Lane::unpack(entry.lane.load(Relaxed));
            // Takes the same entry again, if one is needed.
            self.set_new(view, segment, lane, mask(lane, entry.mask.load(Relaxed)));
        }
    }

    fn link(&mut self, view: &View, segment: &Segment<'_>, lane: Lane, mask: u64) {
        let Some(number) = self.0.pop() else { return };
        let Some(entry) = view.partial(number) else { return };
        entry.lane.store(lane.pack(), Relaxed);
        entry.mask.store(mask, Relaxed);
        entry.next.store(segment.head().partial.load(Relaxed), Relaxed);
        segment.head().partial.store(number, Relaxed);
    }

    fn unlink(&mut self, view: &View, segment: &Segment<'_>, number: u32) {
        let Some(next) = view.partial(number).map(|entry| entry.next.load(Relaxed)) else { return };
        let mut from = &segment.head().partial;
        while from.load(Relaxed) != number {
            let Some(entry) = view.partial(from.load(Relaxed)) else { return };
            from = &entry.next;
        }
        from.store(next, Relaxed);
        self.0.push(number);
    }
}

impl Segment<'_> {
    /// Writes whether a lane holds all of it.
    fn mark(&self, lane: Lane, is_whole: bool) {
        let bits = self.whole(lane.tier, lane.word()) & !lane.bit();
        let own = if is_whole { lane.bit() } else { 0 };
        self.set_whole(lane.tier, lane.word(), bits | own);
    }

    /// Writes that nobody holds anything of it: as it is before its first use.
    pub(super) fn reset(&self, depth: u32, used: u32) {
        let head = self.head();
        head.len.store(0, Relaxed);
        head.partial.store(NONE, Relaxed);
        head.next.store(NONE, Relaxed);
        head.depth.store(depth, Relaxed);
        head.used.store(used, Relaxed);
    }
}
