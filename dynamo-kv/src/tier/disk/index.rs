//! Which block is in which slot, and which goes first; pure.

use std::collections::{HashMap, VecDeque};

use tokio::sync::watch;

use super::format::Record;
use super::places::{NONE, Places};
use super::stats::DiskStats;
use crate::evict::{EntryId, Eviction, Use};
use crate::identity::{BlockIdentity, BlockKey};
use crate::tier::{TierChange, TierSink};

/// The state of all slots. Every step takes constant time, beside that of the policy, but for those
/// that say otherwise.
pub(super) struct Index {
    slots: Vec<Slot>,
    places: Places,
    writing: HashMap<BlockIdentity, Writing>,
    /// Those that were freed first in front, so that one that cannot be written is not tried at once
    /// again.
    free: VecDeque<u32>,
    /// Orders the slots of blocks that nobody holds and nothing follows: a block goes before what it
    /// needs.
    policy: Box<dyn Eviction>,
    generation: u64,
    /// Counts uses of blocks.
    clock: u64,
    era: u64,
    stats: DiskStats,
    sink: Box<dyn TierSink>,
}

struct Slot {
    record: Option<Record>,
    /// Guards of what reads or writes here.
    holds: u32,
    /// How often the block was found.
    uses: u32,
    last_use: u64,
}

struct Writing {
    generation: u64,
    /// What it follows, which stays for it.
    parent: Option<BlockIdentity>,
    /// Closed when it has ended.
    ended: watch::Receiver<()>,
}

