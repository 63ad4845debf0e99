use std::fmt;
use std::sync::Arc;

use dynamo_core::protocol::HandoffTicket;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::message::StageId;
use super::owner::Owner;
use crate::block::{PartialBlock, RegisteredBlock};

/// Blocks held for a peer; dropping it ends the hold.
#[must_use = "dropping it ends the hold"]
pub struct Staged {
    ticket: HandoffTicket,
    id: StageId,
    latest: Instant,
    settled: oneshot::Receiver<Settlement>,
    owner: Arc<Owner>,
}

/// How a hold ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Settlement {
    /// One peer has read the blocks, and knows that they are its own.
    Pulled,
    /// Nobody came in time, or the hand-off was shut down.
    Expired,
}

impl Staged {
    pub(super) fn new(
        ticket: HandoffTicket,
        id: StageId,
        latest: Instant,
        settled: oneshot::Receiver<Settlement>,
        owner: Arc<Owner>,
    ) -> Self {
        Self { ticket, id, latest, settled, owner }
    }

    /// Returns the claim that a decode worker redeems.
    pub fn ticket(&self) -> &HandoffTicket {
        &self.ticket
    }

    /// Waits until the blocks are pulled or the hold expires:
    /// [`HandoffConfig::ttl_max`](super::HandoffConfig::ttl_max) bounds the wait.
    ///
    /// # Cancel safety
    /// Cancel safe; the hold goes on.
    pub async fn settled(&mut self) -> Settlement {
        match tokio::time::timeout_at(self.latest, &mut self.settled).await {
            Ok(Ok(settlement)) => settlement,
            _ => {
                self.owner.drop_hold(self.id);
                Settlement::Expired
            }
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        self.owner.drop_hold(self.id);
    }
}

impl fmt::Debug for Staged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staged").field("ticket", &self.ticket).finish_non_exhaustive()
    }
}

/// One block of a hold, as memory of a region: that of an attempt may outlive another's.
#[derive(Debug, Clone)]
pub(super) struct Segment(Arc<Block>);

#[derive(Debug)]
enum Block {
    Full(RegisteredBlock),
    Tail(PartialBlock),
}

impl Segment {
    pub(super) fn of(blocks: Vec<RegisteredBlock>, tail: Option<PartialBlock>) -> Vec<Self> {
        let full = blocks.into_iter().map(Block::Full);
        full.chain(tail.map(Block::Tail)).map(|block| Self(Arc::new(block))).collect()
    }
}

impl AsRef<[u8]> for Segment {
    fn as_ref(&self) -> &[u8] {
        match &*self.0 {
            Block::Full(block) => block,
            Block::Tail(block) => block.as_ref(),
        }
    }
}
