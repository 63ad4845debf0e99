use bytes::Bytes;
use tokio::sync::mpsc;

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
pub struct Notifications(pub(crate) mpsc::Receiver<Notification>);

impl Notifications {
    /// Receives the next notification; `None` once the agent has shut down.
    ///
    /// # Cancel safety
    /// Cancel safe: no notification is lost.
    pub async fn recv(&mut self) -> Option<Notification> {
        self.0.recv().await
    }
}
