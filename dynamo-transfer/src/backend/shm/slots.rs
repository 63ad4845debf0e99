use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use super::page::{Page, SLOTS};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Lease, RegionTable, Standing, Token};

/// What one peer has open, at the owner: a slot on the page and a lease for each.
pub(super) struct Slots {
    page: Arc<Page>,
    held: Vec<Option<Arc<Held>>>,
}

/// An open region. Its lease is given up when it is revoked and no copy is in progress; a copy that
/// is keeps it until the peer says that it is done, or is dead.
struct Held {
    page: Arc<Page>,
    slot: u32,
    expiry: Option<Instant>,
    lease: Mutex<Option<Lease>>,
}

impl Slots {
    pub(super) fn new(page: Page) -> Self {
        Self { page: Arc::new(page), held: (0..SLOTS).map(|_| None).collect() }
    }

    /// Lets the peer use a region until it is revoked or the token expires; returns its slot.
    pub(super) fn open(
        &mut self,
        regions: &RegionTable,
        (id, token): (u64, &Token),
        lease: Lease,
    ) -> Result<u32> {
        let free = (0..).zip(&mut self.held).find(|(_, held)| held.is_none());
        let Some((slot, place)) = free else {
            let message = format!("{SLOTS} regions are open, the limit");
            return Err(Error::new(ErrorKind::Overloaded, message));
        };
        let (page, lease) = (Arc::clone(&self.page), Mutex::new(Some(lease)));
        let held = Arc::new(Held { page, slot, expiry: regions.expiry(token), lease });
        self.page.open(slot);
        // Whoever revokes from here on finds it.
        let standing = Arc::downgrade(&held);
        regions.stand(id, token.generation, standing)?;
        *place = Some(held);
        Ok(slot)
    }

    /// Frees a slot: the peer has done with it.
    pub(super) fn close(&mut self, slot: u32) -> Result<()> {
        match self.held.get_mut(slot as usize) {
            Some(place) if place.as_ref().is_some_and(|held| held.try_release()) => {
                *place = None;
                Ok(())
            }
            _ => {
                let message = format!("slot {slot} is not open, or in use");
                Err(Error::new(ErrorKind::Protocol, message))
            }
        }
    }

    /// Returns when the next token expires.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        let open = self.held.iter().flatten().filter(|held| !held.page.is_revoked(held.slot));
        open.filter_map(|held| held.expiry).min()
    }

    /// Revokes whatever has expired.
    pub(super) fn expire(&self, now: Instant) {
        let open = self.held.iter().flatten();
        let expired = open.filter(|held| held.expiry.is_some_and(|at| at <= now));
        expired.for_each(|held| held.revoke());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.iter().all(Option::is_none)
    }

    /// Revokes all, and tells whether no copy is in progress.
    pub(super) fn revoke(&self) -> bool {
        let open = self.held.iter().flatten();
        open.filter(|held| !held.try_release()).count() == 0
    }

    /// Gives up all: the peer has ended, and copies nothing any more.
    pub(super) fn release(&self) {
        self.held.iter().flatten().for_each(|held| held.release());
    }
}

impl Held {
    /// Revokes it, and gives the lease up unless a copy is in progress; tells whether none is.
    fn try_release(&self) -> bool {
        let is_quiet = !self.page.revoke(self.slot);
        if is_quiet {
            drop(self.take());
        }
        is_quiet
    }

    /// Gives the lease up, whatever the page says.
    fn release(&self) {
        self.page.revoke(self.slot);
        drop(self.take());
    }

    fn take(&self) -> Option<Lease> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Standing for Held {
    fn revoke(&self) {
        self.try_release();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.revoke();
        if let Some(lease) = self.take() {
            tracing::warn!("memory stays in quarantine: a peer is still copying");
            #[expect(clippy::mem_forget, reason = "what a peer may touch is never freed")]
            std::mem::forget(lease);
        }
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slots").finish_non_exhaustive()
    }
}
