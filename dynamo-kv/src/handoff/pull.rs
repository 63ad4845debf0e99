use std::sync::Arc;
use std::time::Instant as StdInstant;

use dynamo_core::protocol::{HandoffReport, HandoffTicket};
use dynamo_core::{Error, ErrorKind, Result};
use dynamo_transfer::{RegisteredRegion, TransferOptions};
use tokio::time::Instant;

use super::attempt::Pulling;
use super::reads::Reads;
use super::stats::PullOutcome;
use super::ticket::Ticket;
use super::{Handoff, Inner, plan};
use crate::below::Sources;
use crate::block::{MutableBlock, RegisteredBlock};
use crate::layout::Piece;
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
    /// Where the blocks were that did not have to be pulled.
    pub sources: Sources,
    /// What was moved.
    pub report: HandoffReport,
}

impl Handoff {
    /// Redeems the tickets of one sequence: pulls its blocks that this worker lacks, and shares them.
    ///
    /// What a tier below memory is likely to give sooner is loaded instead. Room is waited for as
    /// by [`BlockManager::reserve`](crate::BlockManager::reserve).
    ///
    /// There is one ticket, or one of each prefill rank whose KV heads this worker has some of: their
    /// blocks may lie otherwise than those here ([`RankLayout`](crate::layout::RankLayout)). While another
    /// worker pulls by the same ticket this one waits for it to end or to lapse, once.
    ///
    /// Fails with [`Protocol`](ErrorKind::Protocol) on bad bytes,
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) if the tickets are for another model, other heads or
    /// other tokens, [`Overloaded`](ErrorKind::Overloaded) without room,
    /// [`Conflict`](ErrorKind::Conflict) if another worker pulls the blocks and moves along,
    /// [`NotFound`](ErrorKind::NotFound) if the hold has ended,
    /// [`Unavailable`](ErrorKind::Unavailable) if its owner cannot be reached, and
    /// [`DeadlineExceeded`](ErrorKind::DeadlineExceeded). On any failure no block is shared, and the hold
    /// stands for others if it stood before.
    ///
    /// # Cancel safety
    /// Dropped, the future shares nothing, the memory returns when it is quiet, and the owner hears of it.
    pub async fn pull<'a>(
        &self,
        tickets: impl IntoIterator<Item = &'a HandoffTicket>,
        sequence: &TokenSequence,
        deadline: Option<StdInstant>,
    ) -> Result<Pulled> {
        let tickets = tickets.into_iter().map(Ticket::decode).collect::<Result<Vec<_>>>();
        let mut counted = Counted { inner: &self.0, outcome: PullOutcome::Dropped, bytes: 0 };
        let pulled = match tickets {
            Ok(tickets) => self.0.pull(tickets, sequence, deadline).await,
            Err(error) => Err(error),
        };
        counted.outcome = match &pulled {
            Ok(pulled) => {
                counted.bytes = pulled.report.bytes;
                PullOutcome::Completed
            }
            Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => {
                PullOutcome::Refused
            }
            Err(_) => PullOutcome::Failed,
        };
        pulled
    }
}

/// Counts a pull when it ends, or is dropped.
struct Counted<'a> {
    inner: &'a Inner,
    outcome: PullOutcome,
    bytes: u64,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.inner.owner.counters.pull_ended(self.outcome, self.bytes);
    }
}

impl Inner {
    async fn pull(
        self: &Arc<Self>,
        tickets: Vec<Ticket>,
        sequence: &TokenSequence,
        deadline: Option<StdInstant>,
    ) -> Result<Pulled> {
        let started = Instant::now();
        let latest = started + self.config.pull_timeout;
        let deadline = deadline.map_or(latest, |at| latest.min(at.into()));
        let (full, tail_tokens) = self.check(&tickets, sequence)?;
        let pulling = Pulling::new(self, tickets, deadline)?;

        let keys = &sequence.keys()[..full];
        let left = deadline.saturating_duration_since(Instant::now());
        let pool = self.manager.pool();
        let acquired = pool.acquire_sooner(keys, self.pace.estimate(1), left).await;
        let (mut blocks, sources) = (Vec::from(acquired.blocks), acquired.sources);
        let blocks_cached = blocks.len();
        let missing = keys.len() - blocks_cached + usize::from(tail_tokens > 0);
        let (mut own, bytes) = if missing > 0 {
            let room = self.room(missing, deadline).await?;
            self.read(pulling, blocks_cached, room).await?
        } else {
            pulling.decline().await;
            (Vec::new(), 0)
        };

        let tail = if tail_tokens > 0 { own.pop() } else { None };
        let complete = own.into_iter().zip(&keys[blocks_cached..]);
        let complete = complete.map(|(block, key)| block.complete(*key)).collect();
        blocks.extend(self.manager.register_all(complete));
        let report = HandoffReport {
            blocks_pulled: count(missing),
            blocks_cached: count(blocks_cached),
            bytes,
            micros: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
        };
        Ok(Pulled { blocks, tail, tail_tokens, sources, report })
    }

