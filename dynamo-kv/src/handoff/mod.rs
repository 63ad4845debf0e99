//! Moving one sequence's KV from prefill workers to a decode worker.
//!
//! ```text
//! prefill worker (owner)                        decode worker (puller)
//! stage(blocks) ─► Staged + ticket ──router───► pull(ticket, sequence)
//!   │ hold: blocks kept, for nobody              │ of this model? this sequence?  what is here, or
//!   │                                            │ comes sooner from below; room for the rest
//!   │                                  ◄──Claim──│
//!   │ reserved: a region for this one  ──Granted►│ read what is missing
//!   │ lease renewed                    ◄──Claim──│ as bytes arrive
//!   │ pulled: region revoked           ◄──Done───│ all are here
//!   └─ settled: pulled │ expired       ──Settled►└─ register, Pulled
//! ```
//!
//! # What is promised
//! - A hold ends in exactly one way: pulled, expired, or dropped by its stager or with it. It ends at its
//!   TTL; while a puller has it reserved, when that has not moved along for
//!   [`HandoffConfig::claim_ttl`]; and at [`HandoffConfig::ttl_max`] whoever moves along. The region is
//!   revoked then: a late reader gets a typed error, and the blocks go back to the pool when reads in
//!   flight have ended.
//! - One attempt has the blocks at a time, and at most one ever shares them. A ticket grants no memory:
//!   the region comes with the reservation, and a lapsed one that another attempt takes over is revoked.
//!   Who has read everything says so, and shares nothing before the owner has answered that the blocks
//!   were kept for it until then. Hence a block is readable only after all of its bytes have arrived, and
//!   they are right whatever has become of the owner's memory meanwhile.
//!
//! # What is not pulled
//! Blocks that are in the puller's memory, and those that a tier below it is likely to give sooner than the
//! pull, by what loads and pulls were measured to take. It looks for them and takes room for the rest
//! before it claims anything, since a claim does not last while nothing moves; what has not come by
//! the time the pull would take is pulled after all, so that a slow tier makes a pull twice as long at most.
//! Room is waited for while blocks that have to make it are on their way down.
//!
//! # Lost words
//! Owner and puller say what they have to say by notifications of their agents, of which any may be lost,
//! come twice, late, or out of order. All carry the attempt, a random number, and asking is idempotent: a
//! puller asks again until it has an answer or its deadline has come. An owner remembers who has pulled
//! from it, for as long as that one may ask, and which attempts have ended, so that a late word changes nothing. A lost release costs
//! others the wait for the lease; a lost answer to the last word is asked for again; if it never comes,
//! because the owner has died in that moment, the pull fails although its bytes were there.
//!
//! The decisions are in `hold` (owner) and `claim` (puller), which know neither time nor tasks. They are
//! run against losses, kills and frozen processes in `sim`.

mod answers;
mod attempt;
mod claim;
mod config;
#[cfg(any(test, feature = "test-util"))]
pub(crate) mod fuzz;
mod hold;
mod message;
mod outbox;
mod owner;
mod plan;
mod pull;
mod pullers;
mod reads;
#[cfg(test)]
mod sim;
mod staged;
mod stats;
mod ticket;

use std::fmt;
use std::sync::Arc;

use dynamo_core::protocol::Tier;
use dynamo_core::{Error, ErrorKind, Result};
use dynamo_transfer::{Agent, Notifications};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

pub use config::HandoffConfig;
pub(crate) use owner::Owner;
pub use pull::Pulled;
pub use staged::{Settlement, Staged};
pub use stats::HandoffStats;

use crate::block::{PartialBlock, RegisteredBlock};
use crate::manager::BlockManager;
use crate::tier::Pace;
use crate::time::expiry_or_change;
use answers::Answers;
use message::Message;
use outbox::Outbox;
use staged::Segment;
use ticket::Ticket;

/// One worker's side of hand-offs, staging and pulling; cheap to clone.
///
/// Its agent has to be one that peers reach: owners answer pullers. It owns two tasks, which take and send
/// what is said and end holds at their time. [`shutdown`](Self::shutdown) joins them; that, dropping the
/// last clone, or the end of the agent ends every hold.
#[derive(Clone)]
pub struct Handoff(Arc<Inner>);

struct Inner {
    agent: Agent,
    manager: BlockManager,
    config: HandoffConfig,
    /// How long a block takes to pull.
    pace: Pace,
    owner: Arc<Owner>,
    answers: Arc<Answers>,
    outbox: Outbox,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    _shutdown_on_drop: DropGuard,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.owner.close();
    }
}

