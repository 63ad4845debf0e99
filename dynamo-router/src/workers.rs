//! Who can be chosen: each worker has a dense number, by which tables are indexed.

use std::collections::HashMap;

use dynamo_core::protocol::WorkerId;

/// The number of a worker in a router's tables: small, and another worker's once this one is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u16);

impl Slot {
    /// Workers that a router can know at a time.
    pub const COUNT: usize = 1 << 16;

    /// Returns slot number `index`, if there is one: they are below [`COUNT`](Self::COUNT).
    pub fn from_index(index: usize) -> Option<Self> {
        u16::try_from(index).ok().map(Self)
    }

    /// Returns its number.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// The slots that are taken, and by whom.
#[derive(Debug, Default)]
pub(crate) struct Workers {
    slots: HashMap<WorkerId, Slot>,
    by_slot: Vec<Option<WorkerId>>,
    free: Vec<Slot>,
}

impl Workers {
    /// Returns a worker's slot.
    pub(crate) fn get(&self, worker: WorkerId) -> Option<Slot> {
        self.slots.get(&worker).copied()
    }

    /// Returns a worker's slot, a free one if it has none yet; `None` if all are taken.
    pub(crate) fn get_or_take(&mut self, worker: WorkerId) -> Option<Slot> {
        if let Some(slot) = self.get(worker) {
            return Some(slot);
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => Slot::from_index(self.by_slot.len())?,
        };
        if slot.index() == self.by_slot.len() {
            self.by_slot.push(None);
        }
        self.by_slot[slot.index()] = Some(worker);
        self.slots.insert(worker, slot);
        Some(slot)
    }

    /// Frees the slot of a worker of which no table says anything any more.
    pub(crate) fn release(&mut self, worker: WorkerId) {
        if let Some(slot) = self.slots.remove(&worker) {
            self.by_slot[slot.index()] = None;
            self.free.push(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use dynamo_core::protocol::InstanceId;

    use super::*;

    #[test]
    fn a_slot_is_one_workers_until_it_is_released() {
        let worker = |id| WorkerId::new(InstanceId(id));
        let mut workers = Workers::default();
        let slots: Vec<_> = (0..3).map(|id| workers.get_or_take(worker(id)).unwrap()).collect();
        assert_eq!(slots.iter().map(|slot| slot.index()).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(workers.get_or_take(worker(1)), Some(slots[1]));
        workers.release(worker(1));
        assert_eq!(workers.get(worker(1)), None);
        assert_eq!(workers.get_or_take(worker(7)), Some(slots[1]));
        assert_eq!(workers.get_or_take(worker(1)).unwrap().index(), 3);
        workers.release(worker(8));
        assert_eq!(Slot::from_index(Slot::COUNT), None);
        (4..Slot::COUNT as u64 + 2).for_each(|id| _ = workers.get_or_take(worker(100 + id)));
        assert_eq!(workers.get_or_take(worker(9)), None);
    }
}
