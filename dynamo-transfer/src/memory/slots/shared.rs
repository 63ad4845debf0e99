use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, Index};
use std::ptr::NonNull;
use std::slice;

use super::sync::{Ordering, fence};
use super::{Arena, NONE, Slot};

/// A [`Slot`] that has several holders, who read it.
pub struct SharedSlot<H = ()> {
    pub(super) arena: NonNull<Arena<H>>,
    pub(super) index: u32,
}

/// Shared slots of which each holds the one before it, as one hold.
pub struct SlotRun<H = ()> {
    last: SharedSlot<H>,
    /// First slot first. Each is held by the next one, and the last by the run.
    indices: Vec<u32>,
}

// SAFETY: its bytes are only read, and whoever drops the last has seen what the others did; of `H` as
// with a slot.
unsafe impl<H: Send + Sync> Send for SharedSlot<H> {}
// SAFETY: as above.
unsafe impl<H: Send + Sync> Sync for SharedSlot<H> {}

impl<H> SharedSlot<H> {
    /// Returns how many hold it, this one and slots behind it among them; others may change it at any
    /// time.
    pub fn holders_count(&self) -> usize {
        self.arena().holders[self.index as usize].load(Ordering::Acquire) as usize
    }

    /// Takes it back from one who has all holds of it: this one, and `also` if that is one of them.
    ///
    /// Returns with it the hold that it had of the slot before it. Fails with this hold if others have
    /// some.
    pub fn into_owned(self, also: Option<Self>) -> Result<(Slot<H>, Option<Self>), Self> {
        let is_this = |also: &Self| also.arena == self.arena && also.index == self.index;
        let also = also.filter(is_this);
        let ours = 1 + usize::from(also.is_some());
        // Who sees its own alone is the only one that could add some. What others have read was before.
        if self.holders_count() != ours {
            return Err(self);
        }
        let (shared, _) = (ManuallyDrop::new(self), also.map(ManuallyDrop::new));
        Ok((Slot { arena: shared.arena, index: shared.index }, shared.before()))
    }

    /// Returns it with those before it that are held through it, `slots_max` at most.
    pub fn into_run(self, slots_max: usize) -> SlotRun<H> {
        let before = &self.arena().before;
        let mut indices = Vec::with_capacity(slots_max);
        let mut next = self.index;
        while next != NONE && indices.len() < slots_max {
            indices.push(next);
            // Whoever holds a slot has seen it shared, and with it what it holds.
            next = before[next as usize].load(Ordering::Relaxed);
        }
        indices.reverse();
        SlotRun { last: self, indices }
    }

    /// Returns which slot of its buffer it is.
    pub fn index(&self) -> usize {
        self.index as usize
    }

    /// Returns what all slots of the buffer lead to.
    pub fn home(&self) -> &H {
        &self.arena().home
    }

    /// Returns the hold that it has of the slot before it; to be called once.
    fn before(&self) -> Option<Self> {
        let index = self.arena().before[self.index as usize].load(Ordering::Relaxed);
        (index != NONE).then(|| Self { arena: self.arena, index })
    }

    /// Lets go of it alone; tells whether it was the last holder.
    fn let_go(&self) -> bool {
        let holders = &self.arena().holders[self.index as usize];
        if holders.fetch_sub(1, Ordering::Release) != 1 {
            return false;
        }
        fence(Ordering::Acquire);
        true
    }

    pub(super) fn arena(&self) -> &Arena<H> {
        // SAFETY: a slot that was not dropped keeps its arena.
        unsafe { self.arena.as_ref() }
    }

    fn bytes_of(&self, index: u32) -> &[u8] {
        let arena = self.arena();
        // SAFETY: the bytes are initialised; `index` is this slot or one that it keeps shared, and
        // while there is a holder nobody writes them.
        unsafe { slice::from_raw_parts(arena.at(index).as_ptr(), arena.slot_bytes) }
    }
}

impl<H> Clone for SharedSlot<H> {
    fn clone(&self) -> Self {
        let holders = &self.arena().holders[self.index as usize];
        // Whoever clones holds it: nothing is ordered by this.
        let is_counted = holders.fetch_add(1, Ordering::Relaxed) < HOLDERS_MAX;
        if !is_counted {
            // A count that began anew would let memory go that is held.
            holders.fetch_sub(1, Ordering::Relaxed);
        }
        assert!(is_counted, "{HOLDERS_MAX} holders of a slot, the limit");
        Self { arena: self.arena, index: self.index }
    }
}

/// As many more are left for threads that go beyond it at once.
const HOLDERS_MAX: u32 = u32::MAX / 2;

impl<H> Drop for SharedSlot<H> {
    fn drop(&mut self) {
        // One after the other: chains are as long as sequences.
        let mut last = self.let_go().then_some((self.arena, self.index));
        while let Some((arena, index)) = last {
            let shared = ManuallyDrop::new(Self { arena, index });
            let before = shared.before().map(ManuallyDrop::new);
            last = before.filter(|before| before.let_go()).map(|before| (arena, before.index));
            // What is dropped here is what it was before it was shared.
            drop(Slot { arena, index });
        }
    }
}

impl<H> SlotRun<H> {
    /// Returns how many slots there are.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Tells whether there are none, which is so only if none were asked for.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// Returns the last slot, which keeps the others.
    pub fn last(&self) -> &SharedSlot<H> {
        &self.last
    }

    /// Returns which slot of its buffer one is, if there is one.
    pub fn index(&self, at: usize) -> Option<usize> {
        self.indices.get(at).map(|index| *index as usize)
    }

    /// Returns the bytes of a slot, if there is one.
    pub fn get(&self, at: usize) -> Option<&[u8]> {
        self.indices.get(at).map(|index| self.last.bytes_of(*index))
    }

    /// Returns a hold of one slot, and those before it, if there is one.
    pub fn hold(&self, at: usize) -> Option<SharedSlot<H>> {
        let slot = |index: &u32| SharedSlot { arena: self.last.arena, index: *index };
        // It is held as long as the run is borrowed: a holder to clone from, but not to drop.
        self.indices.get(at).map(slot).map(|slot| SharedSlot::clone(&ManuallyDrop::new(slot)))
    }

    /// Appends the slots of `next`, if its first one holds the last one of this; else gives it back.
    pub fn append(&mut self, next: Self) -> Result<(), Self> {
        let first = next.indices.first().filter(|_| next.last.arena == self.last.arena);
        let before =
            first.map(|first| next.last.arena().before[*first as usize].load(Ordering::Relaxed));
        if before != Some(self.last.index) {
            return Err(next);
        }
        self.indices.extend_from_slice(&next.indices);
        self.last = next.last;
        Ok(())
    }
}

impl<H> Clone for SlotRun<H> {
    fn clone(&self) -> Self {
        Self { last: self.last.clone(), indices: self.indices.clone() }
    }
}

impl<H> Index<usize> for SlotRun<H> {
    type Output = [u8];

    fn index(&self, at: usize) -> &[u8] {
        self.last.bytes_of(self.indices[at])
    }
}

impl<H> Deref for SharedSlot<H> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes_of(self.index)
    }
}

impl<H> AsRef<[u8]> for SharedSlot<H> {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl<H> fmt::Debug for SharedSlot<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedSlot({}, {} bytes)", self.index, self.len())
    }
}

impl<H> fmt::Debug for SlotRun<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SlotRun({:?}, {} bytes each)", self.indices, self.last.len())
    }
}
