use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::posted::{Posted, cancelled};
use crate::error::{Error, ErrorKind};

/// What ends the transfers of an agent that nothing else has ended: their deadlines, or its shutdown.
///
/// One task sleeps until the first deadline it knows of. Most transfers end before, and later ones
/// come with later deadlines: it wakes once in a while, not for each.
#[derive(Default)]
pub(crate) struct Deadlines {
    watched: Mutex<Watched>,
    sooner: Notify,
}

/// Names a transfer that is watched: its deadline, and a number.
pub(super) type Key = (Instant, u64);

#[derive(Default)]
struct Watched {
    transfers: BTreeMap<Key, Weak<Posted>>,
    numbers: u64,
    /// Until when the task sleeps; for ever if `None`.
    wakes_at: Option<Instant>,
    is_closed: bool,
}

impl Deadlines {
    /// Fails the transfer at `at` unless it is forgotten before; `None` once the agent has shut down.
    pub(super) fn watch(&self, at: Instant, transfer: &Arc<Posted>) -> Option<Key> {
        let mut watched = self.lock();
        if watched.is_closed {
            return None;
        }
        watched.numbers += 1;
        let key = (at, watched.numbers);
        watched.transfers.insert(key, Arc::downgrade(transfer));
        if watched.wakes_at.is_none_or(|wakes_at| at < wakes_at) {
            watched.wakes_at = Some(at);
            drop(watched);
            self.sooner.notify_one();
        }
        Some(key)
    }

    pub(super) fn forget(&self, key: Key) {
        self.lock().transfers.remove(&key);
    }

    /// Keeps the deadlines until shutdown, and then ends all that is left.
    pub(crate) async fn keep(&self, shutdown: &CancellationToken) {
        // Also when the task is dropped with its runtime.
        let _closing = CloseOnDrop(self);
        loop {
            let next = {
                let mut watched = self.lock();
                watched.wakes_at = watched.transfers.first_key_value().map(|(key, _)| key.0);
                watched.wakes_at
            };
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.sooner.notified() => {}
                () = due => self.expire(Instant::now()),
            }
        }
    }

    fn expire(&self, now: Instant) {
        let overdue = {
            let mut watched = self.lock();
            let later = watched.transfers.split_off(&(now, u64::MAX));
            std::mem::replace(&mut watched.transfers, later)
        };
        for transfer in overdue.into_values().filter_map(|transfer| transfer.upgrade()) {
            let message = "the peer did not answer in time";
            transfer.fail(Error::new(ErrorKind::DeadlineExceeded, message));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct CloseOnDrop<'a>(&'a Deadlines);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        let left = {
            let mut watched = self.0.lock();
            watched.is_closed = true;
            std::mem::take(&mut watched.transfers)
        };
        for transfer in left.into_values().filter_map(|transfer| transfer.upgrade()) {
            transfer.fail(cancelled());
        }
    }
}
