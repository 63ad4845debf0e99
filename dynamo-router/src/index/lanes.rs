//! Which lane a slot has, and which lanes may be had again.

use std::sync::Arc;

use super::table::NONE;
use super::view::Lanes;
use crate::workers::Slot;

/// What the writer knows of lanes.
///
/// ```text
/// free ─► live ─► ended ─► doomed ─► resting ─► free
///             clear    sweep    swept     no reader knows it any more
/// ```
#[derive(Debug, Default)]
pub(super) struct LaneBook {
    /// By slot.
    of_slot: Vec<u32>,
    /// By lane, the blocks that are held, whatever the tier.
    held: Vec<usize>,
    /// The sum of what live lanes hold.
    held_total: usize,
    free: Vec<u32>,
    /// Those that ended since the sweep began that is going on.
    ended: Vec<u32>,
    doomed: Vec<u32>,
    resting: Vec<(u32, Arc<()>)>,
    /// The tokens of [`Lanes::lives`], of lanes that are to rest.
    lives: Vec<(u32, Arc<()>)>,
}

impl LaneBook {
    /// Returns a slot's lane, if it ever stored anything since it was cleared.
    pub(super) fn get(&self, slot: Slot) -> Option<u32> {
        self.of_slot.get(slot.index()).copied().filter(|lane| *lane != NONE)
    }

    /// Gives a slot that has none a lane.
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
        lanes.of_slot = self.of_slot.as_slice().into();
        lanes.lives.resize(self.held.len(), None);
        lanes.lives[at] = Some(Arc::default());
        lanes.live.resize(self.held.len().div_ceil(64), 0);
        lanes.live[at / 64] |= 1 << (at % 64);
        lane
    }

    /// Takes a slot's lane away.
    pub(super) fn end(&mut self, slot: Slot, lanes: &mut Lanes) {
        let Some(lane) = self.get(slot) else { return };
        let at = lane as usize;
        self.of_slot[slot.index()] = NONE;
        lanes.of_slot = self.of_slot.as_slice().into();
        self.held_total -= self.held[at];
        lanes.live[at / 64] &= !(1 << (at % 64));
        self.lives.extend(lanes.lives[at].take().map(|life| (lane, life)));
        self.ended.push(lane);
    }

    /// Returns whether there are lanes to sweep up: they are doomed from here on.
    pub(super) fn doom(&mut self) -> bool {
        if self.doomed.is_empty() {
            std::mem::swap(&mut self.doomed, &mut self.ended);
        }
        !self.doomed.is_empty()
    }

    /// Tells whether any segment may still know of lanes that have ended.
    pub(super) fn has_ended(&self) -> bool {
        !self.doomed.is_empty() || !self.ended.is_empty()
    }

    /// Says that nothing is written of the doomed lanes any more.
    pub(super) fn swept(&mut self) {
        let doomed = std::mem::take(&mut self.doomed);
        let (resting, lives): (Vec<_>, Vec<_>) = std::mem::take(&mut self.lives)
            .into_iter()
            .partition(|(lane, _)| doomed.contains(lane));
        self.lives = lives;
        self.resting.extend(resting);
    }

    /// Says that nothing is written of any lane any more.
    pub(super) fn swept_all(&mut self) {
        self.ended.clear();
        self.doomed.clear();
        self.resting.append(&mut self.lives);
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
