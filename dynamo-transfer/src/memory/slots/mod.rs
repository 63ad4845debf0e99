//! One buffer cut into slots of one size: each has one owner that writes it, or many that read it.
//!
//! ```text
//!   Slot ──share──► SharedSlot ◄──clone──┐      counts one holder each; a slot shared *behind* another
//!    ▲                  │  └─────────────┘      is a holder of that one, so the last of a chain keeps
//!    └───into_owned─────┘  (held alone)         all of it: a `SlotRun` is one hold of many slots
//! ```
#![expect(unsafe_code, reason = "slices of parts of one allocation that many handles own")]

mod lists;
mod shared;
mod sync;

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;

use super::buffer::HostBuffer;
use sync::{AtomicU32, AtomicUsize, Ordering, fence};

pub use lists::{SharedSlots, SlotList};
pub use shared::{SharedSlot, SlotRun};

/// A part of a [`HostBuffer`] that is owned and may be written.
///
/// The buffer is freed when all of its slots are dropped, and `H` with it: something that all of them
/// lead to. Moving a slot, sharing it and taking it back allocates nothing.
pub struct Slot<H = ()> {
    /// Freed by the slot that is dropped last.
    arena: NonNull<Arena<H>>,
    index: u32,
}

struct Arena<H> {
    /// Untouched until the arena ends: `base` was taken from a borrow that counts as lasting so long.
    _buffer: HostBuffer,
    base: NonNull<u8>,
    slot_bytes: usize,
    /// Who shares each slot; nobody's matter while it has one owner.
    holders: Box<[AtomicU32]>,
    /// The slot that each holds while it is shared, or [`NONE`]; likewise.
    before: Box<[AtomicU32]>,
    /// Slots that were not dropped yet.
    slots: AtomicUsize,
    home: H,
}

/// No slot.
const NONE: u32 = u32::MAX;

// SAFETY: a slot is the only way to its bytes, as a `&mut [u8]` is, and the rest of an arena is atomic,
// or is `H`, which any thread may reach and the last one drops.
unsafe impl<H: Send + Sync> Send for Slot<H> {}
// SAFETY: through a shared reference its bytes are only read, and `H` is shared.
unsafe impl<H: Send + Sync> Sync for Slot<H> {}

impl HostBuffer {
    /// Cuts the buffer into slots of `slot_bytes` bytes; what is left behind the last is not used.
    ///
    /// # Panics
    /// If `slot_bytes` is 0, or there would be `u32::MAX` slots or more.
    pub fn into_slots(self, slot_bytes: usize) -> SlotList {
        self.into_slots_of(slot_bytes, ())
    }

    /// Cuts the buffer into slots that all lead to `home`, as [`into_slots`](Self::into_slots) does.
    ///
    /// # Panics
    /// As there.
    pub fn into_slots_of<H>(self, slot_bytes: usize, home: H) -> SlotList<H> {
        assert!(slot_bytes > 0, "slots of no bytes");
        let count = self.len() / slot_bytes;
        Arena::cut(self, slot_bytes, count, home)
    }
}

impl<H> SlotList<H> {
    /// Creates `count` slots of no bytes, which all lead to `home`: owners and holders of what only a
    /// number tells apart, as parts of memory that the processor does not reach.
    ///
    /// # Panics
    /// If there would be `u32::MAX` slots or more.
    pub fn of_numbers(count: usize, home: H) -> Self {
        Arena::cut(HostBuffer::new(0), 0, count, home)
    }
}

impl<H> Slot<H> {
    /// Lets others read it.
    pub fn share(self) -> SharedSlot<H> {
        self.share_times(1, None)
    }

    /// Lets others read it, and gives `before` up to it: held for as long as this one is shared.
    ///
    /// Returns two holds, for one that stays and for one that is given up likewise to the next slot;
    /// it takes no atomic step that others wait for.
    ///
    /// # Panics
    /// If `before` is of another buffer.
    pub fn share_behind(self, before: Option<SharedSlot<H>>) -> [SharedSlot<H>; 2] {
        let first = self.share_times(2, before);
        let second = SharedSlot { arena: first.arena, index: first.index };
        [first, second]
    }