/// What a store of a block begins with.
pub(super) enum Begun {
    /// It is there.
    Present,
    /// Another store of it is under way.
    Writing(watch::Receiver<()>),
    /// Every slot is held, or has what others need.
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
    pub(super) fn new(blocks: u32, era: u64, policy: Box<dyn Eviction>) -> Self {
        let slot = |_| Slot { record: None, holds: 0, uses: 0, last_use: 0 };
        Self {
            slots: (0..blocks).map(slot).collect(),
            places: Places::default(),
            writing: HashMap::new(),
            free: (0..blocks).collect(),
            policy,
            generation: 0,
            clock: 0,
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

    pub(super) fn contains(&self, identity: &BlockIdentity) -> bool {
        self.slot_of(identity).is_some()
    }

    pub(super) fn slot_of(&self, identity: &BlockIdentity) -> Option<u32> {
        self.places.slot_of(identity)
    }

    /// Returns the generations and keys of all blocks; takes time for each.
    pub(super) fn keys(&self) -> Vec<(u64, BlockKey)> {
        let records = self.slots.iter().filter_map(|slot| slot.record.as_ref());
        records.map(|record| (record.generation, record.key)).collect()
    }

    pub(super) fn stats(&self) -> DiskStats {
        let (blocks, free) = (self.places.stored(), self.free.len());
        let held = self.slots.len() - blocks - free - self.stats.lost;
        DiskStats { blocks, free, held, ..self.stats }
    }

    /// Counts what happened.
    pub(super) fn count(&mut self, count: impl FnOnce(&mut DiskStats)) {
        count(&mut self.stats);
    }

    /// Begins to store blocks; those that are to be written get slots in the order of the file.
    pub(super) fn begin(&mut self, keys: &[BlockKey]) -> Vec<Begun> {
        let mut begun: Vec<_> = keys.iter().map(|key| self.look(key)).collect();
        let starts = begun.iter_mut().zip(keys).filter_map(|(begun, key)| match begun {
            Begun::Slot(start) => Some((start, key)),
            _ => None,
        });
        let mut starts: Vec<_> = starts.collect();
        let mut slots: Vec<_> = starts.iter().map_while(|_| self.take_slot()).collect();
        slots.sort_unstable();
        for ((start, _), slot) in starts.iter_mut().zip(&slots) {
            start.slot = *slot;
        }
        for (_, key) in starts.iter().skip(slots.len()) {
            self.end_write(&key.identity);
        }
        for begun in &mut begun {
            if matches!(begun, Begun::Slot(start) if start.slot == NONE) {
                *begun = Begun::Busy;
            }
        }
        begun
    }

    /// Looks for a block that is to be stored; its slot is still open if it is to be written.
    fn look(&mut self, key: &BlockKey) -> Begun {
        if let Some(slot) = self.slot_of(&key.identity) {
            self.withdraw(slot);
            self.touch(slot);
            self.offer(slot);
            return Begun::Present;
        }
        if let Some(writing) = self.writing.get(&key.identity) {
            return Begun::Writing(writing.ended.clone());
        }
        self.generation += 1;
        let (ended, receiver) = watch::channel(());
        let generation = self.generation;
        let writing = Writing { generation, parent: key.parent, ended: receiver };
        self.writing.insert(key.identity, writing);
        key.parent.inspect(|parent| self.follow(parent));
        Begun::Slot(Start { slot: NONE, generation, era: self.era, ended })
    }

    /// Takes a slot that nothing is in, or that of the block which the policy gives up.
    fn take_slot(&mut self) -> Option<u32> {
        let slot = match self.free.pop_front() {
            Some(slot) => slot,
            None => self.evict()?,
        };
        let state = self.slot(slot);
        (state.holds, state.uses) = (1, 0);
        Some(slot)
    }

    fn evict(&mut self) -> Option<u32> {
        let slot = self.policy.victim()?.0;
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
        // It follows its parent still.
        self.writing.remove(&identity);
        self.places.insert(identity, slot);
        self.slot(slot).record = Some(record);
        self.sink.publish(TierChange::Stored(record.key));
        true
    }

    /// Ends a store that did not come to its commit.
    pub(super) fn abandon(&mut self, identity: &BlockIdentity, generation: u64) {
        if self.is_writing(identity, generation) {
            self.end_write(identity);
        }
    }

    fn end_write(&mut self, identity: &BlockIdentity) {
        let writing = self.writing.remove(identity);
        writing.and_then(|writing| writing.parent).inspect(|parent| self.unfollow(parent));
    }

    fn is_writing(&self, identity: &BlockIdentity, generation: u64) -> bool {
        self.writing.get(identity).is_some_and(|writing| writing.generation == generation)
    }

    /// Finds a block and holds its slot.
    pub(super) fn read(&mut self, identity: &BlockIdentity) -> Option<(u32, Record)> {
        let slot = self.slot_of(identity)?;
        self.hold(slot);
        let state = self.slot(slot);
        state.uses = state.uses.saturating_add(1);
        state.record.map(|record| (slot, record))
    }

    fn hold(&mut self, slot: u32) {
        self.withdraw(slot);
        self.slot(slot).holds += 1;
    }

    /// Gives a hold back: the last one makes the slot free, or its block the one last used.
    pub(super) fn release(&mut self, slot: u32) {
        self.touch(slot);
        let state = self.slot(slot);
        state.holds -= 1;
        match (state.holds, state.record.is_some()) {
            (0, true) => self.offer(slot),
            (0, false) => self.free.push_back(slot),
            _ => {}
        }
    }

    fn touch(&mut self, slot: u32) {
        self.clock += 1;
        self.slot(slot).last_use = self.clock;
    }

    /// Counts a block that follows another one, which stays for it.
    fn follow(&mut self, parent: &BlockIdentity) {
        self.slot_of(parent).inspect(|slot| self.withdraw(*slot));
        self.places.follow(parent);
    }

    fn unfollow(&mut self, parent: &BlockIdentity) {
        self.places.unfollow(parent);
        self.slot_of(parent).inspect(|slot| self.offer(*slot));
    }

    /// Has the policy choose among others and the block of a slot, if it may be evicted from now on.
    fn offer(&mut self, slot: u32) {
        self.usage(slot).inspect(|usage| self.policy.insert(EntryId::new(slot), *usage));
    }

    /// Takes a block back from the policy, if it may be evicted so far.
    fn withdraw(&mut self, slot: u32) {
        if self.usage(slot).is_some() {
            self.policy.remove(EntryId::new(slot));
        }
    }

    /// Describes the block of a slot, if it may be evicted: nobody holds it, and nothing follows it.
    fn usage(&self, slot: u32) -> Option<Use> {
        let Slot { record, holds, uses, last_use } = &self.slots[slot as usize];
        let key = &record.as_ref()?.key;
        let is_evictable = *holds == 0 && self.places.is_leaf(&key.identity);
        is_evictable.then(|| Use::new(key.identity.chain(), key.position, *uses, *last_use))
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
        self.end_write(identity);
        let slot = self.slot_of(identity)?;
        self.hold(slot);
        self.take_record(slot);
        Some(slot)
    }

    /// Removes all blocks and refuses those being written; takes time for each.
    pub(super) fn clear(&mut self, era: u64) {
        self.era = era;
        self.writing.clear();
        (0u32..).take(self.slots.len()).for_each(|slot| self.withdraw(slot));
        self.places.clear();
        for (slot, state) in (0u32..).zip(&mut self.slots) {
            if state.record.take().is_some() && state.holds == 0 {
                self.free.push_back(slot);
            }
        }
        self.sink.publish(TierChange::Cleared);
    }

    /// Makes the block of a slot impossible to find, which the policy does not have.
    fn take_record(&mut self, slot: u32) {
        if let Some(record) = self.slot(slot).record.take() {
            self.places.remove(&record.key.identity);
            self.sink.publish(TierChange::Removed(record.key));
            record.key.parent.inspect(|parent| self.unfollow(parent));
        }
    }

    fn slot(&mut self, slot: u32) -> &mut Slot {
        &mut self.slots[slot as usize]
    }
}

mod recover;

#[cfg(test)]
mod tests;
