//! A transfer: a future with a deadline, and what it reports.

mod initiator;
mod notify;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use notify::{Notification, Notifications};

pub(crate) use initiator::{CHUNKS_MAX, Initiator, NOTIFICATION_BYTES_MAX};

use crate::backend::BackendKind;
use crate::error::{Error, ErrorKind, Result};

/// How one transfer is run.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct TransferOptions {
    /// The most time it may take; the agent's default if `None`.
    pub deadline: Option<Duration>,
    /// Delivered to the peer after the data; at most 64 KiB.
    pub notification: Option<Bytes>,
}

impl TransferOptions {
    /// Limits the time the transfer may take.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
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
    pub chunks: usize,
    /// Who moved them.
    pub backend: BackendKind,
    /// Wall time from posting to completion.
    pub elapsed: Duration,
}

/// A transfer that has been posted; await it for the outcome.
///
/// Posting only enqueues: nothing is copied on the caller's thread. Dropping the future cancels
/// the transfer; memory being copied at that moment stays alive until the copy of the current
/// chunk has ended.
#[must_use = "dropping the transfer cancels it"]
pub struct Transfer {
    outcome: oneshot::Receiver<Result<TransferReport>>,
    _cancel_on_drop: DropGuard,
}

impl Transfer {
    pub(crate) fn new(
        outcome: oneshot::Receiver<Result<TransferReport>>,
        cancel: CancellationToken,
    ) -> Self {
        Self { outcome, _cancel_on_drop: cancel.drop_guard() }
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
        f.debug_struct("Transfer").finish_non_exhaustive()
    }
}
