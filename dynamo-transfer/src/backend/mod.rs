//! Who moves the bytes.

#[cfg(any(target_os = "linux", feature = "ucx"))]
mod boot;
mod connection;
mod copies;
pub mod cuda;
mod fabric;
#[cfg(unix)]
pub mod file;
#[cfg(test)]
mod hostile;
mod memcpy;
#[cfg(target_os = "linux")]
pub(crate) mod shm;
pub(crate) mod stage;
pub(crate) mod tcp;
#[cfg(feature = "ucx")]
pub(crate) mod ucx;

use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use fabric::MemoryFabric;
#[cfg(feature = "ucx")]
pub use ucx::UcxConfig;

pub(crate) use copies::Copies;
pub(crate) use memcpy::Memcpy;
#[cfg(feature = "ucx")]
pub(crate) use ucx::Ucx;

use crate::descriptor::{Ranges, RemoteDescriptor};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Lease, Right, Token};
use crate::peer::PeerAddress;
use crate::plan::{Plan, Stripe};
use crate::vocabulary::Priority;

/// A transfer as a backend runs it.
///
/// Whoever works on it holds it, and with it the local memory: what cannot be called back when the
/// transfer is given up keeps the memory in quarantine until it has ended.
pub(crate) struct Operation {
    pub(crate) peer: Arc<PeerAddress>,
    /// What is done to the *remote* region: `Read` fills the local one from it.
    pub(crate) right: Right,
    /// Host memory: what else there is, is [staged](stage).
    pub(crate) local: Lease,
    pub(crate) remote_id: u64,
    pub(crate) token: Token,
    pub(crate) remote_ranges: Ranges,
    pub(crate) priority: Priority,
    /// What a network carries has a checksum, where the backend knows one.
    pub(crate) is_checked: bool,
    /// Fires when the transfer is dropped or its deadline passes.
    pub(crate) cancel: CancellationToken,
    pub(crate) progress: Arc<Progress>,
    plan: Mutex<Plan>,
}

/// How a transfer is run, whatever it moves.
#[derive(Clone)]
pub(crate) struct Terms {
    pub(crate) priority: Priority,
    pub(crate) is_checked: bool,
    pub(crate) cancel: CancellationToken,
    pub(crate) progress: Arc<Progress>,
}

/// How far a transfer is.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) total: AtomicU64,
    pub(crate) moved: AtomicU64,
    pub(crate) chunks: AtomicU64,
    /// When bytes were first asked for or on their way.
    begun: OnceLock<Instant>,
    /// Stripes on their way, or part of them, that may have got where they are written.
    landed: AtomicU64,
}

/// Moves bytes between this agent and its peers.
///
/// # Contract
/// - The owner of the remote region checks incarnation, generation, token and rights before the first
///   byte moves, and bounds if it is told ranges: shm is not, and checks as a region is opened. What
///   is copied by the initiator itself, there and over one-sided UCX, is its to keep in bounds.
/// - A backend that cannot reach the peer, or this memory of it, says `Unreachable` or
///   `BackendUnavailable` before it takes the first stripe: another one may then run the operation.
/// - When the future completes, nothing touches either memory on behalf of the operation any more.
/// - Dropping the future, or `cancel`, ends the operation within one stripe; until then whoever
///   touches the memory holds the operation.
#[async_trait]
pub(crate) trait Backend: Send + Sync {
    /// Runs the operation to its end.
    async fn run(&self, operation: Arc<Operation>) -> Result<()>;

    /// Returns the size of an operation that [`run_brief`](Self::run_brief) may run.
    fn brief_bytes_max(&self) -> u64 {
        0
    }

    /// Runs the operation if that takes a few microseconds and no waiting; what `None` leaves of it is
    /// for [`run`](Self::run).
    fn run_brief(&self, _: &Operation) -> Option<Result<()>> {
        None
    }

    /// Delivers a notification; completes when the peer's queue has it.
    async fn notify(&self, peer: &Arc<PeerAddress>, payload: Bytes) -> Result<()>;
}

/// What a backend has begun: dropped, it is given up.
pub(crate) type Running = Arc<dyn Any + Send + Sync>;

