use std::sync::Arc;
use std::time::Duration;

use dynamo_core::Result;
use dynamo_transfer::RemoteRegion;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::client::{Inner, unexpected};
use super::message::{Ask, Digest, LeaseId, Lent, Told};
use super::moving::moving;
use crate::time::TIME_MAX;

/// A lease, as whoever has it sees it: dropping it gives back what is lent, by a task of the tier.
///
/// What the owner cannot be told ends at its time.
pub(super) struct Loan {
    tier: Arc<Inner>,
    lent: Lent,
    /// It lasts until then at least.
    ends: Instant,
    is_over: bool,
}

impl Loan {
    /// Takes what is lent; `begun` is when it was asked for, before the owner's time began.
    pub(super) fn new(tier: &Arc<Inner>, lent: Lent, begun: Instant) -> Self {
        let ends = begun + Duration::from_millis(lent.ttl_ms).min(TIME_MAX);
        Self { tier: Arc::clone(tier), lent, ends, is_over: false }
    }

    /// Returns where the blocks are.
    pub(super) fn region(&self) -> Result<RemoteRegion> {
        let peer = self.tier.agent.load_metadata(&self.lent.metadata).map_err(moving)?;
        peer.regions().first().cloned().ok_or_else(unexpected)
    }

    pub(super) fn left(&self) -> Duration {
        self.ends.saturating_duration_since(Instant::now())
    }

    /// Has the owner share what was written; returns which blocks it has taken.
    pub(super) async fn commit(mut self, digests: Vec<Digest>) -> Result<Vec<bool>> {
        let commit = Ask::Commit { lease: self.lent.lease, digests };
        match self.tier.ask(commit, self.tier.config.request_timeout).await? {
            Told::Committed(taken) => {
                self.is_over = true;
                Ok(taken)
            }
            _ => Err(unexpected()),
        }
    }

    /// Gives it back, and waits until the owner has it.
    pub(super) async fn end(mut self) {
        self.tier.release(self.lent.lease).await;
        self.is_over = true;
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        // A runtime that has gone takes its tasks with it.
        let (false, Ok(runtime)) = (self.is_over, Handle::try_current()) else { return };
        let Ok(place) = Arc::clone(&self.tier.returns).try_acquire_owned() else { return };
        let (tier, lease) = (Arc::clone(&self.tier), self.lent.lease);
        let release = async move {
            tier.release(lease).await;
            drop(place);
        };
        self.tier.tasks.spawn_on(release, &runtime);
    }
}

impl Inner {
    async fn release(&self, lease: LeaseId) {
        if let Err(error) = self.ask(Ask::Release(lease), self.config.request_timeout).await {
            tracing::debug!(%error, ?lease, "a lease of blocks ends at its time");
        }
    }
}

/// Leases on their way back at once; what is beyond ends at its time.
pub(super) const RETURNS_MAX: usize = 64;
