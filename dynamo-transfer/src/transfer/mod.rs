//! A transfer: a future with a deadline, and what it reports.

mod group;
mod initiator;
mod keeper;
mod posted;
mod staged;
mod stats;
mod ways;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
pub use group::TransferGroup;
pub use stats::TransferStats;

pub use crate::notify::{Notification, Notifications};
pub use crate::vocabulary::Priority;

pub(crate) use initiator::{Initiator, Request};
pub(crate) use keeper::Keeper;
pub(crate) use stats::Counters;
pub(crate) use ways::Ways;

use posted::Posted;

use crate::error::Result;
use crate::vocabulary::BackendKind;

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
    /// What is sent has a CRC-32C, over TCP behind each MiB and over UCX with each message, which whoever
    /// receives it compares: what differs fails as [`Corrupted`](crate::ErrorKind::Corrupted), over TCP
    /// if it does so again. UCX makes no one-sided access then. Copies within the host, and files, are
    /// left to the memory and the disk.
    pub checksum: bool,
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

    /// Sets whether what is sent is checked end to end.
    #[must_use]
    pub fn with_checksum(mut self, checksum: bool) -> Self {
        self.checksum = checksum;
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
    /// Wall time of the call that posted it; 0 if it was over before the call was.
    pub posting: Duration,
    /// Wall time from posting until the first bytes were moved or asked for.
    pub queued: Duration,
    /// Wall time from posting to completion.
    pub elapsed: Duration,
}

/// What a transfer is expected to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransferEstimate {
    /// Who would move the bytes.
    pub backend: BackendKind,
    /// Wall time from posting to completion, as the agent's latest transfers by that backend went.
    pub duration: Duration,
}

impl TransferReport {
    /// Returns the wall time from the first bytes that were moved or asked for to completion.
    pub fn moving(&self) -> Duration {
        self.elapsed.saturating_sub(self.queued)
    }
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
/// Posting only enqueues: nothing is copied on the caller's thread. What takes no more than a few
/// microseconds is copied by whoever comes first: the agent, or the one who waits here. Dropping the
/// future cancels the transfer. Memory being touched at that moment stays in quarantine until that has
/// ended: its region does not close before.
#[must_use = "dropping the transfer cancels it"]
pub struct Transfer(Arc<Posted>);

impl Transfer {
    /// Returns how far it is.
    pub fn progress(&self) -> Progress {
        self.0.progress()
    }

    /// Cancels the transfer and waits until it is [quiet](Self::quiet): it may have been complete before.
    ///
    /// # Cancel safety
    /// Dropping the future is as dropping the transfer.
    pub async fn cancel(mut self) -> Result<TransferReport> {
        self.0.give_up();
        self.quiet().await;
        (&mut self).await
    }

    /// Waits until nothing touches this agent's memory on behalf of the transfer any more.
    ///
    /// That is so once it has completed. A transfer that has failed or was cancelled has its outcome at
    /// once, while what is under way for it may take longer: over a network as long as a peer may be
    /// silent (ten seconds), on this host as long as a copy.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn quiet(&self) {
        self.0.uses.quiet().await;
    }
}

impl Future for Transfer {
    type Output = Result<TransferReport>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll(cx)
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

impl fmt::Debug for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transfer").field("progress", &self.progress()).finish_non_exhaustive()
    }
}
