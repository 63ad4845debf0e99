//! The task: keeps what is registered, looks who is there, and tells the watches.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::folder::{Folder, Inode};
use super::keep::{Keeper, Wanted};
use super::lock;
use super::scan::Scanner;
use crate::discovery::known::Known;
use crate::name::EndpointPath;

/// What the callers and the task share.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) wanted: Arc<Wanted>,
    /// The endpoints that are followed, as long as someone listens.
    pub(super) follows: Mutex<HashMap<EndpointPath, watch::Sender<Known>>>,
    /// How many looks were asked for.
    pub(super) looks: AtomicU64,
    pub(super) wake: Notify,
}

/// Works until `shutdown`; then takes everything out.
pub(super) async fn work(
    worker: Worker,
    poll: Duration,
    tasks: TaskTracker,
    shutdown: CancellationToken,
) {
    let shared = Arc::clone(&worker.shared);
    let mut worker = Some(worker);
    while let Some((again, next)) = step(worker.take(), &tasks).await {
        worker = Some(again);
        let pause = async {
            match next {
                Next::Soon => tokio::time::sleep(LOCKED_RETRY).await,
                Next::Poll => tokio::time::sleep(poll).await,
                Next::OnWake => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = shared.wake.notified() => {}
            () = pause => {}
        }
    }
    shared.wanted.close();
    for _ in 0..LEAVE_TRIES {
        match step(worker.take(), &tasks).await {
            Some((again, _)) if !again.stale.is_empty() => worker = Some(again),
            _ => break,
        }
        tokio::time::sleep(LOCKED_RETRY).await;
    }
    // The watches end with them.
    lock(&shared.follows).clear();
}

/// Lets the worker do what is due, where blocking harms nobody; `None` if it has panicked.
async fn step(worker: Option<Worker>, tasks: &TaskTracker) -> Option<(Worker, Next)> {
    let mut worker = worker?;
    let stepped = tasks.spawn_blocking(move || {
        let next = worker.step();
        (worker, next)
    });
    stepped.await.inspect_err(|error| tracing::error!(%error, "discovery has ended")).ok()
}

/// What the task owns; all its calls block.
pub(super) struct Worker {
    keeper: Keeper,
    scanner: Scanner,
    /// Files of the dead, by name, to be removed.
    stale: BTreeMap<String, Inode>,
    is_degraded: bool,
    shared: Arc<Shared>,
}

/// When to look again.
enum Next {
    /// Another process changes the folder, for a moment.
    Soon,
    Poll,
    /// Nobody listens, and nothing is registered.
    OnWake,
}

impl Worker {
    pub(super) fn new(folder: &Folder, shared: &Arc<Shared>) -> Self {
        Self {
            keeper: Keeper::new(folder.clone(), Arc::clone(&shared.wanted)),
            scanner: Scanner::new(folder.clone()),
            stale: BTreeMap::new(),
            is_degraded: false,
            shared: Arc::clone(shared),
        }
    }

    fn step(&mut self) -> Next {
        // Read first: what is asked for from here on is another look.
        let looks = self.shared.looks.load(Ordering::SeqCst);
        let follows: Vec<_> = {
            let mut follows = lock(&self.shared.follows);
            follows.retain(|_, known| known.receiver_count() > 0);
            follows.iter().map(|(endpoint, known)| (endpoint.clone(), known.clone())).collect()
        };
        let is_locked = self.keeper.keep(&mut self.stale);
        let followed: BTreeSet<_> = follows.iter().map(|(endpoint, _)| endpoint.clone()).collect();
        let scanned = self.scanner.scan(&followed, &mut self.stale);
        let is_degraded = scanned.is_err();
        if let Err(error) = scanned
            && !self.is_degraded
        {
            tracing::warn!(%error, "the folder is away; what is known stays");
        }
        self.is_degraded = is_degraded;
        for (endpoint, known) in &follows {
            self.publish(endpoint, known, (!is_degraded).then_some(looks));
        }
        match (is_locked, follows.is_empty() && self.keeper.is_idle() && self.stale.is_empty()) {
            (true, _) => Next::Soon,
            (false, true) => Next::OnWake,
            (false, false) => Next::Poll,
        }
    }

    /// Tells the watches who lives, by the scan that answers `looks` if the folder was there.
    fn publish(&self, endpoint: &EndpointPath, known: &watch::Sender<Known>, looks: Option<u64>) {
        let instances = self.scanner.instances(endpoint);
        known.send_if_modified(|known| {
            let is_degraded = looks.is_none();
            // Without a folder nothing is known of an endpoint that was not known before.
            let instances =
                if is_degraded && known.instances.is_none() { None } else { Some(instances) };
            let looks = looks.unwrap_or(known.looks);
            let is_news = known.is_degraded != is_degraded
                || known.looks != looks
                || known.instances != instances;
            *known = Known { instances, is_degraded, looks, absences: 0 };
            is_news
        });
    }
}

/// Whoever changes the folder holds its lock for one write.
const LOCKED_RETRY: Duration = Duration::from_millis(10);

/// A file that is left behind is unlocked: another process removes it.
const LEAVE_TRIES: usize = 50;
