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
//! reconnects or a subscriber is slow. The [`link`](crate::wire::link) beneath each session numbers,
//! acknowledges and repeats, so that streams go on through all of these. Nothing relies on JetStream.

mod config;
mod hub;
mod socket;
mod subject;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::remote::{Bound, Connection, Peers, Reach, RemoteEngine, Shares};
use super::{Binding, Ingress, RequestPlane};
use crate::discovery::{Address, Instance};
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::{self, Registry, Sample, Source, plain};
use crate::name::EndpointPath;
use crate::nats;
use crate::protocol::InstanceId;
pub use config::NatsRequestPlaneConfig;
use hub::{Hub, Links};
use subject::Subjects;

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
    pub async fn start(config: NatsRequestPlaneConfig) -> Result<Self> {
        nats::check_root(&config.root)?;
        config.limits.check()?;
        let shares = Shares::new(config.requests_max)?;
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
            (&bound, shares),
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
    async fn reach(&self, instance: &Instance) -> Result<Connection> {
        let subject = instance.address.0.strip_prefix(SCHEME);
        let process = subject.and_then(|subject| self.hub.subjects().process(subject));
        let process = process.ok_or_else(|| {
            let (root, address) = (self.hub.subjects().root(), &instance.address);
            Error::invalid(format!("{instance} has address {address}, not one of NATS at {root}"))
        })?;
        if let Some(known) = self.peers.known(&process) {
            return Ok(known);
        }
        let connect = self.hub.connect(process);
        // Boxed: large and seldom run, while this future is made for each call.
        let connection = Box::pin(self.peers.connection(process, connect)).await;
        connection.map_err(|error| {
            let message = format!("{instance} cannot be reached at {}", instance.address);
            Error::new(ErrorKind::Unavailable, message).with_source(error).unprocessed()
        })
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
        let engine = RemoteEngine::new(&self.dialer, instance);
        engine.connect().await?;
        Ok(Ingress::remote(Arc::new(engine), self.hub.codec()))
    }

    async fn probe(&self, instance: &Instance) -> Result<()> {
        RemoteEngine::new(&self.dialer, instance).probe().await
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