    /// Returns the first of so many holds.
    fn share_times(self, holds: u32, before: Option<SharedSlot<H>>) -> SharedSlot<H> {
        let is_ours = before.as_ref().is_none_or(|before| before.arena == self.arena);
        assert!(is_ours, "slots of one buffer");
        let before = before.map(ManuallyDrop::new);
        let slot = ManuallyDrop::new(self);
        let (arena, at) = (slot.arena(), slot.index as usize);
        // Nobody else has seen it: whatever sends it to another thread orders these before.
        arena.before[at].store(before.map_or(NONE, |before| before.index), Ordering::Relaxed);
        arena.holders[at].store(holds, Ordering::Relaxed);
        SharedSlot { arena: slot.arena, index: slot.index }
    }

    /// Returns which slot of its buffer it is.
    pub fn index(&self) -> usize {
        self.index as usize
    }

    /// Returns what all slots of the buffer lead to.
    pub fn home(&self) -> &H {
        &self.arena().home
    }

    fn arena(&self) -> &Arena<H> {
        // SAFETY: a slot that was not dropped keeps its arena.
        unsafe { self.arena.as_ref() }
    }
}

impl<H> Drop for Slot<H> {
    fn drop(&mut self) {
        if self.arena().slots.fetch_sub(1, Ordering::Release) == 1 {
            fence(Ordering::Acquire);
            // SAFETY: it came from a box, and no slot is left to find it.
            drop(unsafe { Box::from_raw(self.arena.as_ptr()) });
        }
    }
}

impl<H> Arena<H> {
    /// Makes `count` slots of a buffer that has room for them.
    fn cut(mut buffer: HostBuffer, slot_bytes: usize, count: usize, home: H) -> SlotList<H> {
        let limit = u32::try_from(count).ok().filter(|count| *count < NONE);
        let indices = 0..limit.expect("fewer slots than a u32 counts");
        let is_room = count.checked_mul(slot_bytes).is_some_and(|bytes| bytes <= buffer.len());
        assert!(is_room, "slots lie inside their buffer");
        if count == 0 {
            return SlotList::default();
        }
        let base = NonNull::from(&mut buffer[..]).cast();
        let holders = indices.clone().map(|_| AtomicU32::new(0)).collect();
        let before = indices.clone().map(|_| AtomicU32::new(NONE)).collect();
        let slots = AtomicUsize::new(count);
        let arena = Self { _buffer: buffer, base, slot_bytes, holders, before, slots, home };
        let arena = NonNull::from(Box::leak(Box::new(arena)));
        // SAFETY: each index is that of one slot, and nobody else has any.
        unsafe { SlotList::from_raw(arena, indices.rev().collect()) }
    }

    /// Returns where a slot is.
    fn at(&self, index: u32) -> NonNull<u8> {
        // SAFETY: slots have indices of whole slots inside the buffer; those of no bytes stay at its base.
        unsafe { self.base.add(index as usize * self.slot_bytes) }
    }
}

impl<H> Deref for Slot<H> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let arena = self.arena();
        // SAFETY: the bytes are initialised, of this slot alone, and borrowed as the slot is.
        unsafe { slice::from_raw_parts(arena.at(self.index).as_ptr(), arena.slot_bytes) }
    }
}

impl<H> DerefMut for Slot<H> {
    fn deref_mut(&mut self) -> &mut [u8] {
        let arena = self.arena();
        // SAFETY: as above; the slot is borrowed exclusively, and there is one of each index.
        unsafe { slice::from_raw_parts_mut(arena.at(self.index).as_ptr(), arena.slot_bytes) }
    }
}

impl<H> AsRef<[u8]> for Slot<H> {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl<H> AsMut<[u8]> for Slot<H> {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl<H> fmt::Debug for Slot<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({}, {} bytes)", self.index, self.len())
    }
}

#[cfg(test)]
mod tests;
