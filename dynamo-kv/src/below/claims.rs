//! Who is loading which block, so that nobody else does.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::identity::{BlockIdentity, BlockKey};

/// The blocks that are being loaded.
#[derive(Default)]
pub(super) struct Claims(Mutex<HashMap<BlockIdentity, watch::Receiver<()>>>);

/// The right to load a block; it ends when this is dropped, and whoever waits looks again.
pub(super) struct Claim<'a> {
    claims: &'a Claims,
    identity: BlockIdentity,
    _ended: watch::Sender<()>,
}

/// Another's claim.
pub(super) struct Claimed(watch::Receiver<()>);

impl Claims {
    /// Claims the first of the blocks, up to one that another has claimed; fails with that if it is
    /// the very first.
    pub(super) fn claim(&self, keys: &[BlockKey]) -> Result<Vec<Claim<'_>>, Claimed> {
        let mut known = self.lock();
        let mut claims = Vec::with_capacity(keys.len());
        for key in keys {
            match known.entry(key.identity) {
                Entry::Occupied(other) if claims.is_empty() => {
                    return Err(Claimed(other.get().clone()));
                }
                Entry::Occupied(_) => break,
                Entry::Vacant(place) => {
                    let (ended, receiver) = watch::channel(());
                    place.insert(receiver);
                    claims.push(Claim { claims: self, identity: key.identity, _ended: ended });
                }
            }
        }
        Ok(claims)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BlockIdentity, watch::Receiver<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claimed {
    /// Waits until the other one has loaded the block, or given up.
    pub(super) async fn ended(mut self) {
        // Nothing is ever sent: it fails when the claim is dropped.
        while self.0.changed().await.is_ok() {}
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.claims.lock().remove(&self.identity);
    }
}