    /// Checks that the tickets are for blocks of this model, for all heads here, and for exactly this
    /// sequence; returns its full blocks and the tokens behind them.
    fn check(&self, tickets: &[Ticket], sequence: &TokenSequence) -> Result<(usize, usize)> {
        let Some(first) = tickets.first() else {
            return Err(Error::invalid("a hand-off without a ticket"));
        };
        let layout = self.manager.layout();
        let is_ours = |ticket: &Ticket| {
            let theirs = &ticket.layout;
            (theirs.shape(), theirs.first_layer()) == (layout.shape(), layout.first_layer())
        };
        let size = layout.shape().block_size();
        if !tickets.iter().all(is_ours) || sequence.block_size() != size {
            let message = "hand-off ticket is for blocks of another shape or of other layers";
            return Err(Error::invalid(message));
        }
        if !plan::make_up(tickets.iter().map(|ticket| &ticket.layout), layout) {
            let heads = layout.heads();
            let message = format!("hand-off tickets do not make up the KV heads {heads:?}");
            return Err(Error::invalid(message));
        }
        let (full, tail_tokens) = (first.identities.len(), first.tail_tokens);
        let staged = full * size.tokens() + tail_tokens;
        let ours = sequence.tokens().len();
        if tail_tokens >= size.tokens() || staged != ours {
            let message = format!("hand-off ticket is for {staged} tokens, the prompt has {ours}");
            return Err(Error::invalid(message));
        }
        let is_of_it = |ticket: &Ticket| {
            let identities = sequence.keys().iter().map(|key| &key.identity);
            ticket.tail_tokens == tail_tokens && ticket.identities.iter().eq(identities)
        };
        if !tickets.iter().all(is_of_it) {
            return Err(Error::invalid("hand-off ticket is for other tokens"));
        }
        Ok((full, tail_tokens))
    }

    /// Takes room for so many blocks.
    async fn room(&self, count: usize, deadline: Instant) -> Result<Vec<MutableBlock>> {
        let lacking = |kind| Error::new(kind, "KV blocks for a hand-off");
        match tokio::time::timeout_at(deadline, self.manager.reserve(count)).await {
            Ok(room) => room.map_err(|error| lacking(ErrorKind::Overloaded).with_source(error)),
            Err(_) => Err(lacking(ErrorKind::DeadlineExceeded)),
        }
    }

    /// Reads the staged blocks from index `first` on into `blocks`, which are nobody else's; returns them,
    /// and how many bytes that were.
    async fn read(
        &self,
        mut pulling: Pulling,
        first: usize,
        blocks: Vec<MutableBlock>,
    ) -> Result<(Vec<MutableBlock>, u64)> {
        let (deadline, count) = (pulling.deadline(), blocks.len());
        let granted = pulling.reserve().await?;
        let timing = self.pace.begin(count);
        let local = self.agent.register_mut(blocks).map_err(transfer_error)?;
        let mut reads = Reads::default();
        for (ticket, region) in granted {
            let pieces =
                plan::pieces(&ticket.layout, self.manager.layout(), ticket.blocks(), first);
            let pieces =
                pieces.map_err(|error| Error::internal("plan of a hand-off").with_source(error))?;
            self.post(&mut reads, &local, region, &pieces, deadline)?;
        }
        pulling.read(&mut reads).await?;
        timing.end(count);
        let bytes = reads.moved();
        let blocks = local.close().await;
        pulling.settle().await?;
        Ok((blocks, bytes))
    }

    fn post(
        &self,
        reads: &mut Reads,
        local: &RegisteredRegion<MutableBlock>,
        remote: &dynamo_transfer::RemoteRegion,
        pieces: &[Piece],
        deadline: Instant,
    ) -> Result<()> {
        for pieces in pieces.chunks(PIECES_MAX) {
            let range = |offset: usize, len: usize| (offset as u64, len as u64);
            let from = pieces.iter().map(|piece| range(piece.from.offset, piece.len));
            let to = pieces.iter().map(|piece| range(piece.to.offset, piece.len));
            let remote = remote.descriptor(from).map_err(transfer_error)?;
            let local = local.descriptor(to).map_err(transfer_error)?;
            let left = deadline.saturating_duration_since(Instant::now());
            // The blocks have no digest: over TCP their bytes are checked as they move.
            let options = TransferOptions::default().with_deadline(left).with_checksum(true);
            reads.push(self.agent.read(local, remote, options));
        }
        Ok(())
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

/// Ranges of one transfer: a descriptor may have four times as many.
const PIECES_MAX: usize = 1 << 18;
