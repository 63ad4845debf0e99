//! Which lane a slot has, and which lanes may be had again.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::table::NONE;
use super::view::Lanes;
use crate::workers::Slot;

/// What the writer knows of lanes.
///
/// ```text
/// free ─► live ─► ended ─► doomed ─► resting ─► free
///             clear    sweep    swept     no reader knows it any more
/// ```
///
/// What is written of a lane that has ended stays until no reader goes by it any more: a query that
/// began before sees to its end what was held then. While a slot's blocks are replaced it has two live
/// lanes, of which readers go by the older one.
#[derive(Debug, Default)]
pub(super) struct LaneBook {
    /// By slot.
    of_slot: Vec<u32>,
    /// By lane, the blocks that are held, whatever the tier.
    held: Vec<usize>,
    /// The sum of what live lanes hold.
    held_total: usize,
    free: Vec<u32>,
    /// Those that readers may go by still, or that ended since the sweep began that is going on.
    ended: Vec<Ended>,
    doomed: Vec<Ended>,
    /// The bits of the doomed ones, 64 to a word.
    doomed_bits: Vec<u64>,
    resting: Vec<Ended>,
    /// A slot whose blocks are being replaced, and the lane that readers go by until they are.
    hidden: Option<(Slot, u32)>,
}

/// A lane that does not count any more, with its token of [`Lanes::lives`].
type Ended = (u32, Arc<()>);

impl LaneBook {
    /// Returns a slot's lane, if it ever stored anything since it was cleared.
    pub(super) fn get(&self, slot: Slot) -> Option<u32> {
        self.of_slot.get(slot.index()).copied().filter(|lane| *lane != NONE)
    }

    /// Returns how many bytes all of lanes and slots takes, with what is there twice while it changes.
    pub(super) fn bytes(&self) -> usize {
        self.of_slot.len() * SLOT_BYTES + self.held.len() * LANE_BYTES
    }

    /// Returns how many more it would be with so many lanes more, of slots before `slots_end`.
    pub(super) fn bytes_for(&self, lanes: usize, slots_end: usize) -> usize {
        slots_end.saturating_sub(self.of_slot.len()) * SLOT_BYTES + lanes * LANE_BYTES
    }

    /// Returns each slot's lane, as readers are to see it.
    pub(super) fn of_slot(&self) -> Arc<[u32]> {
        let of_slot = self.of_slot.iter().enumerate();
        let shown = of_slot.map(|(at, lane)| match self.hidden {
            Some((slot, shown)) if slot.index() == at => shown,
            _ => *lane,
        });
        shown.collect()
    }

    /// Gives a slot that has none a lane; `lanes` is then to learn of [`of_slot`](Self::of_slot).
    pub(super) fn take(&mut self, slot: Slot, lanes: &mut Lanes) -> u32 {
        self.wake();
        let lane = self.free.pop().unwrap_or_else(|| {
            let lane = u32::try_from(self.held.len()).expect("a slot has two lanes or so");
            self.held.push(0);
            lane
        });
        let at = lane as usize;
        self.of_slot.resize(self.of_slot.len().max(slot.index() + 1), NONE);
        self.of_slot[slot.index()] = lane;
        self.held[at] = 0;
        lanes.lives.resize(self.held.len(), None);
        lanes.lives[at] = Some(Arc::default());
        lanes.live.resize(self.held.len().div_ceil(64), 0);
        lanes.live[at / 64] |= 1 << (at % 64);
        lane
    }

    /// Takes a slot's lane away; `lanes` is then to learn of [`of_slot`](Self::of_slot).
    pub(super) fn end(&mut self, slot: Slot, lanes: &mut Lanes) {
        let Some(lane) = self.get(slot) else { return };
        self.of_slot[slot.index()] = NONE;
        self.end_lane(lane, lanes);
    }

    fn end_lane(&mut self, lane: u32, lanes: &mut Lanes) {
        let at = lane as usize;
        self.held_total -= self.held[at];
        lanes.live[at / 64] &= !(1 << (at % 64));
        self.ended.extend(lanes.lives[at].take().map(|life| (lane, life)));
    }

    /// Takes a slot's lane away, and hides that and what lane it takes next from readers.
    pub(super) fn hide(&mut self, slot: Slot) {
        let lane = self.get(slot).unwrap_or(NONE);
        self.of_slot.iter_mut().skip(slot.index()).take(1).for_each(|lane| *lane = NONE);
        self.hidden = Some((slot, lane));
    }

    /// Has readers go by the lane that a slot has taken since [`hide`](Self::hide), if any; `lanes` is
    /// then to learn of [`of_slot`](Self::of_slot).
    pub(super) fn show(&mut self, lanes: &mut Lanes) {
        let hidden = self.hidden.take().filter(|(_, lane)| *lane != NONE);
        if let Some((_, lane)) = hidden {
            self.end_lane(lane, lanes);
        }
    }

    /// Returns whether there are lanes to sweep up: they are doomed from here on.
    pub(super) fn doom(&mut self) -> bool {
        if self.doomed.is_empty() && !self.ended.is_empty() {
            let is_in_view = |(_, life): &Ended| Arc::strong_count(life) > 1;
            (self.ended, self.doomed) =
                std::mem::take(&mut self.ended).into_iter().partition(is_in_view);
            // Readers have read before what is written from here on.
            fence(Ordering::Acquire);
            self.doomed_bits.clear();
            self.doomed_bits.resize(self.held.len().div_ceil(64), 0);
            for (lane, _) in &self.doomed {
                self.doomed_bits[*lane as usize / 64] |= 1 << (lane % 64);
            }
        }
        !self.doomed.is_empty()
    }

    /// Returns the bits of lanes of which what is written is to go; none if there are none.
    pub(super) fn doomed(&self) -> &[u64] {
        if self.doomed.is_empty() { &[] } else { &self.doomed_bits }
    }

    /// Says that nothing is written of the doomed lanes any more.
    pub(super) fn swept(&mut self) {
        self.resting.append(&mut self.doomed);
    }

    /// Says that nothing is written of any lane any more.
    pub(super) fn swept_all(&mut self) {
        self.swept();
        self.resting.append(&mut self.ended);
    }

    /// Frees lanes that no reader has in view any more.
    fn wake(&mut self) {
        self.resting.retain(|(lane, life)| {
            let is_known = Arc::strong_count(life) > 1;
            if !is_known {
                self.free.push(*lane);
            }
            is_known
        });
    }

    /// Returns the slot of each lane that counts.
    pub(super) fn slots(&self) -> Vec<Option<Slot>> {
        let mut slots = vec![None; self.held.len()];
        for (slot, lane) in self.of_slot.iter().enumerate().filter(|(_, lane)| **lane != NONE) {
            slots[*lane as usize] = Slot::from_index(slot);
        }
        slots
    }

    pub(super) fn held(&self, lane: u32) -> usize {
        self.held[lane as usize]
    }

    pub(super) fn held_total(&self) -> usize {
        self.held_total
    }

    pub(super) fn add(&mut self, lane: u32, blocks: usize) {
        self.held[lane as usize] += blocks;
        self.held_total += blocks;
    }

    pub(super) fn subtract(&mut self, lane: u32, blocks: usize) {
        self.held[lane as usize] -= blocks;
        self.held_total -= blocks;
    }
}

/// Of a slot, its lane: in the book, in the view, and in the next ones while these are replaced.
const SLOT_BYTES: usize = 5 * size_of::<u32>();

/// Of a lane what it holds, its token and where that is noted, each list with room to grow and another
/// time while it does.
const LANE_BYTES: usize = 192;