impl Handoff {
    /// Creates the hand-off of `manager`'s blocks over `agent`, whose notifications it takes.
    ///
    /// Fails with [`Conflict`](ErrorKind::Conflict) if they are taken already, and with
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) if a time of `config` is none or longer than a
    /// day, or the blocks are in device memory: what is handed off is host memory.
    ///
    /// # Panics
    /// If called outside a tokio runtime.
    pub fn new(agent: Agent, manager: BlockManager, config: HandoffConfig) -> Result<Self> {
        config.check()?;
        if manager.tier() == Tier::Device {
            return Err(Error::invalid("hand-off to blocks in device memory"));
        }
        let block_bytes = manager.layout().block_bytes();
        let notifications = agent.notifications().map_err(|error| {
            Error::new(ErrorKind::Conflict, "notifications of the agent").with_source(error)
        })?;
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let (owner, answers) =
            (Arc::new(Owner::new(config.terms())?), Arc::new(Answers::default()));
        let (outbox, send) = Outbox::new(agent.clone(), shutdown.clone());
        tasks.spawn(send);
        let listener = Listener {
            agent: agent.clone(),
            owner: Arc::clone(&owner),
            answers: Arc::clone(&answers),
            outbox: outbox.clone(),
        };
        let stop = shutdown.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = listener.listen(notifications) => {}
            }
            listener.owner.close();
        });
        Ok(Self(Arc::new(Inner {
            agent,
            manager,
            pace: config.pace(block_bytes),
            config,
            owner,
            answers,
            outbox,
            tasks,
            _shutdown_on_drop: shutdown.clone().drop_guard(),
            shutdown,
        })))
    }

    /// Holds blocks of one sequence for the one worker that redeems the ticket.
    ///
    /// `blocks` are the full ones, first block first; `tail` is the partly written one behind them.
    /// Fails with [`InvalidArgument`](ErrorKind::InvalidArgument) if there are none, or some are in device
    /// memory, and with [`Closed`](ErrorKind::Closed) once the hand-off has ended.
    pub fn stage(
        &self,
        blocks: Vec<RegisteredBlock>,
        tail: Option<PartialBlock>,
    ) -> Result<Staged> {
        let mut staged = self.stage_for(1, blocks, tail)?;
        staged.pop().ok_or_else(|| Error::internal("a hold for each worker"))
    }

    /// Holds blocks like [`stage`](Self::stage) for `workers` workers, each with a ticket and a hold of its
    /// own: decode ranks that each need some of the KV heads that are here.
    pub fn stage_for(
        &self,
        workers: usize,
        blocks: Vec<RegisteredBlock>,
        tail: Option<PartialBlock>,
    ) -> Result<Vec<Staged>> {
        let inner = &self.0;
        let count = blocks.len() + usize::from(tail.is_some());
        let block_tokens = inner.manager.layout().block_size().tokens();
        let tail_tokens = tail.as_ref().map_or(0, PartialBlock::tokens);
        if count == 0 || tail_tokens >= block_tokens || (tail.is_some() && tail_tokens == 0) {
            let message = format!("{count} blocks with {tail_tokens} tokens in the last one");
            return Err(Error::invalid(message));
        }
        let is_device = blocks.iter().any(|block| block.device().is_some());
        if is_device || tail.as_ref().is_some_and(|tail| tail.device().is_some()) {
            return Err(Error::invalid("hand-off of blocks in device memory"));
        }
        let identities: Vec<_> = blocks.iter().map(|block| *block.identity()).collect();
        let segments = Segment::of(blocks, tail);
        let metadata = inner.agent.metadata([]).map_err(pull::transfer_error)?;
        let stage = |_| {
            let latest = Instant::now() + inner.config.ttl_max.max(inner.config.ttl);
            let (id, settled) = inner.owner.stage(segments.clone())?;
            let ticket = Ticket {
                id,
                claim_ttl: inner.config.claim_ttl,
                layout: inner.manager.layout().clone(),
                tail_tokens,
                identities: identities.clone(),
                owner: metadata.clone(),
            };
            let owner = Arc::clone(&inner.owner);
            Ok(Staged::new(ticket.encode(), id, latest, settled, owner))
        };
        (0..workers).map(stage).collect()
    }

    /// Returns the number of blocks that are staged at this moment, for each worker they are staged for.
    pub fn staged_blocks(&self) -> usize {
        self.0.owner.staged_blocks()
    }

    /// Returns what hand-offs have come to so far.
    pub fn stats(&self) -> HandoffStats {
        self.0.owner.stats()
    }

    /// Returns whose hand-offs are counted where.
    pub(crate) fn counted(&self) -> (&str, &Arc<Owner>) {
        (self.0.agent.name(), &self.0.owner)
    }

    /// Ends every hold and joins the tasks; what is to be said still is said within a second, or never.
    ///
    /// # Cancel safety
    /// Cancel safe; the holds end all the same.
    pub async fn shutdown(&self) {
        self.0.shutdown.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

/// Takes what peers say, and ends holds as they run out of time.
struct Listener {
    agent: Agent,
    owner: Arc<Owner>,
    answers: Arc<Answers>,
    outbox: Outbox,
}

impl Listener {
    async fn listen(&self, mut notifications: Notifications) {
        let mut changed = self.owner.changed.subscribe();
        loop {
            let next = self.owner.expire();
            tokio::select! {
                () = expiry_or_change(next, &mut changed) => {}
                notification = notifications.recv() => {
                    let Some(notification) = notification else { return };
                    match Message::decode(&notification.payload) {
                        Ok(message) => self.hear(message),
                        Err(error) => tracing::warn!(from = notification.from, %error, "not heard"),
                    }
                }
            }
        }
    }

    fn hear(&self, message: Message) {
        if !message.is_question() {
            return self.answers.pass(message);
        }
        let Some((from, answer)) = self.owner.asked(&self.agent, message) else { return };
        // Who wants no answer says not where it is.
        if from.is_empty() {
            return;
        }
        match self.agent.load_metadata(&from) {
            Ok(puller) => self.outbox.put(puller, answer.encode()),
            Err(error) => tracing::warn!(%error, "puller of staged blocks not answered"),
        }
    }
}

impl fmt::Debug for Handoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handoff")
            .field("agent", &self.0.agent)
            .field("staged_blocks", &self.staged_blocks())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
