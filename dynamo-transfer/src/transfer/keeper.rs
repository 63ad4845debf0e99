use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;
use tokio::task::coop;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::posted::Posted;
use crate::error::{Error, ErrorKind};

/// Looks after the transfers of an agent: ends those that nothing else has ended, at their deadlines or
/// with the agent, and runs what is offered to whoever waits for it, should nobody wait.
///
/// One task sleeps until the first deadline it knows of. Most transfers end before, and later ones
/// come with later deadlines: it wakes once in a while, not for each.
#[derive(Default)]
pub(crate) struct Keeper {
    kept: Mutex<Kept>,
    sooner: Notify,
    offered: Notify,
    /// Of the agent.
    shutdown: CancellationToken,
}

/// Names a transfer that is kept: its deadline, and a number.
pub(super) type Key = (Instant, u64);

#[derive(Default)]
struct Kept {
    transfers: BTreeMap<Key, Weak<Posted>>,
    numbers: u64,
    /// Until when the task sleeps; for ever if `None`.
    wakes_at: Option<Instant>,
    /// Those on offer, and some that are being run.
    offers: BTreeSet<Key>,
    /// Whoever runs them has been called.
    is_called: bool,
    is_closed: bool,
}

impl Keeper {
    /// Starts one that ends with the agent.
    pub(crate) fn start(tasks: &TaskTracker, shutdown: &CancellationToken) -> Arc<Self> {
        let keeper = Arc::new(Self { shutdown: shutdown.clone(), ..Self::default() });
        let (ending, until) = (Arc::clone(&keeper), shutdown.clone());
        tasks.spawn(async move { ending.end(&until).await });
        let (running, until) = (Arc::clone(&keeper), shutdown.clone());
        tasks.spawn(async move { running.run(&until).await });
        keeper
    }

    /// Tells whether the agent has begun to shut down.
    pub(super) fn is_shutting_down(&self) -> bool {
        self.shutdown.is_cancelled()
    }

    /// Fails the transfer at `at` unless it is forgotten before; `None` once the agent has shut down.
    pub(super) fn keep(&self, at: Instant, transfer: &Arc<Posted>) -> Option<Key> {
        let mut kept = self.lock();
        if kept.is_closed {
            return None;
        }
        kept.numbers += 1;
        let key = (at, kept.numbers);
        kept.transfers.insert(key, Arc::downgrade(transfer));
        if kept.wakes_at.is_none_or(|wakes_at| at < wakes_at) {
            kept.wakes_at = Some(at);
            drop(kept);
            self.sooner.notify_one();
        }
        Some(key)
    }

    pub(super) fn forget(&self, key: Key) {
        let mut kept = self.lock();
        kept.transfers.remove(&key);
        kept.offers.remove(&key);
    }

    /// Has what a transfer offers run.
    pub(super) fn offer(&self, key: Key) {
        let mut kept = self.lock();
        kept.offers.insert(key);
        if !std::mem::replace(&mut kept.is_called, true) {
            drop(kept);
            self.offered.notify_one();
        }
    }

    /// Ends transfers at their deadlines; at shutdown, all that are left.
    async fn end(&self, shutdown: &CancellationToken) {
        // Also when the task is dropped with its runtime.
        let _closing = CloseOnDrop(self);
        loop {
            let next = {
                let mut kept = self.lock();
                kept.wakes_at = kept.transfers.first_key_value().map(|(key, _)| key.0);
                kept.wakes_at
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

    /// Runs what is offered until shutdown.
    async fn run(&self, shutdown: &CancellationToken) {
        let run = async {
            loop {
                self.offered.notified().await;
                self.lock().is_called = false;
                while let Some(transfer) = self.next() {
                    transfer.run_offer();
                    drop(transfer);
                    coop::consume_budget().await;
                }
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = run => {}
        }
    }

    /// Takes the next transfer that has an offer and is not settled.
    fn next(&self) -> Option<Arc<Posted>> {
        let mut kept = self.lock();
        loop {
            let key = kept.offers.pop_first()?;
            if let Some(transfer) = kept.transfers.get(&key).and_then(Weak::upgrade) {
                return Some(transfer);
            }
        }
    }

    fn expire(&self, now: Instant) {
        let overdue = {
            let mut kept = self.lock();
            let later = kept.transfers.split_off(&(now, u64::MAX));
            std::mem::replace(&mut kept.transfers, later)
        };
        for transfer in overdue.into_values().filter_map(|transfer| transfer.upgrade()) {
            let message = "the peer did not answer in time";
            transfer.fail(Error::new(ErrorKind::DeadlineExceeded, message));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct CloseOnDrop<'a>(&'a Keeper);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        let left = {
            let mut kept = self.0.lock();
            kept.is_closed = true;
            std::mem::take(&mut kept.transfers)
        };
        for transfer in left.into_values().filter_map(|transfer| transfer.upgrade()) {
            transfer.fail(Error::shut_down());
        }
    }
}
