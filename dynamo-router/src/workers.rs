//! Who can be chosen: each worker has a dense number, by which tables are indexed, and a seat, which
//! says what is booked on it and how fast it is.

mod fleet;
mod listed;
mod listeners;
mod members;
mod seat;

use std::sync::{Arc, Mutex, PoisonError};

use crate::load::{Chunk, ROWS, Row};

pub use fleet::RANKS_LABEL;
pub use listeners::ReleaseListener;

pub(crate) use fleet::{Fleet, Positions, is_in, ranks};
pub(crate) use listeners::Change;
pub(crate) use members::Members;
pub(crate) use seat::{Common, Seat, as_ns};

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

/// The slots that nobody has.
#[derive(Debug, Default)]
pub(crate) struct Slots(Mutex<Free>);

#[derive(Debug, Default)]
struct Free {
    /// The lowest that was never taken.
    next: usize,
    given_back: Vec<Slot>,
    /// The rows of all slots that were ever taken.
    chunks: Vec<Arc<Chunk>>,
}

impl Slots {
    /// Takes a free slot, with its row; `None` if all are taken.
    fn take(&self) -> Option<(Slot, Row)> {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = free.given_back.pop().or_else(|| {
            let slot = Slot::from_index(free.next)?;
            free.next += 1;
            Some(slot)
        })?;
        let chunk = slot.index() / ROWS;
        if free.chunks.len() == chunk {
            free.chunks.push(Arc::default());
        }
        Some((slot, Row::take(&free.chunks[chunk], slot.index() % ROWS)))
    }

    fn give_back(&self, slot: Slot) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).given_back.push(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_taken_once_until_it_is_given_back() {
        let slots = Slots::default();
        let take = || slots.take().map(|(slot, _)| slot);
        let taken: Vec<_> = (0..3).map(|_| take().unwrap().index()).collect();
        assert_eq!(taken, [0, 1, 2]);
        slots.give_back(Slot::from_index(1).unwrap());
        assert_eq!(take(), Slot::from_index(1));
        assert_eq!(take(), Slot::from_index(3));
        assert_eq!(Slot::from_index(Slot::COUNT), None);
        (4..Slot::COUNT).for_each(|_| assert!(take().is_some()));
        assert_eq!(take(), None);
    }
}
