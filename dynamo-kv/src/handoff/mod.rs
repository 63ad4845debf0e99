//! Moving one sequence's KV from a prefill worker to a decode worker.
//!
//! ```text
//! prefill worker                              decode worker
//! stage(blocks) ─► Staged + ticket ──router──► pull(ticket, sequence)
//!   │ hold: blocks pinned, region registered     │ identities equal?  match locally
//!   │                                  ◄─────────│ read what is missing
//!   │                                  ◄─────────│ commit, then notify "done"
//!   └─ settled: pulled │ expired │ dropped       └─ Pulled
//! ```
//!
//! The hold is a region of exactly the staged blocks. When it ends, for whatever reason, the
//! region is revoked: a late reader gets a typed error, and the blocks go back to the pool when
//! reads in flight have ended. A block on the decode side is registered only after its bytes have
//! arrived, so a failed pull leaves nothing readable.

mod hold;
mod pull;
mod ticket;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dynamo_core::protocol::HandoffTicket;
use dynamo_core::{Error, ErrorKind, Result};
use dynamo_transfer::{Agent, Notifications, RegisteredRegion};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

pub use hold::{Settlement, Staged};
pub use pull::Pulled;

use crate::block::{PartialBlock, RegisteredBlock};
use crate::manager::BlockManager;
use hold::Segment;
use ticket::{StageId, Ticket};

/// How hand-offs are held and pulled.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HandoffConfig {
    /// How long staged blocks are held for a puller that does not come.
    pub ttl: Duration,
    /// How long a pull may take, its transfer included.
    pub pull_timeout: Duration,
}

impl Default for HandoffConfig {
    fn default() -> Self {
        // A decode worker pulls at once or never; serving research puts the peers' 480 s at the
        // root of stranded caches.
        Self { ttl: Duration::from_secs(30), pull_timeout: Duration::from_secs(10) }
    }
}

impl HandoffConfig {
    /// Holds staged blocks for `ttl`.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Limits the time a pull may take.
    #[must_use]
    pub fn with_pull_timeout(mut self, pull_timeout: Duration) -> Self {
        self.pull_timeout = pull_timeout;
        self
    }
}

/// One worker's side of hand-offs, staging and pulling; cheap to clone.
///
/// It owns one task, which takes the agent's notifications and ends holds at their TTL.
/// [`shutdown`](Self::shutdown) joins it; that, dropping the last clone, or the end of the agent
/// ends every hold.
#[derive(Clone)]
pub struct Handoff(Arc<Inner>);

struct Inner {
    agent: Agent,
    manager: BlockManager,
    config: HandoffConfig,
    holds: Arc<Holds>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    _shutdown_on_drop: DropGuard,
}

/// What is staged at this moment.
#[derive(Default)]
struct Holds {
    /// `None` once the hand-off has ended.
    by_id: Mutex<Option<HashMap<StageId, Hold>>>,
    /// Wakes the task when a hold with an earlier end arrives.
    changed: watch::Sender<()>,
}

struct Hold {
    /// Dropping it revokes the region and gives the blocks up.
    _region: RegisteredRegion<Segment>,
    blocks: usize,
    expires: Instant,
    settle: oneshot::Sender<Settlement>,
}

