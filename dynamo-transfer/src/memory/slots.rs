//! One buffer cut into slots of one size: each has one owner that writes it, or many that read it.
#![expect(unsafe_code, reason = "slices of parts of one allocation, and counts of who holds them")]

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};

use super::buffer::HostBuffer;

/// A part of a [`HostBuffer`] that is owned and may be written.
///
/// The buffer is freed when all of its slots are dropped. Moving a slot, sharing it and taking it back
/// allocates nothing.
pub struct Slot {
    /// Freed by the slot that is dropped last.
    arena: NonNull<Arena>,
    index: u32,
}

/// A [`Slot`] that has several holders, who read it.
pub struct SharedSlot {
    arena: NonNull<Arena>,
    index: u32,
}

struct Arena {
    /// Untouched until the arena ends: `base` was taken from a borrow that counts as lasting so long.
    _buffer: HostBuffer,
    base: NonNull<u8>,
    slot_bytes: usize,
    /// Who shares each slot; nobody's matter while it has one owner.
    holders: Box<[AtomicU32]>,
    /// Slots that were not dropped yet.
    slots: AtomicUsize,
}

// SAFETY: a slot is the only way to its bytes, as a `&mut [u8]` is, and the rest of an arena is atomic.
unsafe impl Send for Slot {}
// SAFETY: through a shared reference its bytes are only read.
unsafe impl Sync for Slot {}
// SAFETY: its bytes are only read, and whoever drops the last has seen what the others did.
unsafe impl Send for SharedSlot {}
// SAFETY: as above.
unsafe impl Sync for SharedSlot {}

impl HostBuffer {
    /// Cuts the buffer into slots of `slot_bytes` bytes; what is left behind the last is not used.
    ///
    /// # Panics
    /// If `slot_bytes` is 0, or there would be more than `u32::MAX` slots.
    pub fn into_slots(mut self, slot_bytes: usize) -> Vec<Slot> {
        assert!(slot_bytes > 0, "slots of no bytes");
        let count = self.len() / slot_bytes;
        let indices = 0..u32::try_from(count).expect("as many slots as a u32 counts");
        if count == 0 {
            return Vec::new();
        }
        let base = NonNull::from(&mut self[..]).cast();
        let holders = indices.clone().map(|_| AtomicU32::new(0)).collect();
        let slots = AtomicUsize::new(count);
        let arena = Box::new(Arena { _buffer: self, base, slot_bytes, holders, slots });
        let arena = NonNull::from(Box::leak(arena));
        indices.map(|index| Slot { arena, index }).collect()
    }
}

impl Slot {
    /// Lets others read it.
    pub fn share(self) -> SharedSlot {
        let slot = ManuallyDrop::new(self);
        let shared = SharedSlot { arena: slot.arena, index: slot.index };
        // Nobody else has seen it: whatever sends it to another thread orders this before.
        shared.holders().store(1, Ordering::Relaxed);
        shared
    }

    fn arena(&self) -> &Arena {
        // SAFETY: a slot that was not dropped keeps its arena.
        unsafe { self.arena.as_ref() }
    }
}

impl SharedSlot {
    /// Returns how many hold it, this one among them; others may change it at any time.
    pub fn holders_count(&self) -> usize {
        self.holders().load(Ordering::Acquire) as usize
    }

    /// Takes it back from one who holds it alone.
    ///
    /// Fails with the slot itself if others hold it.
    pub fn into_owned(self) -> Result<Slot, Self> {
        // Who sees 1 is the only one that could make it more. What the others have read was before.
        if self.holders().load(Ordering::Acquire) != 1 {
            return Err(self);
        }
        let shared = ManuallyDrop::new(self);
        Ok(Slot { arena: shared.arena, index: shared.index })
    }

    /// Lets go of it; returns how many hold it still.
    pub fn release(self) -> usize {
        ManuallyDrop::new(self).let_go()
    }

    fn let_go(&self) -> usize {
        let left = self.holders().fetch_sub(1, Ordering::Release) - 1;
        if left == 0 {
            fence(Ordering::Acquire);
            // The last one: what is dropped here is what it was before it was shared.
            drop(Slot { arena: self.arena, index: self.index });
        }
        left as usize
    }

    fn arena(&self) -> &Arena {
        // SAFETY: a slot that was not dropped keeps its arena.
        unsafe { self.arena.as_ref() }
    }

