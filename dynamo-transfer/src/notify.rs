//! What peers say to an agent.

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// A few bytes that a peer sent, alone or after the data of a transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// The name of the peer.
    pub from: String,
    /// The incarnation of the peer.
    pub incarnation: u64,
    /// What it sent.
    pub payload: Bytes,
}

/// The notifications that reach an agent, in order per peer.
///
/// The queue is bounded: senders wait while it is full.
#[derive(Debug)]
pub struct Notifications {
    queue: mpsc::Receiver<Notification>,
    shutdown: CancellationToken,
}

impl Notifications {
    pub(crate) fn new(queue: mpsc::Receiver<Notification>, shutdown: CancellationToken) -> Self {
        Self { queue, shutdown }
    }

    /// Receives the next notification; `None` once the agent has shut down and none is left.
    ///
    /// # Cancel safety
    /// Cancel safe: no notification is lost.
    pub async fn recv(&mut self) -> Option<Notification> {
        tokio::select! {
            biased;
            notification = self.queue.recv() => notification,
            () = self.shutdown.cancelled() => None,
        }
    }
}
