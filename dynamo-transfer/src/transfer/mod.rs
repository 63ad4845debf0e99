//! A transfer: a future with a deadline, and what it reports.

mod group;
mod initiator;
mod notify;
mod stats;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use group::TransferGroup;
pub use notify::{Notification, Notifications};
pub use stats::TransferStats;

pub(crate) use initiator::{Initiator, NOTIFICATION_BYTES_MAX, remote_memory};
pub(crate) use stats::Counters;

use crate::backend::{self, BackendKind};
use crate::error::{Error, ErrorKind, Result};

/// How one transfer is run.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct TransferOptions {
    /// The most time it may take; the agent's default if `None`.
    pub deadline: Option<Duration>,
    /// What goes first where transfers share a way.
    pub priority: Priority,
    /// Delivered to the peer after the data; at most 64 KiB.
    pub notification: Option<Bytes>,
}

/// What goes first where transfers share a way; those of one priority take turns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// What nobody waits for, such as offloading.
    Low,
    /// The usual.
    #[default]
    Normal,
    /// What a token waits for.
    High,
}

impl TransferOptions {
    /// Limits the time the transfer may take.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Lets the transfer go before those of lower priority.
    #[must_use]
    pub fn with_priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// Delivers `notification` to the peer after the data.
    #[must_use]
    pub fn with_notification(mut self, notification: impl Into<Bytes>) -> Self {
        self.notification = Some(notification.into());
        self
    }
}

/// What a finished transfer did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransferReport {
    /// Bytes moved.
    pub bytes: u64,
    /// Contiguous pieces they were moved in.
    pub chunks: u64,
    /// Who moved them.
    pub backend: BackendKind,
    /// Wall time from posting until it was begun.
    pub queued: Duration,
    /// Wall time from posting to completion.
    pub elapsed: Duration,
}

/// How far a transfer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes that have arrived.
    pub bytes_moved: u64,
    /// Bytes it moves; 0 until it is planned.
    pub bytes_total: u64,
}

/// A transfer that has been posted; await it for the outcome.
///
/// Posting only enqueues: nothing is copied on the caller's thread. Dropping the future cancels
/// the transfer. Memory being touched at that moment stays in quarantine until that has ended: its
/// region does not close before.
#[must_use = "dropping the transfer cancels it"]
pub struct Transfer {
    outcome: oneshot::Receiver<Result<TransferReport>>,
    progress: Arc<backend::Progress>,
    cancel: DropGuard,
}

impl Transfer {
    pub(crate) fn new(
        outcome: oneshot::Receiver<Result<TransferReport>>,
        progress: Arc<backend::Progress>,
        cancel: CancellationToken,
    ) -> Self {
        Self { outcome, progress, cancel: cancel.drop_guard() }
    }

    /// Returns how far it is.
    pub fn progress(&self) -> Progress {
        let bytes_moved = self.progress.moved.load(Ordering::Relaxed);
        Progress { bytes_moved, bytes_total: self.progress.total.load(Ordering::Relaxed) }
    }

    /// Cancels the transfer and waits for its end: it may have been complete before.
    ///
    /// # Cancel safety
    /// Dropping the future is as dropping the transfer.
    pub async fn cancel(mut self) -> Result<TransferReport> {
        self.cancel = {
            let token = self.cancel.disarm();
            token.cancel();
            token.drop_guard()
        };
        self.await
    }
}

impl Future for Transfer {
    type Output = Result<TransferReport>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.outcome).poll(cx).map(|outcome| {
            outcome.unwrap_or_else(|_| Err(Error::new(ErrorKind::Closed, "agent has shut down")))
        })
    }
}

impl fmt::Debug for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transfer").field("progress", &self.progress()).finish_non_exhaustive()
    }
}