impl Holds {
    fn new() -> Self {
        Self { by_id: Mutex::new(Some(HashMap::new())), changed: watch::Sender::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Option<HashMap<StageId, Hold>>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, id: StageId, hold: Hold) -> Result<()> {
        match &mut *self.lock() {
            Some(holds) => holds.insert(id, hold),
            None => return Err(Error::new(ErrorKind::Closed, "hand-off has shut down")),
        };
        self.changed.send_replace(());
        Ok(())
    }

    /// Ends a hold; its blocks are given up before anyone is told.
    fn settle(&self, id: &StageId, settlement: Settlement) {
        // Removed under the lock, dropped outside: dropping takes the locks of table and pool.
        let hold = self.lock().as_mut().and_then(|holds| holds.remove(id));
        if let Some(Hold { _region: region, settle, .. }) = hold {
            drop(region);
            // The stager may not be listening.
            let _ = settle.send(settlement);
        }
    }

    /// Ends every hold whose time is over; returns when the next one's is.
    fn expire(&self, now: Instant) -> Option<Instant> {
        let locked = self.lock();
        let holds = locked.as_ref()?;
        let overdue: Vec<_> =
            holds.iter().filter(|(_, hold)| hold.expires <= now).map(|(id, _)| *id).collect();
        let next = holds.values().map(|hold| hold.expires).filter(|at| *at > now).min();
        drop(locked);
        overdue.iter().for_each(|id| self.settle(id, Settlement::Expired));
        next
    }

    /// Ends every hold, and refuses others.
    fn close(&self) {
        let holds = self.lock().take();
        drop(holds);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.holds.close();
    }
}

impl Handoff {
    /// Creates the hand-off of `manager`'s blocks over `agent`, whose notifications it takes.
    ///
    /// Fails with [`Conflict`](ErrorKind::Conflict) if they are taken already, and with
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) if a time of `config` is longer than a day.
    ///
    /// # Panics
    /// If called outside a tokio runtime.
    pub fn new(agent: Agent, manager: BlockManager, config: HandoffConfig) -> Result<Self> {
        for (name, time) in [("ttl", config.ttl), ("pull_timeout", config.pull_timeout)] {
            if time > TIME_MAX {
                return Err(Error::invalid(format!("hand-off {name} of {time:?}")));
            }
        }
        let notifications = agent.notifications().map_err(|error| {
            Error::new(ErrorKind::Conflict, "notifications of the agent").with_source(error)
        })?;
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let holds = Arc::new(Holds::new());
        let (task_holds, stop) = (Arc::clone(&holds), shutdown.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = keep(&task_holds, notifications) => {}
            }
            task_holds.close();
        });
        Ok(Self(Arc::new(Inner {
            agent,
            manager,
            config,
            holds,
            tasks,
            _shutdown_on_drop: shutdown.clone().drop_guard(),
            shutdown,
        })))
    }

    /// Holds blocks of one sequence readable for whoever has the ticket.
    ///
    /// `blocks` are the full ones, first block first; `tail` is the partly written one behind them.
    /// Fails with [`InvalidArgument`](ErrorKind::InvalidArgument) if there are none, and with
    /// [`Closed`](ErrorKind::Closed) once the hand-off has ended.
    pub fn stage(
        &self,
        blocks: Vec<RegisteredBlock>,
        tail: Option<PartialBlock>,
    ) -> Result<Staged> {
        let inner = &self.0;
        let count = blocks.len() + usize::from(tail.is_some());
        let block_tokens = inner.manager.layout().block_size().tokens();
        let tail_tokens = tail.as_ref().map_or(0, PartialBlock::tokens);
        if count == 0 || tail_tokens >= block_tokens || (tail.is_some() && tail_tokens == 0) {
            let message = format!("{count} blocks with {tail_tokens} tokens in the last one");
            return Err(Error::invalid(message));
        }
        let identities = blocks.iter().map(|block| *block.identity()).collect();
        let segments = blocks.into_iter().map(Segment::Full);
        let segments = segments.chain(tail.map(Segment::Tail)).collect();
        let region = inner.agent.register(segments).map_err(pull::transfer_error)?;
        let metadata = inner.agent.metadata([region.grant()]).map_err(pull::transfer_error)?;
        let ticket = Ticket {
            id: StageId::random()?,
            layout: inner.manager.layout().fingerprint(),
            tail_tokens,
            identities,
            metadata,
        };
        let id = ticket.id;
        let (settle, settled) = oneshot::channel();
        let expires = Instant::now() + inner.config.ttl;
        let hold = Hold { _region: region, blocks: count, expires, settle };
        inner.holds.insert(id, hold)?;
        let ticket = HandoffTicket::new(ticket.encode());
        Ok(Staged::new(ticket, id, expires, settled, Arc::clone(&inner.holds)))
    }

    /// Returns the number of blocks that are staged at this moment.
    pub fn staged_blocks(&self) -> usize {
        let holds = self.0.holds.lock();
        holds.iter().flat_map(HashMap::values).map(|hold| hold.blocks).sum()
    }

    /// Ends every hold and joins the task.
    ///
    /// # Cancel safety
    /// Cancel safe; the holds end all the same.
    pub async fn shutdown(&self) {
        self.0.shutdown.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

/// Far beyond any hold or pull; keeps arithmetic on times safe.
const TIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Ends holds as they are pulled or run out of time.
async fn keep(holds: &Holds, mut notifications: Notifications) {
    let mut changed = holds.changed.subscribe();
    loop {
        let next = holds.expire(Instant::now());
        let expiry = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = expiry => {}
            // The sender lives as long as the holds.
            _ = changed.changed() => {}
            notification = notifications.recv() => {
                let Some(notification) = notification else { return };
                match StageId::decode(&notification.payload) {
                    Some(id) => holds.settle(&id, Settlement::Pulled),
                    None => tracing::warn!(from = notification.from, "notification of no stage"),
                }
            }
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
