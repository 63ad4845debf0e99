//! The plane between processes over NATS core: no connection from process to process is needed.
//!
//! ```text
//! subject of a process: {root}.requests.{process}            datagrams of its links
//!                       {root}.requests.{process}.{link}     where NATS says that nobody listens
//!
//! RemoteEngine ─► Connection ─► Link ─► NATS ─► Hub ─► Link ─► Connection ─► a task per request
//!                 one task             (both ways)    one task per plane
//! ```
//!
//! NATS promises at most once, and loses what is on its way when a server restarts, a client
//! reconnects or a subscriber is slow. The [`link`] beneath each session numbers, acknowledges and
//! repeats, so that streams go on through all of these. Nothing relies on JetStream.

mod hub;
mod socket;
mod subject;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::remote::{Bound, Peers, Reach, Redial, RemoteEngine};
use super::{Binding, Ingress, RequestPlane};
use crate::discovery::{Address, Instance};
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::{self, Registry, Sample, Source, plain};
use crate::name::EndpointPath;
use crate::nats::{self, NatsAccess};
use crate::protocol::InstanceId;
use crate::wire::codec::Codec;
use crate::wire::link;
use crate::wire::session::Limits;
use hub::{Hub, Links};
use subject::Subjects;

/// How the plane is set up.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct NatsConfig {
    /// How NATS is reached.
    pub access: NatsAccess,
    /// What all subjects start with: `[a-z0-9_-]+`; the same for all who call each other.
    #[serde(default = "nats::default_root")]
    pub root: String,
    /// What a process allows each peer. By default a peer may be silent for ten seconds, so that
    /// streams outlive a server of NATS that restarts. Set in code only.
    #[serde(skip, default = "limits")]
    pub limits: Limits,
    /// How the requests of this plane and their answers are encoded; whoever serves follows.
    #[serde(default)]
    pub codec: Codec,
}

impl NatsConfig {
    /// Uses NATS as `access` says, or at a URL.
    pub fn new(access: impl Into<NatsAccess>) -> Self {
        let (root, limits, codec) = (nats::default_root(), limits(), Codec::default());
        Self { access: access.into(), root, limits, codec }
    }

    /// Starts all subjects with `root`.
    #[must_use]
    pub fn with_root(mut self, root: impl Into<String>) -> Self {
        self.root = root.into();
        self
    }

    /// Encodes requests and their answers by `codec`.
    #[must_use]
    pub fn with_codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// Allows a peer as much as `limits` say.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }
}

fn limits() -> Limits {
    let dead_after = link::Limits::default().dead_after;
    Limits { ping_after: PING_AFTER, dead_after, ..Limits::default() }
}

/// Serves and calls over NATS.
///
/// It owns its tasks: [`shutdown`](RequestPlane::shutdown) ends and joins them, dropping it ends
/// them.
pub struct NatsRequestPlane {
    hub: Arc<Hub>,
    bound: Arc<Bound>,
    dialer: Arc<Dialer>,
    /// The task that hands out what arrives; it ends behind the links.
    reception: TaskTracker,
    shutdown: CancellationToken,
    _shutdown_on_drop: DropGuard,
}

/// What a plane has done so far, over all its links.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NatsStats {
    /// Links made or accepted.
    pub links_total: u64,
    /// Datagrams published.
    pub datagrams_total: u64,
    /// Bytes in them.
    pub datagram_bytes_total: u64,
    /// Datagrams among them that were published before.
    pub repeats_total: u64,
}

#[derive(Default)]
struct Published {
    datagrams: AtomicU64,
    bytes: AtomicU64,
    repeats: AtomicU64,
}