/// Is told the outcome of an operation, once; dropped, it is told that the agent has shut down, or that
/// whoever was to tell has panicked.
pub(crate) struct Done(Option<Box<dyn FnOnce(Result<()>) + Send>>);

impl Done {
    pub(crate) fn new(told: impl FnOnce(Result<()>) + Send + 'static) -> Self {
        Self(Some(Box::new(told)))
    }

    /// Returns what passes the outcome to a receiver, which may be gone.
    pub(crate) fn channel() -> (Self, oneshot::Receiver<Result<()>>) {
        let (sender, receiver) = oneshot::channel();
        (Self::new(move |outcome| drop(sender.send(outcome))), receiver)
    }

    pub(crate) fn tell(mut self, outcome: Result<()>) {
        if let Some(told) = self.0.take() {
            told(outcome);
        }
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        if let Some(told) = self.0.take() {
            told(Err(dropped()));
        }
    }
}

/// Says why whoever runs a transfer is being dropped.
pub(crate) fn dropped() -> Error {
    if std::thread::panicking() {
        Error::new(ErrorKind::Internal, "the transfer's task has panicked")
    } else {
        Error::shut_down()
    }
}

impl Progress {
    /// Notes how many bytes it is.
    pub(crate) fn plan(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    /// Notes that the peer has been asked: nobody else is to run it from now on.
    pub(crate) fn ask(&self) {
        self.begun.get_or_init(Instant::now);
    }

    /// Notes that a stripe is on its way: any part of it may get where it is written.
    pub(crate) fn begin(&self) {
        self.ask();
        self.landed.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that a stripe that was on its way was refused: its owner has written nothing of it.
    pub(crate) fn was_refused(&self) {
        self.landed.fetch_sub(1, Ordering::Relaxed);
    }

    /// Tells whether anything may have been written.
    pub(crate) fn may_have_landed(&self) -> bool {
        self.landed.load(Ordering::Relaxed) > 0
    }

    /// Tells whether the peer was asked, or bytes were on their way.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.get().is_some()
    }

    /// Returns when it was begun, if it was.
    pub(crate) fn begun(&self) -> Option<Instant> {
        self.begun.get().copied()
    }

    /// Notes that a stripe has arrived.
    pub(crate) fn advance(&self, stripe: &Stripe) {
        self.moved.fetch_add(stripe.bytes, Ordering::Relaxed);
        self.chunks.fetch_add(stripe.chunks.len() as u64, Ordering::Relaxed);
    }
}

impl Operation {
    pub(crate) fn new(
        right: Right,
        (local, local_ranges): (Lease, Ranges),
        remote: RemoteDescriptor,
        terms: Terms,
    ) -> Result<Self> {
        let Terms { priority, is_checked, cancel, progress } = terms;
        let RemoteDescriptor { peer, id: remote_id, token, ranges: remote_ranges, .. } = remote;
        let plan = Plan::new(local_ranges, remote_ranges.clone())?;
        progress.plan(plan.total());
        let plan = Mutex::new(plan);
        Ok(Self {
            peer,
            right,
            local,
            remote_id,
            token,
            remote_ranges,
            priority,
            is_checked,
            cancel,
            progress,
            plan,
        })
    }

    /// Hands out the next stripe; none once the transfer is given up.
    pub(crate) fn next(&self, bytes_max: u64, chunks_max: usize) -> Option<Stripe> {
        if self.cancel.is_cancelled() {
            return None;
        }
        self.plan().next(bytes_max, chunks_max)
    }

    /// Tells whether all stripes have been handed out.
    pub(crate) fn is_planned(&self) -> bool {
        self.plan().is_over()
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn total(&self) -> u64 {
        self.progress.total.load(Ordering::Relaxed)
    }

    /// Fails once the transfer is given up.
    pub(crate) fn check(&self) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(Error::cancelled());
        }
        Ok(())
    }

    /// Notes that a stripe is on its way.
    pub(crate) fn begin(&self) {
        self.progress.begin();
    }

    /// Notes that a stripe has arrived.
    pub(crate) fn advance(&self, stripe: &Stripe) {
        self.progress.advance(stripe);
    }
}
