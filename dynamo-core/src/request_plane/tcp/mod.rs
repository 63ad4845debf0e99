//! The plane between processes: few long-lived connections, answers on the one that asked.

mod client;
mod handshakes;
#[cfg(not(feature = "tls"))]
mod no_tls;
mod room;
mod server;
#[cfg(feature = "tls")]
mod tls;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::remote::{Bound, Counters, Peers, REQUESTS_MAX, RemoteEngine, Shares};
use super::{Binding, Ingress, RequestPlane};
use crate::discovery::{Address, Instance};
use crate::error::{Error, Result};
use crate::metrics::{self, Registry, Sample, Source, plain};
use crate::name::EndpointPath;
use crate::protocol::InstanceId;
use crate::wire::codec::Codec;
use crate::wire::session::Limits;
use client::{Dialer, Target};
#[cfg(not(feature = "tls"))]
use no_tls as tls;
use room::Room;
use server::Acceptor;
use tls::Tls;
#[cfg(all(feature = "tls", any(test, feature = "test-util")))]
pub use tls::fuzz_certificate;
#[cfg(feature = "tls")]
pub use tls::{Identity, Pem, TlsConfig};

/// How the plane is set up.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TcpConfig {
    /// Where to listen; a plane without it only calls. Port 0 takes a free one.
    pub listen: Option<SocketAddr>,
    /// Where peers find `listen`, if that is not the address they reach it by; port 0 stands for
    /// the port listened on. Has to be given when listening on a wildcard address.
    pub advertise: Option<SocketAddr>,
    /// Requests and answers may cross a network in plain text: has to be said for an address
    /// that is not the loopback, to listen there without TLS or to call there in spite of it.
    pub plaintext_allowed: bool,
    /// How connections are encrypted; plain text without it.
    #[cfg(feature = "tls")]
    pub tls: Option<TlsConfig>,
    /// What a connection allows its peer.
    pub limits: Limits,
    /// Requests of others that run at once, over all connections: they share it equally, and each
    /// has one at least.
    pub requests_max: u32,
    /// How the requests of this plane and their answers are encoded; whoever serves follows.
    pub codec: Codec,
}

impl Default for TcpConfig {
    fn default() -> Self {
        Self {
            listen: None,
            advertise: None,
            plaintext_allowed: false,
            #[cfg(feature = "tls")]
            tls: None,
            limits: Limits::default(),
            requests_max: REQUESTS_MAX,
            codec: Codec::default(),
        }
    }
}

impl TcpConfig {
    /// Listens at `address`.
    #[must_use]
    pub fn with_listen(mut self, address: SocketAddr) -> Self {
        self.listen = Some(address);
        self
    }

    /// Tells peers to connect to `address`.
    #[must_use]
    pub fn with_advertise(mut self, address: SocketAddr) -> Self {
        self.advertise = Some(address);
        self
    }

    /// Allows plain text beyond the loopback.
    #[must_use]
    pub fn with_plaintext_allowed(mut self) -> Self {
        self.plaintext_allowed = true;
        self
    }

    /// Encodes requests and their answers by `codec`.
    #[must_use]
    pub fn with_codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// Encrypts connections, and lets in only who is of the cluster.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn with_tls(mut self, tls: TlsConfig) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Allows a peer as much as `limits` say.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Runs about so many requests of others at once.
    #[must_use]
    pub fn with_requests_max(mut self, requests_max: u32) -> Self {
        self.requests_max = requests_max;
        self
    }
}

/// Serves and calls over TCP.
///
/// It owns its tasks: [`shutdown`](RequestPlane::shutdown) ends and joins them, dropping it ends
/// them.
pub struct TcpRequestPlane {
    address: Option<SocketAddr>,
    bound: Arc<Bound>,
    dialer: Arc<Dialer>,
    counters: Arc<Counters>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    _shutdown_on_drop: DropGuard,
}

/// What a plane has done so far, over all its connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TcpStats {
    /// Connections made or accepted.
    pub connections_total: u64,
    /// Calls that wrote to a socket.
    pub writes_total: u64,
    /// Bytes that they wrote.
    pub written_bytes_total: u64,
}

impl TcpRequestPlane {
    /// Starts the plane, and listens if `config` says where.
    ///
    /// Fails with [`InvalidArgument`](crate::ErrorKind::InvalidArgument) on a config that cannot work, and
    /// [`Unavailable`](crate::ErrorKind::Unavailable) if it cannot listen.
    ///
    /// # Cancel safety
    /// Dropping the future starts nothing.
    pub async fn start(config: TcpConfig) -> Result<Self> {
        Self::start_with(config, CONNECTIONS_MAX).await
    }

