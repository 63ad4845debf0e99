//! A directory in a folder that the processes of one host share: a file per instance.
//!
//! ```text
//! register ─► Wanted ─► Keeper ─► folder ─► Scanner ─► watch
//!                        └ one task, which looks every 200 ms ┘
//! ```
//!
//! An instance lives as long as its process holds the lock of its file. The system gives the lock
//! back however the process ends, so nothing has to be kept alive, and nothing expires under a
//! process that is merely slow or stopped. A lock that goes makes no event: that is why there is a
//! look every so often, and nothing else.

mod entry;
mod folder;
mod keep;
mod scan;
mod work;

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::known::changes;
use super::{Change, Discovery, Instance, Registration};
use crate::error::{Error, ErrorKind, Result};
use crate::name::EndpointPath;
use folder::Folder;
use work::{Shared, Worker, work};

/// How the folder is used.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct FileConfig {
    /// The folder, which has to be there, on a file system of this host.
    pub folder: PathBuf,
    /// How often it is looked at, from 10 ms to a minute: how late a watch is at the most.
    #[serde(default = "poll", deserialize_with = "crate::time::duration")]
    pub poll: Duration,
}

impl FileConfig {
    /// Uses `folder`.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), poll: poll() }
    }

    /// Looks every `poll`.
    #[must_use]
    pub fn with_poll(mut self, poll: Duration) -> Self {
        self.poll = poll;
        self
    }
}

/// Five looks a second cost next to nothing, and a death is noticed well within one.
const fn poll() -> Duration {
    Duration::from_millis(200)
}

/// Instances as files of a folder; cheap to clone.
///
/// Whoever may write into the folder decides where requests go: its permissions are the access
/// control. Who may only read it can watch. A process that watches holds one file open per
/// instance that it sees. What is no instance is warned of once and passed over; files of dead
/// instances are removed by whoever finds them and may.
///
/// It owns a task; dropping the last clone takes out what was registered and ends the task, and
/// [`shutdown`](Discovery::shutdown) waits for that. A child process that was forked without
/// `exec` keeps the locks of its parent: what its parent has registered lives as long as it does.
#[derive(Clone)]
pub struct FileDiscovery(Arc<Inner>);

struct Inner {
    folder: Folder,
    shared: Arc<Shared>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    _shutdown_on_drop: DropGuard,
}

impl FileDiscovery {
    /// Starts to use a folder.
    ///
    /// Fails with [`NotFound`](ErrorKind::NotFound) if it is not there,
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) if it is no folder, may not be read, or the
    /// config cannot work; the message names the folder.
    ///
    /// # Cancel safety
    /// Dropping the future starts nothing.
    pub async fn start(config: FileConfig) -> Result<Self> {
        if !POLL.contains(&config.poll) {
            return Err(Error::invalid(format!("poll of {:?}", config.poll)));
        }
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let shutdown_on_drop = shutdown.clone().drop_guard();
        let folder = Folder { path: config.folder };
        let looked_at = folder.clone();
        let looked = tasks.spawn_blocking(move || looked_at.list().map(|_| ())).await;
        looked.map_err(|error| Error::internal("look at a folder").with_source(error))??;
        let shared = Arc::<Shared>::default();
        let worker = Worker::new(&folder, &shared);
        tasks.spawn(work(worker, config.poll, tasks.clone(), shutdown.clone()));
        Ok(Self(Arc::new(Inner {
            folder,
            shared,
            tasks,
            shutdown,
            _shutdown_on_drop: shutdown_on_drop,
        })))
    }
}

#[async_trait]
impl Discovery for FileDiscovery {
    async fn register(&self, instance: Instance) -> Result<Registration> {
        // What readers would not take is refused here.
        entry::encode(&instance)?;
        let name = entry::file_name(&instance.endpoint, instance.id);
        let shared = Arc::clone(&self.0.shared);
        let (number, displacement, published) = shared.wanted.add(&name, instance.clone())?;
        // From here on dropping the future takes it out again.
        let registration = Registration::new(move || {
            shared.wanted.remove(&name, number);
            shared.wake.notify_one();
        });
        let registration = registration.with_displacement(displacement);
        self.0.shared.wake.notify_one();
        match tokio::time::timeout(REGISTER_MAX, published).await {
            Ok(Ok(outcome)) => outcome.map(|()| registration),
            Ok(Err(_)) => Err(Error::new(ErrorKind::Closed, "discovery has shut down")),
            Err(_) => {
                let folder = self.0.folder.path.display();
                let message = format!("{instance} is not registered: folder {folder} is locked");
                Err(Error::new(ErrorKind::Unavailable, message))
            }
        }
    }

    async fn watch(&self, endpoint: &EndpointPath) -> Result<BoxStream<'static, Change>> {
        let shared = &self.0.shared;
        let mut follows = lock(&shared.follows);
        // Looked at under the lock: `work` forgets all that are followed.
        if self.0.shutdown.is_cancelled() {
            return Err(Error::new(ErrorKind::Closed, "discovery has shut down"));
        }
        let known = follows.entry(endpoint.clone()).or_default().subscribe();
        let look = shared.looks.fetch_add(1, Ordering::SeqCst) + 1;
        drop(follows);
        shared.wake.notify_one();
        Ok(changes(known, look).boxed())
    }

    async fn shutdown(&self) {
        self.0.shutdown.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

impl fmt::Debug for FileDiscovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileDiscovery").field("folder", &self.0.folder.path).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const POLL: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(60);

/// A process that was stopped while it held the lock is not waited for longer than this.
const REGISTER_MAX: Duration = Duration::from_secs(10);
