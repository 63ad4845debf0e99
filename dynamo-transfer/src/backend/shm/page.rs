//! The page on which an owner says whether an open region may still be used, and a peer says that it
//! is using it.
#![expect(unsafe_code, reason = "atomics in memory that two processes map")]

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::memory::{Mapping, SharedFile};

/// One slot per region that a peer has opened: how many copies are in progress, and whether it is
/// revoked. Both sides only ever add and take away: whoever sees no revocation as it enters is seen
/// by whoever revokes.
pub(super) struct Page(Mapping);

/// The proof that a copy may touch the region of a slot, until it is dropped.
pub(super) struct Entered<'a>(&'a AtomicU64);

impl Page {
    /// Makes a page whose slots are all revoked.
    pub(super) fn create() -> io::Result<(Self, SharedFile)> {
        let file = SharedFile::create(PAGE_BYTES)?;
        let page = Self(file.map()?);
        for index in 0..SLOTS {
            page.slot(index).store(REVOKED, Ordering::SeqCst);
        }
        Ok((page, file))
    }

    /// Maps a page that the owner has given.
    pub(super) fn of(file: OwnedFd) -> io::Result<Self> {
        Mapping::of(file, PAGE_BYTES, true).map(Self)
    }

    /// Begins a copy; `None` if the slot is revoked.
    pub(super) fn enter(&self, index: u32) -> Option<Entered<'_>> {
        let slot = self.slot(index);
        let entered = (slot.fetch_add(1, Ordering::SeqCst), Entered(slot));
        (entered.0 & REVOKED == 0).then_some(entered.1)
    }

    pub(super) fn is_revoked(&self, index: u32) -> bool {
        self.slot(index).load(Ordering::SeqCst) & REVOKED != 0
    }

    /// Lets copies begin.
    pub(super) fn open(&self, index: u32) {
        self.slot(index).store(0, Ordering::SeqCst);
    }

    /// Lets no copy begin any more; tells whether one is in progress.
    pub(super) fn revoke(&self, index: u32) -> bool {
        self.slot(index).fetch_or(REVOKED, Ordering::SeqCst) & !REVOKED != 0
    }

    /// # Panics
    /// If there is no such slot: whoever takes an index from a peer has checked.
    fn slot(&self, index: u32) -> &AtomicU64 {
        let span = self.0.span().slice(index as usize * SLOT_BYTES, SLOT_BYTES);
        // SAFETY: a slot lies inside the mapping, which lives as long as self, and is aligned as
        // pages are; nobody touches it but through atomics.
        unsafe { AtomicU64::from_ptr(span.as_ptr().cast()) }
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

const PAGE_BYTES: usize = 4096;
const SLOT_BYTES: usize = 8;

/// Regions that one peer has open at once.
pub(super) const SLOTS: u32 = 512;

const REVOKED: u64 = 1 << 63;

/// Whatever the peer writes on the page, no copy begins in a slot that was revoked. Each nine bytes
/// are a slot and a word in it.
#[cfg(any(test, feature = "test-util"))]
pub(crate) fn fuzz(data: &[u8]) {
    let Ok((page, _file)) = Page::create() else { return };
    for said in data.as_chunks::<9>().0 {
        let [slot, word @ ..] = *said;
        let (slot, word) = (u32::from(slot) * (SLOTS / 256), u64::from_le_bytes(word));
        page.slot(slot).store(word, Ordering::SeqCst);
        let entered = page.enter(slot);
        assert_eq!(entered.is_none(), word & REVOKED != 0);
        // The count that it returns is the peer's word about itself.
        page.revoke(slot);
        assert!(page.enter(slot).is_none() && page.is_revoked(slot));
        page.open(slot);
        assert!(page.enter(slot).is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_has_begun_is_seen_and_none_begins_after_the_revocation() {
        let (owner, file) = Page::create().unwrap();
        let peer = Page::of(file.as_fd(true).try_clone_to_owned().unwrap()).unwrap();
        assert!(peer.enter(3).is_none() && peer.is_revoked(3));
        owner.open(3);
        let copy = peer.enter(3).unwrap();
        assert!(owner.revoke(3), "in progress");
        assert!(peer.enter(3).is_none());
        drop(copy);
        assert!(!owner.revoke(3) && peer.is_revoked(3));
        owner.open(SLOTS - 1);
        assert!(peer.enter(SLOTS - 1).is_some() && peer.enter(3).is_none());
    }
}