impl NatsRequestPlane {
    /// Connects and listens at a subject of its own; goes on to try in the background if NATS is
    /// not there yet, as it does later.
    ///
    /// Fails with [`InvalidArgument`](ErrorKind::InvalidArgument) on a config that cannot work, and
    /// [`Unavailable`](ErrorKind::Unavailable) if NATS refuses.
    ///
    /// # Cancel safety
    /// Dropping the future starts nothing.
    pub async fn start(config: NatsConfig) -> Result<Self> {
        nats::check_root(&config.root)?;
        config.limits.check()?;
        let subjects = Subjects::new(config.root, InstanceId::random().0);
        let links = Arc::<Links>::default();
        let known = Arc::clone(&links);
        let client = config
            .access
            .connect(|options| {
                options.subscription_capacity(BACKLOG_MAX).event_callback(move |event| {
                    if matches!(event, async_nats::Event::Connected) {
                        known.on_reconnect();
                    }
                    std::future::ready(())
                })
            })
            .await?;
        let unavailable = |error: Box<dyn std::error::Error + Send + Sync>| {
            let message = "cannot listen for requests over NATS";
            Error::new(ErrorKind::Unavailable, message).with_source(error)
        };
        let subscribe = |subject| async {
            client.subscribe(subject).await.map_err(|error| unavailable(error.into()))
        };
        let datagrams = subscribe(subjects.own()).await?;
        let absences = subscribe(subjects.absences()).await?;
        // The server has it before an address is told; while NATS is away it hears at the reconnect.
        let flushed = tokio::time::timeout(nats::CONNECT_MAX, client.flush()).await;
        if let Ok(Err(error)) = flushed {
            return Err(unavailable(error.into()));
        }
        let (shutdown, bound) = (CancellationToken::new(), Arc::<Bound>::default());
        let shutdown_on_drop = shutdown.clone().drop_guard();
        let stop = shutdown.clone();
        let hub = Arc::new(Hub::new(
            subjects,
            client,
            (config.limits, config.codec),
            links,
            &bound,
            stop,
        ));
        let reception = TaskTracker::new();
        reception.spawn(Arc::clone(&hub).receive(datagrams, absences));
        let dialer = Arc::new(Dialer { hub: Arc::clone(&hub), peers: Peers::default() });
        let _shutdown_on_drop = shutdown_on_drop;
        Ok(Self { hub, bound, dialer, reception, shutdown, _shutdown_on_drop })
    }

    /// Returns what the plane has done so far.
    pub fn stats(&self) -> NatsStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let published = self.hub.published();
        NatsStats {
            links_total: read(&self.hub.counters().connections),
            datagrams_total: read(&published.datagrams),
            datagram_bytes_total: read(&published.bytes),
            repeats_total: read(&published.repeats),
        }
    }

    /// Tells whether NATS is reached right now.
    pub fn is_connected(&self) -> bool {
        self.hub.is_connected()
    }

    /// Returns the subject that peers reach this plane at.
    pub fn subject(&self) -> String {
        self.hub.subjects().own()
    }
}

/// Makes links to processes.
struct Dialer {
    hub: Arc<Hub>,
    peers: Peers<u64>,
}

impl Reach for Dialer {
    async fn reach(&self, instance: &Instance) -> Result<RemoteEngine> {
        let subject = instance.address.0.strip_prefix(SCHEME);
        let process = subject.and_then(|subject| self.hub.subjects().process(subject));
        let process = process.ok_or_else(|| {
            let (root, address) = (self.hub.subjects().root(), &instance.address);
            Error::invalid(format!("{instance} has address {address}, not one of NATS at {root}"))
        })?;
        let connection = self.peers.connection(process, self.hub.connect(process)).await;
        let connection = connection.map_err(|error| {
            let message = format!("{instance} cannot be reached at {}", instance.address);
            Error::new(ErrorKind::Unavailable, message).with_source(error).unprocessed()
        })?;
        Ok(RemoteEngine::new(connection, instance))
    }
}

#[async_trait]
impl RequestPlane for NatsRequestPlane {
    async fn bind(
        &self,
        endpoint: &EndpointPath,
        id: (InstanceId, u64),
        ingress: Ingress,
    ) -> Result<Binding> {
        let unbind = self.bound.insert(endpoint, id, ingress)?;
        Ok(Binding::new(Address(format!("{SCHEME}{}", self.subject())), unbind))
    }

    async fn dial(&self, instance: &Instance) -> Result<Ingress> {
        let engine = Redial::dial(&self.dialer, instance).await?;
        Ok(Ingress::remote(Arc::new(engine), self.hub.codec()))
    }

    async fn probe(&self, instance: &Instance) -> Result<()> {
        Redial::probe(&self.dialer, instance).await
    }

    fn measure(&self, metrics: &Registry) {
        metrics.add(&self.hub);
    }

    async fn shutdown(&self) {
        self.shutdown.cancel();
        self.reception.close();
        self.reception.wait().await;
        self.hub.flush().await;
    }
}

impl Source for Hub {
    fn collect(&self, samples: &mut Vec<Sample>) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let published = self.published();
        plain(metrics::NATS_LINKS, &[], read(&self.counters().connections), samples);
        plain(metrics::NATS_DATAGRAMS, &[], read(&published.datagrams), samples);
        plain(metrics::NATS_BYTES, &[], read(&published.bytes), samples);
        plain(metrics::NATS_REPEATS, &[], read(&published.repeats), samples);
    }
}

impl fmt::Debug for NatsRequestPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsRequestPlane").field("subject", &self.subject()).finish_non_exhaustive()
    }
}

/// What the addresses of this plane start with.
const SCHEME: &str = "nats:";

/// Datagrams that wait for the task that hands them out; more are lost, and sent again.
const BACKLOG_MAX: usize = 4096;

/// As over TCP: a peer that died is asked for after a second of silence, and NATS says then that
/// nobody listens.
const PING_AFTER: Duration = Duration::from_secs(1);
