//! What peers say to an agent.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// A few bytes that a peer sent, alone or after the data of a transfer.
///
/// Who it is from is what the sender says: nothing proves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// The name of the peer.
    pub from: String,
    /// The incarnation of the peer.
    pub incarnation: u64,
    /// What it sent.
    pub payload: Bytes,
}

/// The notifications that reach an agent, in order per peer; a stream that ends as
/// [`recv`](Self::recv) does.
///
/// The queue is bounded: senders wait while it is full.
#[derive(Debug)]
pub struct Notifications {
    queue: mpsc::Receiver<Notification>,
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Notifications {
    pub(crate) fn new(queue: mpsc::Receiver<Notification>, shutdown: CancellationToken) -> Self {
        Self { queue, shutdown: Box::pin(shutdown.cancelled_owned()) }
    }

    /// Receives the next notification; `None` once the agent has shut down and none is left.
    ///
    /// # Cancel safety
    /// Cancel safe: no notification is lost.
    pub async fn recv(&mut self) -> Option<Notification> {
        poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }
}

impl Stream for Notifications {
    type Item = Notification;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.queue.poll_recv(context) {
            Poll::Pending => self.shutdown.as_mut().poll(context).map(|()| None),
            notified => notified,
        }
    }
}
