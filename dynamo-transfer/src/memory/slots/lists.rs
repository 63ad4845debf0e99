use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::ptr::NonNull;

use super::{Arena, NONE, SharedSlot, Slot};

/// Owned slots of one buffer, at four bytes each: the last that came is the first to go.
pub struct SlotList<H = ()> {
    /// `None` only if there are no slots.
    arena: Option<NonNull<Arena<H>>>,
    indices: Vec<u32>,
}

/// Holds of shared slots of one buffer, in numbered places, at four bytes each.
pub struct SharedSlots<H = ()> {
    /// `None` only if all places are empty.
    arena: Option<NonNull<Arena<H>>>,
    /// [`NONE`] where a place is empty.
    places: Vec<u32>,
}

// SAFETY: it is a list of slots, which may be sent likewise.
unsafe impl<H: Send + Sync> Send for SlotList<H> {}
// SAFETY: through a shared reference it is only counted.
unsafe impl<H: Send + Sync> Sync for SlotList<H> {}
// SAFETY: it is a list of shared slots, which may be sent likewise.
unsafe impl<H: Send + Sync> Send for SharedSlots<H> {}
// SAFETY: as above.
unsafe impl<H: Send + Sync> Sync for SharedSlots<H> {}

impl<H> SlotList<H> {
    /// # Safety
    /// Each index is that of a slot of `arena` that belongs to this list from now on.
    pub(super) unsafe fn from_raw(arena: NonNull<Arena<H>>, indices: Vec<u32>) -> Self {
        Self { arena: Some(arena), indices }
    }

    /// Returns how many slots there are.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Tells whether there are none.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// Adds a slot.
    ///
    /// # Panics
    /// If it is of another buffer than those that are there or were.
    pub fn push(&mut self, slot: Slot<H>) {
        assert_eq!(*self.arena.get_or_insert(slot.arena), slot.arena, "slots of one buffer");
        self.indices.push(ManuallyDrop::new(slot).index);
    }

    /// Takes out the slot that came last.
    pub fn pop(&mut self) -> Option<Slot<H>> {
        let (arena, index) = (self.arena?, self.indices.pop()?);
        Some(Slot { arena, index })
    }

    /// Splits off the slots from `at` on.
    ///
    /// # Panics
    /// If there are fewer than `at`.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Self {
        Self { arena: self.arena, indices: self.indices.split_off(at) }
    }

    /// Gives memory back that was for more than twice the slots there are.
    pub fn shrink(&mut self) {
        if self.indices.capacity() > 2 * self.indices.len().max(LENGTH_MIN) {
            self.indices.shrink_to(self.indices.len());
        }
    }
}

/// Memory for so many is kept.
const LENGTH_MIN: usize = 16;

impl<H> SharedSlots<H> {
    /// Returns the hold in a place.
    pub fn get(&self, place: usize) -> Option<impl Deref<Target = SharedSlot<H>>> {
        let index = self.places.get(place).copied().filter(|index| *index != NONE)?;
        // Borrowed from the place, which keeps the hold.
        Some(Borrowed::<H> {
            slot: ManuallyDrop::new(SharedSlot { arena: self.arena?, index }),
            _of: self,
        })
    }

    /// Makes room for so many places in all.
    pub fn reserve(&mut self, places: usize) {
        self.places.reserve_exact(places.saturating_sub(self.places.len()));
    }

    /// Puts a hold in a place, and drops what was there; there are places up to the largest number
    /// that was used.
    ///
    /// # Panics
    /// If it is of another buffer than those that are there or were.
    pub fn insert(&mut self, place: usize, slot: SharedSlot<H>) {
        assert_eq!(*self.arena.get_or_insert(slot.arena), slot.arena, "slots of one buffer");
        drop(self.take(place));
        if place >= self.places.len() {
            self.places.resize(place + 1, NONE);
        }
        self.places[place] = ManuallyDrop::new(slot).index;
    }

    /// Takes the hold out of a place.
    pub fn take(&mut self, place: usize) -> Option<SharedSlot<H>> {
        let index = std::mem::replace(self.places.get_mut(place)?, NONE);
        let arena = self.arena.filter(|_| index != NONE)?;
        Some(SharedSlot { arena, index })
    }
}

/// A hold that stays in its place.
struct Borrowed<'a, H> {
    slot: ManuallyDrop<SharedSlot<H>>,
    _of: &'a SharedSlots<H>,
}

impl<H> Deref for Borrowed<'_, H> {
    type Target = SharedSlot<H>;

    fn deref(&self) -> &SharedSlot<H> {
        &self.slot
    }
}

impl<H> Iterator for SlotList<H> {
    type Item = Slot<H>;

    fn next(&mut self) -> Option<Slot<H>> {
        self.pop()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.len(), Some(self.len()))
    }
}

impl<H> ExactSizeIterator for SlotList<H> {}

impl<H> Drop for SlotList<H> {
    fn drop(&mut self) {
        self.for_each(drop);
    }
}

impl<H> Drop for SharedSlots<H> {
    fn drop(&mut self) {
        (0..self.places.len()).for_each(|place| drop(self.take(place)));
    }
}

impl<H> Default for SlotList<H> {
    fn default() -> Self {
        Self { arena: None, indices: Vec::new() }
    }
}

impl<H> Default for SharedSlots<H> {
    fn default() -> Self {
        Self { arena: None, places: Vec::new() }
    }
}

impl<H> fmt::Debug for SlotList<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SlotList").field(&self.indices).finish()
    }
}

impl<H> fmt::Debug for SharedSlots<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedSlots").field("places", &self.places.len()).finish_non_exhaustive()
    }
}
