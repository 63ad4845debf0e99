use std::fmt;
use std::sync::Arc;

use dynamo_core::protocol::HandoffTicket;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Holds;
use super::ticket::StageId;
use crate::block::{PartialBlock, RegisteredBlock};

/// Blocks held for a peer; dropping it ends the hold.
#[must_use = "dropping it ends the hold"]
pub struct Staged {
    ticket: HandoffTicket,
    id: StageId,
    expires: Instant,
    settled: oneshot::Receiver<Settlement>,
    holds: Arc<Holds>,
}

/// How a hold ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Settlement {
    /// The peer has the blocks.
    Pulled,
    /// Nobody came in time, or the hand-off was shut down.
    Expired,
}

impl Staged {
    pub(super) fn new(
        ticket: HandoffTicket,
        id: StageId,
        expires: Instant,
        settled: oneshot::Receiver<Settlement>,
        holds: Arc<Holds>,
    ) -> Self {
        Self { ticket, id, expires, settled, holds }
    }

    /// Returns the claim that a decode worker redeems.
    pub fn ticket(&self) -> &HandoffTicket {
        &self.ticket
    }

    /// Waits until the blocks are pulled or the hold expires: the TTL bounds the wait.
    ///
    /// # Cancel safety
    /// Cancel safe; the hold goes on.
    pub async fn settled(&mut self) -> Settlement {
        match tokio::time::timeout_at(self.expires, &mut self.settled).await {
            Ok(Ok(settlement)) => settlement,
            _ => {
                self.holds.settle(&self.id, Settlement::Expired);
                Settlement::Expired
            }
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        self.holds.settle(&self.id, Settlement::Expired);
    }
}

impl fmt::Debug for Staged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staged").field("ticket", &self.ticket).finish_non_exhaustive()
    }
}

/// One block of a hold, as the region's memory.
#[derive(Debug)]
pub(super) enum Segment {
    Full(RegisteredBlock),
    Tail(PartialBlock),
}

impl AsRef<[u8]> for Segment {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Full(block) => block,
            Self::Tail(block) => block.as_ref(),
        }
    }
}