    fn holders(&self) -> &AtomicU32 {
        &self.arena().holders[self.index as usize]
    }
}

impl Clone for SharedSlot {
    fn clone(&self) -> Self {
        // Whoever clones holds it: nothing is ordered by this. A count that began anew would let memory
        // go that is held, so it does not.
        let one_more = |holders: u32| holders.checked_add(1);
        let counted = self.holders().fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        assert!(counted.is_ok(), "{} holders of a slot, the limit", u32::MAX);
        Self { arena: self.arena, index: self.index }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.arena().slots.fetch_sub(1, Ordering::Release) == 1 {
            fence(Ordering::Acquire);
            // SAFETY: it came from a box, and no slot is left to find it.
            drop(unsafe { Box::from_raw(self.arena.as_ptr()) });
        }
    }
}

impl Drop for SharedSlot {
    fn drop(&mut self) {
        self.let_go();
    }
}

impl Arena {
    /// Returns where a slot is.
    fn at(&self, index: u32) -> NonNull<u8> {
        // SAFETY: slots have indices of whole slots inside the buffer.
        unsafe { self.base.add(index as usize * self.slot_bytes) }
    }
}

impl Deref for Slot {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let arena = self.arena();
        // SAFETY: the bytes are initialised, of this slot alone, and borrowed as the slot is.
        unsafe { slice::from_raw_parts(arena.at(self.index).as_ptr(), arena.slot_bytes) }
    }
}

impl DerefMut for Slot {
    fn deref_mut(&mut self) -> &mut [u8] {
        let arena = self.arena();
        // SAFETY: as above; the slot is borrowed exclusively, and there is one of each index.
        unsafe { slice::from_raw_parts_mut(arena.at(self.index).as_ptr(), arena.slot_bytes) }
    }
}

impl Deref for SharedSlot {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let arena = self.arena();
        // SAFETY: the bytes are initialised, and while there is a holder nobody writes them.
        unsafe { slice::from_raw_parts(arena.at(self.index).as_ptr(), arena.slot_bytes) }
    }
}

impl AsRef<[u8]> for Slot {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for Slot {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl AsRef<[u8]> for SharedSlot {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({}, {} bytes)", self.index, self.len())
    }
}

impl fmt::Debug for SharedSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedSlot({}, {} bytes)", self.index, self.len())
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn slots_are_disjoint_parts_of_the_buffer_and_the_rest_is_left() {
        let mut slots = HostBuffer::new(50).into_slots(16);
        assert_eq!(slots.len(), 3);
        for (slot, value) in slots.iter_mut().zip(1..) {
            slot.fill(value);
        }
        assert!(slots.iter().zip(1..).all(|(slot, value)| **slot == [value; 16]));
        assert!(HostBuffer::new(15).into_slots(16).is_empty());
    }

    #[test]
    fn what_is_shared_is_read_by_all_and_taken_back_by_the_last() {
        let mut slots = HostBuffer::new(64).into_slots(32);
        let mut first = slots.swap_remove(0);
        first.fill(7);
        let shared = first.share();
        let other = shared.clone();
        assert_eq!((shared.holders_count(), &other[..]), (2, &[7; 32][..]));
        let shared = shared.into_owned().unwrap_err();
        assert_eq!(other.release(), 1);
        let mut first = shared.into_owned().unwrap();
        first.fill(8);
        drop(slots);
        assert_eq!(first[31], 8, "the last slot keeps the memory");
        assert_eq!(first.share().release(), 0);
    }

    #[test]
    fn whoever_takes_a_slot_back_writes_after_all_have_read() {
        const READERS: u8 = 3;
        let slot = HostBuffer::new(8).into_slots(8).remove(0);
        let mut slot = Some(slot);
        for round in (0..=255).cycle().take(if cfg!(miri) { 10 } else { 1000 }) {
            let mut owned = slot.take().unwrap();
            owned.fill(round);
            let shared = owned.share();
            let kept = thread::scope(|scope| {
                for _ in 0..READERS {
                    let mine = shared.clone();
                    scope.spawn(move || {
                        assert!(mine.iter().all(|&byte| byte == round));
                        drop(mine);
                    });
                }
                let mut shared = shared;
                loop {
                    match shared.into_owned() {
                        Ok(owned) => break owned,
                        Err(held) => shared = held,
                    }
                    thread::yield_now();
                }
            });
            slot = Some(kept);
        }
    }
}
