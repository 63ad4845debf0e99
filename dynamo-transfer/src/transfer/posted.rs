//! A transfer from its posting to its outcome.
//!
//! ```text
//! post ─┬─ brief ───► offered ──► who waits or the keeper runs it ──┐
//!       │                          │ it has to wait after all       │
//!       │                          ▼                                │
//!       ├─ else ──────────────► a task ─────────────────────────────┤
//!       ├─ over TCP ──► running: lanes have it ─────────────────────┼─► settled, once
//!       └─ refused ─────────────────────────────────────────────────┤
//! any of them: cancelled or dropped; overdue or                     │
//! the agent shuts down, by the keeper ──────────────────────────────┘
//! ```

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::coop;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::initiator::Brief;
use super::keeper::{Keeper, Key};
use super::stats::Counters;
use super::{Progress, TransferReport};
use crate::backend::{self, Done, Running};
use crate::error::{Error, ErrorKind, RemoteMemory, Result};
use crate::memory::{Right, Uses};
use crate::peer::PeerAddress;
use crate::plan::Distance;
use crate::vocabulary::BackendKind;

/// A transfer from its posting to its outcome: whoever ends it first settles it, once.
pub(crate) struct Posted {
    pub(crate) peer: Arc<PeerAddress>,
    pub(crate) right: Right,
    distance: Distance,
    pub(crate) at: Instant,
    pub(crate) progress: Arc<backend::Progress>,
    /// The leases of this agent's memory for it: who still touches that.
    pub(super) uses: Arc<Uses>,
    /// Nanoseconds that the call took that posted it, once it is back.
    posting: AtomicU64,
    /// Fires when it is settled: what still runs for it ends.
    pub(crate) cancel: CancellationToken,
    counters: Arc<Counters>,
    keeper: Arc<Keeper>,
    state: Mutex<State>,
}

enum State {
    Open(Open),
    /// The outcome, until it is taken.
    Settled(Option<Result<TransferReport>>),
}

#[derive(Default)]
struct Open {
    waker: Option<Waker>,
    key: Option<Key>,
    /// Counts it among those that are posted.
    permit: Option<OwnedSemaphorePermit>,
    /// For whoever comes first, the keeper or who waits for it: it takes a few microseconds.
    offer: Option<Brief>,
    /// What a backend has begun, until this is dropped.
    running: Option<Running>,
}

