//! Which block is in which slot, and which goes first; pure.

use std::collections::{HashMap, VecDeque};

use tokio::sync::watch;

use super::format::Record;
use super::line::{Line, NONE};
use super::stats::{DiskStats, Recovery};
use crate::identity::{BlockIdentity, BlockKey};
use crate::tier::{TierChange, TierSink};

/// The state of all slots. Every step takes constant time, but for those that say otherwise.
pub(super) struct Index {
    slots: Vec<Slot>,
    stored: HashMap<BlockIdentity, u32>,
    writing: HashMap<BlockIdentity, Writing>,
    /// Those that were freed first in front, so that one that cannot be written is not tried at once
    /// again.
    free: VecDeque<u32>,
    /// Slots with a block that nobody holds, by its last use.
    line: Line,
    generation: u64,
    era: u64,
    stats: DiskStats,
    sink: Box<dyn TierSink>,
}

struct Slot {
    record: Option<Record>,
    /// Guards of what reads or writes here.
    holds: u32,
}

struct Writing {
    generation: u64,
    /// Closed when it has ended.
    ended: watch::Receiver<()>,
}

/// What a store of a block begins with.
pub(super) enum Begun {
    /// It is there.
    Present,
    /// Another store of it is under way.
    Writing(watch::Receiver<()>),
    /// Every slot is held.
    Busy,
    /// It is to be written; the slot is held.
    Slot(Start),
}

/// A block that is to be written.
pub(super) struct Start {
    pub(super) slot: u32,
    pub(super) generation: u64,
    pub(super) era: u64,
    /// Those who wait for it wait until this is dropped.
    pub(super) ended: watch::Sender<()>,
}

impl Index {
    pub(super) fn new(blocks: u32, era: u64) -> Self {
        let slot = |_| Slot { record: None, holds: 0 };
        Self {
            slots: (0..blocks).map(slot).collect(),
            stored: HashMap::new(),
            writing: HashMap::new(),
            free: (0..blocks).collect(),
            line: Line::new(blocks),
            generation: 0,
            era,
            stats: DiskStats { capacity: blocks as usize, ..DiskStats::default() },
            sink: Box::new(|_: TierChange| {}),
        }
    }

    /// Tells `sink` what changes from now on, and returns what there is.
    pub(super) fn watch(&mut self, sink: Box<dyn TierSink>) -> Vec<(u64, BlockKey)> {
        self.sink = sink;
        self.keys()
    }

    /// Puts a record that was found into its slot; [`recovered`](Self::recovered) comes after all.
    pub(super) fn recover(&mut self, slot: u32, record: Record) {
        self.slot(slot).record = Some(record);
    }

    /// Lines up the blocks by generation, which takes the time to sort them.
    pub(super) fn recovered(&mut self, recovery: &mut Recovery) {
        let found = (0u32..).zip(&self.slots);
        let found =
            found.filter_map(|(slot, state)| Some((state.record.as_ref()?.generation, slot)));
        let mut found: Vec<_> = found.collect();
        found.sort_unstable();
        for (generation, slot) in found {
            self.generation = generation;
            let Some(record) = &self.slots[slot as usize].record else { continue };
            if let Some(earlier) = self.stored.insert(record.key.identity, slot) {
                self.line.remove(earlier);
                self.slot(earlier).record = None;
                recovery.repeated += 1;
            }
            self.line.push(slot);
        }
        self.free = (0u32..)
            .zip(&self.slots)
            .filter_map(|(slot, state)| state.record.is_none().then_some(slot))
            .collect();
        recovery.blocks = self.stored.len();
    }

    pub(super) fn contains(&self, identity: &BlockIdentity) -> bool {
        self.stored.contains_key(identity)
    }

    pub(super) fn slot_of(&self, identity: &BlockIdentity) -> Option<u32> {
        self.stored.get(identity).copied()
    }

    /// Returns the generations and keys of all blocks; takes time for each.
    pub(super) fn keys(&self) -> Vec<(u64, BlockKey)> {
        let records = self.slots.iter().filter_map(|slot| slot.record.as_ref());
        records.map(|record| (record.generation, record.key)).collect()
    }

    pub(super) fn stats(&self) -> DiskStats {
        let (blocks, free) = (self.stored.len(), self.free.len());
        DiskStats { blocks, free, held: self.slots.len() - blocks - free, ..self.stats }
    }

    /// Counts what happened.
    pub(super) fn count(&mut self, count: impl FnOnce(&mut DiskStats)) {
        count(&mut self.stats);
    }

