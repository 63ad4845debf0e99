use std::time::Instant as StdInstant;

use dynamo_core::protocol::{HandoffReport, HandoffTicket};
use dynamo_core::{Error, ErrorKind, Result};
use dynamo_transfer::{RemoteAgent, TransferOptions};
use tokio::time::Instant;

use super::Handoff;
use super::ticket::Ticket;
use crate::block::{MutableBlock, RegisteredBlock};
use crate::sequence::TokenSequence;

/// A sequence's KV, taken over from another worker.
#[derive(Debug)]
pub struct Pulled {
    /// The full blocks, first block first.
    pub blocks: Vec<RegisteredBlock>,
    /// The partly written block behind them, to be written on.
    pub tail: Option<MutableBlock>,
    /// Tokens in `tail`.
    pub tail_tokens: usize,
    /// What was moved.
    pub report: HandoffReport,
}

impl Handoff {
    /// Redeems a ticket: pulls the blocks of `sequence` that this worker lacks, and shares them.
    ///
    /// Fails with [`Protocol`](ErrorKind::Protocol) on bad bytes,
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) if the ticket is for another layout or other
    /// tokens, [`Overloaded`](ErrorKind::Overloaded) without room,
    /// [`NotFound`](ErrorKind::NotFound) if the hold has ended,
    /// [`Unavailable`](ErrorKind::Unavailable) if its owner cannot be reached, and
    /// [`DeadlineExceeded`](ErrorKind::DeadlineExceeded). On any failure no block is shared.
    ///
    /// # Cancel safety
    /// Dropped before the bytes have arrived, the future shares nothing and the memory returns when
    /// it is quiet; dropped behind that, the blocks stay cached.
    pub async fn pull(
        &self,
        ticket: &HandoffTicket,
        sequence: &TokenSequence,
        deadline: Option<StdInstant>,
    ) -> Result<Pulled> {
        let started = Instant::now();
        let latest = started + self.0.config.pull_timeout;
        let deadline = deadline.map_or(latest, |at| latest.min(at.into()));
        let ticket = Ticket::decode(ticket)?;
        self.check(&ticket, sequence)?;
        let owner = self.0.agent.load_metadata(&ticket.metadata).map_err(transfer_error)?;

        let keys = &sequence.keys()[..ticket.identities.len()];
        let mut blocks = self.0.manager.match_prefix(keys);
        let blocks_cached = blocks.len();
        let missing = keys.len() - blocks_cached + usize::from(ticket.tail_tokens > 0);
        let mut own = self.read(&owner, blocks_cached, missing, deadline).await?;

        let tail = if ticket.tail_tokens > 0 { own.pop() } else { None };
        let complete = own.into_iter().zip(&keys[blocks_cached..]);
        let complete = complete.map(|(block, key)| block.complete(*key)).collect();
        blocks.extend(self.0.manager.register_all(complete));
        let report = HandoffReport {
            blocks_pulled: count(missing),
            blocks_cached: count(blocks_cached),
            bytes: (missing * self.0.manager.layout().block_bytes()) as u64,
            micros: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
        };
        // The bytes are here; if the word does not get through, the owner's TTL ends the hold.
        let told = self.0.agent.notify(&owner, ticket.id.encode());
        match tokio::time::timeout_at(deadline, told).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "owner not told that its blocks were pulled"),
            Err(_) => tracing::warn!("owner not told in time that its blocks were pulled"),
        }
        Ok(Pulled { blocks, tail, tail_tokens: ticket.tail_tokens, report })
    }

    /// Checks that the ticket is for these blocks and for exactly this sequence.
    fn check(&self, ticket: &Ticket, sequence: &TokenSequence) -> Result<()> {
        let layout = self.0.manager.layout();
        if ticket.layout != layout.fingerprint() || sequence.block_size() != layout.block_size() {
            return Err(Error::invalid("hand-off ticket is for another block layout"));
        }
        let block_tokens = layout.block_size().tokens();
        let staged = ticket.identities.len() * block_tokens + ticket.tail_tokens;
        let ours = sequence.tokens().len();
        if ticket.tail_tokens >= block_tokens || staged != ours {
            let message = format!("hand-off ticket is for {staged} tokens, the prompt has {ours}");
            return Err(Error::invalid(message));
        }
        let identities = sequence.keys().iter().map(|key| &key.identity);
        if !ticket.identities.iter().eq(identities) {
            return Err(Error::invalid("hand-off ticket is for other tokens"));
        }
        Ok(())
    }

    /// Reads `count` staged blocks from index `first` on into blocks of our own.
    async fn read(
        &self,
        owner: &RemoteAgent,
        first: usize,
        count: usize,
        deadline: Instant,
    ) -> Result<Vec<MutableBlock>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let blocks = self.0.manager.allocate(count).map_err(|error| {
            Error::new(ErrorKind::Overloaded, "KV blocks for a hand-off").with_source(error)
        })?;
        let block_bytes = self.0.manager.layout().block_bytes() as u64;
        let (start, len) = (first as u64 * block_bytes, count as u64 * block_bytes);
        let region = owner
            .regions()
            .first()
            .ok_or_else(|| Error::new(ErrorKind::Protocol, "hand-off ticket names no region"))?;
        let remote = region.descriptor([(start, len)]).map_err(transfer_error)?;
        let local = self.0.agent.register_mut(blocks).map_err(transfer_error)?;
        let target = local.descriptor([(0, len)]).map_err(transfer_error)?;
        let left = deadline.saturating_duration_since(Instant::now());
        let options = TransferOptions::default().with_deadline(left);
        self.0.agent.read(target, remote, options).await.map_err(transfer_error)?;
        Ok(local.close().await)
    }
}

/// Says a transfer's failure in the words that travel.
pub(super) fn transfer_error(error: dynamo_transfer::Error) -> Error {
    use dynamo_transfer::ErrorKind as Kind;
    let kind = match error.kind() {
        Kind::StaleRegion => ErrorKind::NotFound,
        Kind::DeadlineExceeded => ErrorKind::DeadlineExceeded,
        Kind::Overloaded => ErrorKind::Overloaded,
        Kind::Unreachable | Kind::Disconnected | Kind::BackendUnavailable | Kind::Corrupted => {
            ErrorKind::Unavailable
        }
        Kind::Cancelled => ErrorKind::Cancelled,
        Kind::Closed => ErrorKind::Closed,
        Kind::Protocol | Kind::OutOfBounds => ErrorKind::Protocol,
        Kind::InvalidArgument | Kind::PermissionDenied => ErrorKind::InvalidArgument,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, "hand-off of KV blocks").with_source(error)
}

fn count(blocks: usize) -> u32 {
    u32::try_from(blocks).unwrap_or(u32::MAX)
}
