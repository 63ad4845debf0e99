//! The page on which an owner says whether an open region may still be used, and a peer says that it
//! is using it.
#![expect(unsafe_code, reason = "atomics in memory that two processes map")]

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::memory::{Mapping, SharedFile};

/// One slot per region that a peer has opened: how many copies are in progress, and whether it is
/// revoked. Both sides only ever add and take away, in one word: whoever sees no revocation as it
/// enters is seen by whoever revokes, and sees the revocation as it leaves.
pub(super) struct Page(Mapping);

/// The proof that a copy may touch the region of a slot, until it is dropped.
pub(super) struct Entered<'a> {
    slot: &'a AtomicU64,
    left_revoked: &'a Notify,
}

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

    /// Begins a copy; `None` if the slot is revoked. Whoever leaves one that is has `left_revoked`
    /// told: the owner may be waiting for it.
    pub(super) fn enter<'a>(&'a self, index: u32, left_revoked: &'a Notify) -> Option<Entered<'a>> {
        let slot = self.slot(index);
        let before = slot.fetch_add(1, Ordering::SeqCst);
        let entered = Entered { slot, left_revoked };
        (before & REVOKED == 0).then_some(entered)
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
        if self.slot.fetch_sub(1, Ordering::SeqCst) & REVOKED != 0 {
            self.left_revoked.notify_one();
        }
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
    let left = Notify::new();
    for said in data.as_chunks::<9>().0 {
        let [slot, word @ ..] = *said;
        let (slot, word) = (u32::from(slot) * (SLOTS / 256), u64::from_le_bytes(word));
        page.slot(slot).store(word, Ordering::SeqCst);
        let entered = page.enter(slot, &left);
        assert_eq!(entered.is_none(), word & REVOKED != 0);
        // The count that it returns is the peer's word about itself.
        page.revoke(slot);
        assert!(page.enter(slot, &left).is_none() && page.is_revoked(slot));
        page.open(slot);
        assert!(page.enter(slot, &left).is_some());
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn a_copy_that_has_begun_is_seen_and_none_begins_after_the_revocation() {
        let (owner, peer, left) = both();
        assert!(peer.enter(3, &left).is_none() && peer.is_revoked(3));
        owner.open(3);
        let copy = peer.enter(3, &left).unwrap();
        assert!(owner.revoke(3), "in progress");
        assert!(peer.enter(3, &left).is_none());
        drop(copy);
        assert!(!owner.revoke(3) && peer.is_revoked(3));
        owner.open(SLOTS - 1);
        assert!(peer.enter(SLOTS - 1, &left).is_some() && peer.enter(3, &left).is_none());
    }

    /// Each step is one atomic one on one word: what two processes do is one of these orders.
    #[test]
    fn in_whatever_order_two_copies_and_a_revocation_come_owner_and_peer_never_both_miss_it() {
        let mut orders = 0;
        for order in 0..3usize.pow(5) {
            let steps = (0..5).map(|place| order / 3usize.pow(place) % 3);
            let steps: Vec<_> = steps.collect();
            let of = |who| steps.iter().filter(|step| **step == who).count();
            if (of(0), of(1)) != (2, 2) {
                continue;
            }
            orders += 1;
            let (owner, peer, left) = both();
            owner.open(3);
            let mut copies = [const { None }; 2];
            let mut is_waiting = false;
            for step in steps {
                match copies.get_mut(step) {
                    None => is_waiting = owner.revoke(3),
                    Some(Some(_)) => copies[step] = None,
                    Some(none) => *none = peer.enter(3, &left),
                }
            }
            drop(copies);
            let is_told = left.notified().now_or_never().is_some();
            assert!(is_told || !is_waiting, "{order}");
            assert!(!owner.revoke(3), "all have left");
        }
        assert_eq!(orders, 30);
    }

    fn both() -> (Page, Page, Notify) {
        let (owner, file) = Page::create().unwrap();
        let peer = Page::of(file.as_fd(true).try_clone_to_owned().unwrap()).unwrap();
        (owner, peer, Notify::new())
    }
}
