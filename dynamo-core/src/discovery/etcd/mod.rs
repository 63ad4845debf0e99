//! A directory in etcd: instances live under a lease, watches follow from a listing on.
//!
//! ```text
//! register ─► Wanted ─► keeper (lease, keep-alive) ─► etcd ─► follower per endpoint ─► watch
//! ```
//!
//! All of it runs on a thread of its own, so that a busy application cannot starve the keep-alive.
//! etcd is asked who is there and nothing else: while it is away, what was known stays, and what was
//! registered is registered again when it is back, even if it has lost everything.

mod config;
mod follow;
mod keep;
pub(super) mod key;
mod roster;
mod wanted;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::known::{Known, changes};
use super::{Change, Discovery, Instance, Registration};
use crate::error::{Error, ErrorKind, Result};
use crate::name::EndpointPath;
pub use config::EtcdConfig;
use follow::Follow;
use wanted::Wanted;

/// Instances in etcd 3.4 or later; cheap to clone.
///
/// It owns a thread; dropping the last clone revokes the lease, so that what was registered is
/// gone at once, and ends the thread. [`shutdown`](Discovery::shutdown) waits for that.
#[derive(Clone)]
pub struct EtcdDiscovery(Arc<Inner>);

struct Inner {
    config: Arc<EtcdConfig>,
    wanted: Arc<Wanted>,
    follows: Arc<Follows>,
    runtime: tokio::runtime::Handle,
    ended: watch::Receiver<bool>,
    shutdown: CancellationToken,
    _shutdown_on_drop: DropGuard,
}

/// The endpoints that are followed, as long as someone listens.
type Follows = Mutex<HashMap<EndpointPath, Follow>>;

impl EtcdDiscovery {
    /// Starts to use etcd; does not wait until it answers.
    ///
    /// Fails with [`InvalidArgument`](ErrorKind::InvalidArgument) on a config that cannot work, and
    /// [`Unavailable`](ErrorKind::Unavailable) if the system gives no thread.
    pub fn start(config: EtcdConfig) -> Result<Self> {
        config.validate()?;
        let no_thread =
            |error| Error::new(ErrorKind::Unavailable, "thread for etcd").with_source(error);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(no_thread)?;
        let (config, wanted) = (Arc::new(config), Arc::<Wanted>::default());
        let (shutdown, handle) = (CancellationToken::new(), runtime.handle().clone());
        let (has_ended, ended) = watch::channel(false);
        let keeper = keep::keep(Arc::clone(&config), Arc::clone(&wanted), shutdown.clone());
        // Joined through `ended`: the thread does nothing behind it.
        std::thread::Builder::new()
            .name("etcd".to_owned())
            .spawn(move || {
                runtime.block_on(keeper);
                runtime.shutdown_background();
                has_ended.send_replace(true);
            })
            .map_err(no_thread)?;
        Ok(Self(Arc::new(Inner {
            config,
            wanted,
            follows: Arc::default(),
            runtime: handle,
            ended,
            _shutdown_on_drop: shutdown.clone().drop_guard(),
            shutdown,
        })))
    }
}

#[async_trait]
impl Discovery for EtcdDiscovery {
    async fn register(&self, instance: Instance) -> Result<Registration> {
        let inner = &self.0;
        if inner.shutdown.is_cancelled() {
            return Err(Error::new(ErrorKind::Closed, "discovery has shut down"));
        }
        let key = key::key(&inner.config.root, &instance);
        let (number, displacement, published) = inner.wanted.add(&key, instance.clone())?;
        let wanted = Arc::clone(&inner.wanted);
        // From here on dropping the future takes it out again.
        let registration = Registration::new(move || wanted.remove(&key, number));
        let registration = registration.with_displacement(displacement);
        match tokio::time::timeout(REGISTER_MAX, published).await {
            Ok(Ok(outcome)) => outcome.map(|()| registration),
            Ok(Err(_)) => Err(Error::new(ErrorKind::Closed, "discovery has shut down")),
            Err(_) => {
                let message = format!("{instance} is not registered: etcd does not answer");
                Err(Error::new(ErrorKind::Unavailable, message))
            }
        }
    }

    async fn watch(&self, endpoint: &EndpointPath) -> Result<BoxStream<'static, Change>> {
        let inner = &self.0;
        let mut follows = lock(&inner.follows);
        // Looked at under the lock: `shutdown` forgets all that are followed.
        if inner.shutdown.is_cancelled() {
            return Err(Error::new(ErrorKind::Closed, "discovery has shut down"));
        }
        let follow = follows.entry(endpoint.clone()).or_insert_with(|| inner.follow(endpoint));
        let mut look = 0;
        follow.looks.send_modify(|looks| {
            *looks += 1;
            look = *looks;
        });
        Ok(changes(follow.known.subscribe(), look).boxed())
    }

    async fn shutdown(&self) {
        self.0.shutdown.cancel();
        // The sender is dropped only with the thread.
        let _ = self.0.ended.clone().wait_for(|ended| *ended).await;
        // The watches end with them.
        lock(&self.0.follows).clear();
    }
}

impl Inner {
    /// Starts to follow `endpoint`.
    fn follow(&self, endpoint: &EndpointPath) -> Follow {
        let follow = Follow { known: watch::Sender::default(), looks: watch::Sender::default() };
        let prefix = key::prefix(&self.config.root, endpoint);
        let following = follow::follow(Arc::clone(&self.config), prefix, follow.clone());
        let (follows, endpoint) = (Arc::clone(&self.follows), endpoint.clone());
        let (shutdown, known) = (self.shutdown.clone(), follow.known.clone());
        // Ends with its last listener or the thread's runtime, which owns it.
        self.runtime.spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = following => {}
                () = forgotten(&known, &follows, &endpoint) => {}
            }
        });
        follow
    }
}

/// Completes when nobody listens to an endpoint any more; it is not followed then.
async fn forgotten(known: &watch::Sender<Known>, follows: &Follows, endpoint: &EndpointPath) {
    loop {
        known.closed().await;
        // Someone may have come meanwhile.
        let mut follows = lock(follows);
        if known.receiver_count() == 0 {
            follows.remove(endpoint);
            return;
        }
    }
}

impl fmt::Debug for EtcdDiscovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The config has a password.
        f.debug_struct("EtcdDiscovery")
            .field("endpoints", &self.0.config.endpoints)
            .finish_non_exhaustive()
    }
}

/// Runs one call of etcd, within a bound.
async fn answered<T>(call: impl Future<Output = Result<T, etcd_client::Error>>) -> Result<T> {
    match tokio::time::timeout(ANSWER_MAX, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::new(ErrorKind::Unavailable, "etcd").with_source(error)),
        Err(_) => Err(Error::new(ErrorKind::Unavailable, "etcd does not answer")),
    }
}

/// Returns how long to wait before try number `tries`: doubling, and never all at once.
fn back_off(tries: u32) -> Duration {
    let longest = BACK_OFF_MIN.saturating_mul(1 << tries.min(10)).min(BACK_OFF_MAX);
    longest.mul_f64(0.5 + 0.5 * jitter())
}

/// Returns a number from 0 to 1 that differs from process to process.
fn jitter() -> f64 {
    let random = crate::protocol::InstanceId::random().0;
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An etcd that is there answers within this.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// A start-up waits this long for an etcd that is being restarted.
const REGISTER_MAX: Duration = Duration::from_secs(30);

const BACK_OFF_MIN: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(1);