    /// Begins to store blocks; those that are to be written get slots in the order of the file.
    pub(super) fn begin(&mut self, identities: &[BlockIdentity]) -> Vec<Begun> {
        let mut begun: Vec<_> = identities.iter().map(|identity| self.look(identity)).collect();
        let starts = begun.iter_mut().zip(identities).filter_map(|(begun, identity)| match begun {
            Begun::Slot(start) => Some((start, identity)),
            _ => None,
        });
        let mut starts: Vec<_> = starts.collect();
        let mut slots: Vec<_> = starts.iter().map_while(|_| self.take_slot()).collect();
        slots.sort_unstable();
        for ((start, _), slot) in starts.iter_mut().zip(&slots) {
            start.slot = *slot;
        }
        for (_, identity) in starts.iter().skip(slots.len()) {
            self.writing.remove(*identity);
        }
        for begun in &mut begun {
            if matches!(begun, Begun::Slot(start) if start.slot == NONE) {
                *begun = Begun::Busy;
            }
        }
        begun
    }

    /// Looks for a block that is to be stored; its slot is still open if it is to be written.
    fn look(&mut self, identity: &BlockIdentity) -> Begun {
        if let Some(slot) = self.slot_of(identity) {
            if self.slot(slot).holds == 0 {
                self.line.remove(slot);
                self.line.push(slot);
            }
            return Begun::Present;
        }
        if let Some(writing) = self.writing.get(identity) {
            return Begun::Writing(writing.ended.clone());
        }
        self.generation += 1;
        let (ended, receiver) = watch::channel(());
        let generation = self.generation;
        self.writing.insert(*identity, Writing { generation, ended: receiver });
        Begun::Slot(Start { slot: NONE, generation, era: self.era, ended })
    }

    /// Takes a slot that nothing is in, or that of the block which was used longest ago.
    fn take_slot(&mut self) -> Option<u32> {
        let slot = match self.free.pop_front() {
            Some(slot) => slot,
            None => self.evict()?,
        };
        self.slot(slot).holds = 1;
        Some(slot)
    }

    fn evict(&mut self) -> Option<u32> {
        let slot = self.line.oldest()?;
        self.line.remove(slot);
        self.take_record(slot);
        self.stats.evicted_total += 1;
        Some(slot)
    }

    /// Makes a block that was written findable, unless it was removed meanwhile.
    pub(super) fn commit(&mut self, slot: u32, record: Record) -> bool {
        let identity = record.key.identity;
        if !self.is_writing(&identity, record.generation) {
            return false;
        }
        self.writing.remove(&identity);
        self.stored.insert(identity, slot);
        self.slot(slot).record = Some(record);
        self.sink.publish(TierChange::Stored(record.key));
        true
    }

    /// Ends a store that did not come to its commit.
    pub(super) fn abandon(&mut self, identity: &BlockIdentity, generation: u64) {
        if self.is_writing(identity, generation) {
            self.writing.remove(identity);
        }
    }

    fn is_writing(&self, identity: &BlockIdentity, generation: u64) -> bool {
        self.writing.get(identity).is_some_and(|writing| writing.generation == generation)
    }

    /// Finds a block and holds its slot.
    pub(super) fn read(&mut self, identity: &BlockIdentity) -> Option<(u32, Record)> {
        let slot = self.slot_of(identity)?;
        self.hold(slot);
        let record = self.slots[slot as usize].record?;
        Some((slot, record))
    }

    fn hold(&mut self, slot: u32) {
        if self.slot(slot).holds == 0 {
            self.line.remove(slot);
        }
        self.slot(slot).holds += 1;
    }

    /// Gives a hold back: the last one makes the slot free, or its block the one last used.
    pub(super) fn release(&mut self, slot: u32) {
        let state = self.slot(slot);
        state.holds -= 1;
        match (state.holds, state.record.is_some()) {
            (0, true) => self.line.push(slot),
            (0, false) => self.free.push_back(slot),
            _ => {}
        }
    }

    /// Forgets a block, if it still is the one that was read; its slot must be held.
    pub(super) fn forget(&mut self, slot: u32, generation: u64) -> bool {
        let record = self.slots[slot as usize].record;
        let is_there = record.is_some_and(|record| record.generation == generation);
        if is_there {
            self.take_record(slot);
        }
        is_there
    }

    /// Removes a block, and refuses the one being written; returns its slot, held.
    pub(super) fn remove(&mut self, identity: &BlockIdentity) -> Option<u32> {
        self.writing.remove(identity);
        let slot = self.slot_of(identity)?;
        self.hold(slot);
        self.take_record(slot);
        Some(slot)
    }

    /// Removes all blocks and refuses those being written; takes time for each.
    pub(super) fn clear(&mut self, era: u64) {
        self.era = era;
        self.writing.clear();
        self.stored.clear();
        self.line.clear();
        for (slot, state) in (0u32..).zip(&mut self.slots) {
            if state.record.take().is_some() && state.holds == 0 {
                self.free.push_back(slot);
            }
        }
        self.sink.publish(TierChange::Cleared);
    }

    /// Makes the block of a slot impossible to find.
    fn take_record(&mut self, slot: u32) {
        if let Some(record) = self.slot(slot).record.take() {
            self.stored.remove(&record.key.identity);
            self.sink.publish(TierChange::Removed(record.key));
        }
    }

    fn slot(&mut self, slot: u32) -> &mut Slot {
        &mut self.slots[slot as usize]
    }
}

#[cfg(test)]
mod tests;