impl Posted {
    pub(super) fn new(
        (right, peer, distance): (Right, &Arc<PeerAddress>, Distance),
        counters: &Arc<Counters>,
        keeper: &Arc<Keeper>,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Arc<Self> {
        counters.posted();
        Arc::new(Self {
            peer: Arc::clone(peer),
            right,
            distance,
            at: Instant::now(),
            progress: Arc::default(),
            uses: Arc::default(),
            posting: AtomicU64::new(0),
            cancel: CancellationToken::new(),
            counters: Arc::clone(counters),
            keeper: Arc::clone(keeper),
            state: Mutex::new(State::Open(Open { permit, ..Open::default() })),
        })
    }

    /// Notes how long the call took that posts it, which is about to return.
    pub(super) fn note_posting(&self) {
        let nanos = u64::try_from(self.at.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.posting.store(nanos, Ordering::Relaxed);
    }

    /// Ends it at `at`, at the latest; fails if the agent has shut down.
    pub(super) fn end_at(self: &Arc<Self>, at: Instant) -> Result<()> {
        let key = self.keeper.keep(at, self).ok_or_else(Error::shut_down)?;
        if let State::Open(open) = &mut *self.lock() {
            open.key = Some(key);
        }
        Ok(())
    }

    /// Lets whoever waits for it run it, unless the keeper is first, or it is settled.
    pub(super) fn offer(&self, brief: Brief) {
        let key = match &mut *self.lock() {
            State::Open(open) => {
                open.offer = Some(brief);
                open.key
            }
            State::Settled(_) => return,
        };
        if let Some(key) = key {
            self.keeper.offer(key);
        }
    }

    /// Holds what a backend has begun, unless it is settled: then it is given up.
    pub(super) fn hold(&self, running: Running) {
        if let State::Open(open) = &mut *self.lock() {
            open.running = Some(running);
        }
    }

    /// Runs what is offered, unless somebody else has.
    pub(super) fn run_offer(self: &Arc<Self>) {
        if let Some(brief) = self.take() {
            brief.run(self);
        }
    }

    /// Takes over what is offered.
    fn take(&self) -> Option<Brief> {
        match &mut *self.lock() {
            State::Open(open) => open.offer.take(),
            State::Settled(_) => None,
        }
    }

    /// Returns what a backend tells the outcome of all it had to do.
    pub(super) fn done(self: &Arc<Self>, kind: BackendKind) -> Done {
        let posted = Arc::clone(self);
        Done::new(move |outcome| posted.settle(outcome.map(|()| posted.report(kind))))
    }

    pub(super) fn report(&self, backend: BackendKind) -> TransferReport {
        let backend::Progress { total, chunks, .. } = &*self.progress;
        let elapsed = self.at.elapsed();
        TransferReport {
            bytes: total.load(Ordering::Relaxed),
            chunks: chunks.load(Ordering::Relaxed),
            backend,
            posting: Duration::from_nanos(self.posting.load(Ordering::Relaxed)).min(elapsed),
            queued: self.progress.begun().map_or(elapsed, |begun| begun - self.at),
            elapsed,
        }
    }

    pub(super) fn fail(&self, error: Error) {
        self.settle(Err(error));
    }

    /// Settles it, unless it is settled.
    pub(super) fn settle(&self, outcome: Result<TransferReport>) {
        let outcome = outcome.map_err(|error| {
            let remote_memory = self.remote_memory(&error);
            // What leads to peers ends with the agent, and does not know why.
            let is_own_end =
                error.kind() == ErrorKind::Disconnected && self.keeper.is_shutting_down();
            let error = if is_own_end { Error::shut_down() } else { error };
            error.with_peer(&self.peer.name).with_remote_memory(remote_memory)
        });
        let open = {
            let mut state = self.lock();
            let State::Open(open) = &mut *state else { return };
            let open = std::mem::take(open);
            self.counters.settled(&outcome, self.distance);
            *state = State::Settled(Some(outcome));
            open
        };
        self.cancel.cancel();
        let Open { waker, key, permit, offer, running } = open;
        if let Some(key) = key {
            self.keeper.forget(key);
        }
        // What runs may hold memory that whoever waits wants back.
        drop((permit, offer, running));
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Gives it up: nobody waits for it.
    pub(super) fn give_up(&self) {
        self.fail_if_open(Error::cancelled);
    }

    /// Makes no error for what is settled, as most are.
    pub(super) fn fail_if_open(&self, error: impl FnOnce() -> Error) {
        if matches!(*self.lock(), State::Open(_)) {
            self.fail(error());
        }
    }

    /// Returns the outcome once there is one; what is offered is run for it.
    pub(super) fn poll(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<Result<TransferReport>> {
        if let Some(brief) = self.take() {
            // A task that has nothing but such transfers gives way once in a while.
            let Poll::Ready(budget) = coop::poll_proceed(cx) else {
                self.offer(brief);
                return Poll::Pending;
            };
            budget.made_progress();
            brief.run(self);
        }
        match &mut *self.lock() {
            State::Settled(outcome) => Poll::Ready(outcome.take().unwrap_or_else(|| {
                Err(Error::new(ErrorKind::InvalidArgument, "the outcome has been taken"))
            })),
            State::Open(open) => {
                match &mut open.waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
        }
    }

    pub(super) fn progress(&self) -> Progress {
        let backend::Progress { total, moved, .. } = &*self.progress;
        let bytes_moved = moved.load(Ordering::Relaxed);
        Progress { bytes_moved, bytes_total: total.load(Ordering::Relaxed) }
    }

    /// Tells what a failure has left at the peer.
    fn remote_memory(&self, error: &Error) -> RemoteMemory {
        if self.right == Right::Read || !self.progress.may_have_landed() {
            return RemoteMemory::Untouched;
        }
        match error.kind() {
            // The owner said so: what it took before is there, and nothing is on its way.
            ErrorKind::StaleRegion
            | ErrorKind::PermissionDenied
            | ErrorKind::OutOfBounds
            | ErrorKind::Corrupted
            | ErrorKind::NotFound
            | ErrorKind::StorageFull
            | ErrorKind::Io => RemoteMemory::Partial,
            _ => RemoteMemory::Unknown,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
