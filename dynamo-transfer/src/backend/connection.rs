//! What connections of all kinds have in common: how they are accepted, and how long is waited.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::{Error, ErrorKind, Result};
use crate::wire::protocol;

/// Serves the connections that peers make, a limited number at once, until the agent ends. Those
/// being served then end by themselves.
pub(super) fn accept<S, F>(
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<io::Result<S>> + Send + 'static,
    mut serve: impl FnMut(S) -> F + Send + 'static,
) where
    S: Send,
    F: Future<Output = ()> + Send + 'static,
{
    let (tracker, shutdown) = (tasks.clone(), shutdown.clone());
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let accept = async move {
        loop {
            // At the limit, further peers wait in the kernel's bounded backlog.
            let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
            match poll_fn(&mut poll).await {
                Ok(stream) => {
                    let served = serve(stream);
                    tracker.spawn(async move {
                        served.await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "transfer connection not accepted");
                    // Out of descriptors, for instance: trying again at once would spin.
                    tokio::time::sleep(ACCEPT_BACK_OFF).await;
                }
            }
        }
    };
    tasks.spawn(async move {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = accept => {}
        }
    });
}

/// Waits for a hello: a peer that connects says it at once, and in one go.
pub(super) async fn hello<T>(received: impl Future<Output = Result<T>>) -> Result<T> {
    let received = tokio::time::timeout(HELLO_MAX, received).await;
    received.unwrap_or_else(|_| Err(protocol("no hello")))
}

/// Runs one step of IO; a peer that makes no progress for `patience` counts as gone.
pub(super) async fn within<T>(
    patience: Duration,
    step: impl Future<Output = io::Result<T>>,
) -> Result<T> {
    match tokio::time::timeout(patience, step).await {
        Ok(result) => result.map_err(broken),
        Err(_) => Err(Error::new(ErrorKind::Disconnected, "the peer makes no progress")),
    }
}

pub(super) fn broken(error: io::Error) -> Error {
    Error::new(ErrorKind::Disconnected, "the connection broke").with_source(error)
}

/// Returns how long an operation of so many bytes may take as a whole: a peer that trickles keeps no
/// lease on memory for ever.
pub(super) fn patience(bytes: u64) -> Duration {
    STALL_MAX + Duration::from_secs(bytes / BYTES_PER_SECOND_MIN)
}

/// Peers slower than this on the whole of an operation are cut off: far below any network that KV
/// blocks would be sent over.
const BYTES_PER_SECOND_MIN: u64 = 1 << 20;

/// A few per worker of a large fleet; each costs a socket, a page between processes of one host, and
/// a task.
const CONNECTIONS_MAX: usize = 1024;

pub(super) const HELLO_MAX: Duration = Duration::from_secs(3);

/// A connection without requests, and without anything open, is closed after this.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(60);

/// Nobody who is alive holds what has begun back for this long: a message, a stripe, an answer.
pub(super) const STALL_MAX: Duration = Duration::from_secs(10);

const ACCEPT_BACK_OFF: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_accepted_is_tried_again_later_and_no_more_than_the_limit_are_served() {
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let (asked, served) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&asked);
        let poll = move |_: &mut Context<'_>| {
            Poll::Ready(match count.fetch_add(1, Ordering::Relaxed) {
                0..3 => Err(io::ErrorKind::Other.into()),
                _ => Ok(()),
            })
        };
        let (count, end) = (Arc::clone(&served), shutdown.clone());
        let started = tokio::time::Instant::now();
        accept(&tasks, &shutdown, poll, move |()| {
            let (count, end) = (Arc::clone(&count), end.clone());
            async move {
                count.fetch_add(1, Ordering::Relaxed);
                end.cancelled().await;
            }
        });
        // Time moves on only when nobody has anything to do.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(served.load(Ordering::Relaxed), CONNECTIONS_MAX);
        assert_eq!(asked.load(Ordering::Relaxed), 3 + CONNECTIONS_MAX);
        assert_eq!(started.elapsed().as_secs(), 1);
        shutdown.cancel();
        tasks.close();
        tasks.wait().await;
    }
}