    async fn start_with(config: TcpConfig, connections_max: usize) -> Result<Self> {
        config.limits.check()?;
        let shares = Shares::new(config.requests_max)?;
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let shutdown_on_drop = shutdown.clone().drop_guard();
        let (bound, counters) = (Arc::<Bound>::default(), Arc::<Counters>::default());
        let tls = Tls::start(&config, &tasks, &shutdown).await?;
        let address = match config.listen {
            None => None,
            Some(listen) => {
                check(listen, &config, tls.is_some())?;
                let acceptor = Acceptor {
                    limits: config.limits.clone(),
                    room: Arc::new(Room::new(connections_max)),
                    tls: tls.clone(),
                    bound: Arc::clone(&bound),
                    shares,
                    counters: Arc::clone(&counters),
                    tasks: tasks.clone(),
                    shutdown: shutdown.clone(),
                };
                let port = acceptor.listen(listen).await?.port();
                let mut address = config.advertise.unwrap_or(listen);
                if address.port() == 0 || config.advertise.is_none() {
                    address.set_port(port);
                }
                Some(address)
            }
        };
        let dialer = Arc::new(Dialer {
            limits: config.limits,
            codec: config.codec,
            tls,
            plaintext_allowed: config.plaintext_allowed,
            peers: Peers::default(),
            counters: Arc::clone(&counters),
            tasks: tasks.clone(),
            shutdown: shutdown.clone(),
        });
        let _shutdown_on_drop = shutdown_on_drop;
        Ok(Self { address, bound, dialer, counters, tasks, shutdown, _shutdown_on_drop })
    }

    /// Returns what the plane has done so far.
    pub fn stats(&self) -> TcpStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TcpStats {
            connections_total: read(&self.counters.connections),
            writes_total: read(&self.counters.writes),
            written_bytes_total: read(&self.counters.written_bytes),
        }
    }

    /// Reads certificates, key and roots again: connections made from here on use them, those that
    /// are there go on.
    ///
    /// Fails with [`InvalidArgument`](crate::ErrorKind::InvalidArgument), naming the part that is no good,
    /// and everything stays as it was; also if the plane has no TLS.
    ///
    /// # Cancel safety
    /// Dropped before its end, it has changed everything or nothing.
    #[cfg(feature = "tls")]
    pub async fn reload_tls(&self) -> Result<()> {
        match &self.dialer.tls {
            Some(tls) => tls.reload(&self.tasks).await,
            None => Err(Error::invalid("a TCP plane without TLS has nothing to reload")),
        }
    }

    /// Returns where peers reach this plane, if it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }
}

#[async_trait]
impl RequestPlane for TcpRequestPlane {
    async fn bind(
        &self,
        endpoint: &EndpointPath,
        id: (InstanceId, u64),
        ingress: Ingress,
    ) -> Result<Binding> {
        let Some(address) = self.address else {
            return Err(Error::invalid("a TCP plane that does not listen cannot serve"));
        };
        if let Some(tls) = &self.dialer.tls {
            tls.check_own(endpoint, id.0)?;
        }
        let unbind = self.bound.insert(endpoint, id, ingress)?;
        let target = Target { address, is_tls: self.dialer.tls.is_some() };
        Ok(Binding::new(Address(target.to_string()), unbind))
    }

    async fn dial(&self, instance: &Instance) -> Result<Ingress> {
        let engine = RemoteEngine::new(&self.dialer, instance);
        engine.connect().await?;
        Ok(Ingress::remote(Arc::new(engine), self.dialer.codec))
    }

    async fn probe(&self, instance: &Instance) -> Result<()> {
        RemoteEngine::new(&self.dialer, instance).probe().await
    }

    fn measure(&self, metrics: &Registry) {
        metrics.add(&self.counters);
    }

    async fn shutdown(&self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Source for Counters {
    fn collect(&self, samples: &mut Vec<Sample>) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        plain(metrics::TCP_CONNECTIONS, &[], read(&self.connections), samples);
        plain(metrics::TCP_WRITES, &[], read(&self.writes), samples);
        plain(metrics::TCP_WRITTEN, &[], read(&self.written_bytes), samples);
    }
}

impl fmt::Debug for TcpRequestPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpRequestPlane").field("address", &self.address).finish_non_exhaustive()
    }
}

fn check(listen: SocketAddr, config: &TcpConfig, has_tls: bool) -> Result<()> {
    let reached = config.advertise.unwrap_or(listen);
    if reached.ip().is_unspecified() {
        let message = format!("listening on {listen} needs an address to advertise");
        return Err(Error::invalid(message));
    }
    if !listen.ip().is_loopback() && !config.plaintext_allowed && !has_tls {
        let message = format!("{listen} is no loopback address: plain text has to be allowed");
        return Err(Error::invalid(message));
    }
    Ok(())
}

/// A few per process of a large fleet; each costs a socket and a task.
const CONNECTIONS_MAX: usize = 1024;

#[cfg(test)]
mod tests;
