//! TLS 1.3 for the connections of the plane: both sides say who they are, and keep to it.
//!
//! A peer passes the handshake if its chain ends in the roots and it is of the cluster; for which
//! instances it may answer is asked at each dial, as one connection carries all of them.

mod config;
mod identity;
mod load;
mod verify;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::MissedTickBehavior;
use tokio_rustls::rustls::CommonState;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{Pem, TlsConfig};
pub use identity::Identity;
#[cfg(any(test, feature = "test-util"))]
pub use identity::fuzz_certificate;

use super::super::remote::{Vouch, lock};
use super::TcpConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::name::EndpointPath;
use crate::protocol::InstanceId;
use identity::{identities, list};
use load::{Loaded, Texts};

/// What a plane shows of itself and trusts at the moment.
pub(super) struct Tls {
    config: TlsConfig,
    listens: bool,
    loaded: Mutex<Arc<Loaded>>,
    /// The digest of what was tried last, good or not; held while files are read, so that the last
    /// to read them is the last to take them over.
    tried: tokio::sync::Mutex<u128>,
}

impl Tls {
    /// Reads what `config` names, and follows it until `shutdown` if it says so.
    ///
    /// Fails with [`InvalidArgument`](ErrorKind::InvalidArgument), naming the part that is no good.
    pub(super) async fn start(
        config: &TcpConfig,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Result<Option<Arc<Self>>> {
        let listens = config.listen.is_some();
        let Some(config) = config.tls.clone() else { return Ok(None) };
        let (loaded, digest) = read(config.clone(), listens, None, tasks).await?;
        let loaded = loaded.ok_or_else(|| Error::internal("nothing was read"))??;
        let (loaded, tried) = (Mutex::new(Arc::new(loaded)), tokio::sync::Mutex::new(digest));
        let tls = Arc::new(Self { config, listens, loaded, tried });
        if tls.config.reload_every.is_some() {
            tasks.spawn(Arc::clone(&tls).watch(tasks.clone(), shutdown.clone()));
        }
        Ok(Some(tls))
    }

    /// Reads the files again, for connections from here on; on an error all stays as it was.
    pub(super) async fn reload(&self, tasks: &TaskTracker) -> Result<()> {
        self.reload_unless(tasks, false).await
    }

    async fn reload_unless(&self, tasks: &TaskTracker, is_unchanged: bool) -> Result<()> {
        let mut tried = self.tried.lock().await;
        let known = is_unchanged.then_some(*tried);
        let (loaded, digest) = read(self.config.clone(), self.listens, known, tasks).await?;
        *tried = digest;
        if let Some(loaded) = loaded {
            *lock(&self.loaded) = Arc::new(loaded?);
        }
        Ok(())
    }

    /// Looks at the files now and then, until `shutdown`.
    async fn watch(self: Arc<Self>, tasks: TaskTracker, shutdown: CancellationToken) {
        let Some(interval) = self.config.reload_every else { return };
        let mut ticks = tokio::time::interval(interval.max(RELOAD_MIN));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut said = None;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            if let Err(error) = self.reload_unless(&tasks, true).await {
                // A file that stays away is said once.
                let why = error.to_string();
                if said.as_ref() != Some(&why) {
                    tracing::warn!(%error, "certificates not reloaded, the old ones stay");
                }
                said = Some(why);
            }
        }
    }

    /// Fails with [`InvalidArgument`](ErrorKind::InvalidArgument) if peers would not take this plane
    /// for the instance.
    pub(super) fn check_own(&self, endpoint: &EndpointPath, id: InstanceId) -> Result<()> {
        let loaded = self.loaded();
        if loaded.own.iter().any(|identity| identity.covers(endpoint, id)) {
            return Ok(());
        }
        let who = list(&loaded.own);
        Err(Error::invalid(format!("the certificate is of {who}, not instance {id} of {endpoint}")))
    }

    /// Makes a connection; what it returns tells for whom the peer may answer.
    pub(super) async fn connect(
        &self,
        socket: TcpStream,
        address: SocketAddr,
    ) -> Result<(TlsStream<TcpStream>, Vouch)> {
        let connector = TlsConnector::from(Arc::clone(&self.loaded().client));
        let name = ServerName::IpAddress(address.ip().into());
        let stream = connector.connect(name, socket).await.map_err(failed)?;
        let peer = peer(stream.get_ref().1);
        let cluster = self.config.cluster.clone();
        let vouch: Vouch = Arc::new(move |instance| {
            let is_covered = peer.iter().any(|identity| {
                identity.cluster == cluster && identity.covers(&instance.endpoint, instance.id)
            });
            if is_covered {
                return Ok(());
            }
            let message = format!("{} is {}, not {instance}", instance.address, list(&peer));
            Err(Error::new(ErrorKind::Unavailable, message).unprocessed())
        });
        Ok((stream.into(), vouch))
    }

    /// Accepts a connection.
    pub(super) async fn accept(&self, socket: TcpStream) -> Result<TlsStream<TcpStream>> {
        let config = self.loaded().server.clone();
        let config = config.ok_or_else(|| Error::internal("a server without a certificate"))?;
        match TlsAcceptor::from(config).accept(socket).into_fallible().await {
            Ok(stream) => {
                tracing::debug!(peer = %list(&peer(stream.get_ref().1)), "connection accepted");
                Ok(stream.into())
            }
            Err((error, socket)) => {
                linger(socket).await;
                Err(failed(error))
            }
        }
    }

    fn loaded(&self) -> Arc<Loaded> {
        Arc::clone(&lock(&self.loaded))
    }
}

/// Reads and checks the files where that holds up nobody; returns what is in them unless their
/// digest is `known`, and the digest.
async fn read(
    config: TlsConfig,
    listens: bool,
    known: Option<u128>,
    tasks: &TaskTracker,
) -> Result<(Option<Result<Loaded>>, u128)> {
    let read = tasks.spawn_blocking(move || {
        let texts = Texts::read(&config)?;
        let digest = texts.digest();
        Ok(((known != Some(digest)).then(|| texts.load(&config, listens)), digest))
    });
    read.await.map_err(|error| Error::internal("reading certificates").with_source(error))?
}

fn peer(connection: &CommonState) -> Vec<Identity> {
    let certificate = connection.peer_certificates().and_then(<[_]>::first);
    certificate.map(|certificate| identities(certificate).0).unwrap_or_default()
}

fn failed(error: std::io::Error) -> Error {
    let message = format!("the TLS handshake failed: {error}");
    Error::new(ErrorKind::Unavailable, message).with_source(error)
}

/// Lets the peer read why it is refused: closed with bytes of it unread, a socket is reset, and
/// the word is lost.
async fn linger(mut socket: TcpStream) {
    // Whether the peer listens is its own affair.
    let _ = socket.shutdown().await;
    let mut unread = [0; 1024];
    for _ in 0..LINGER_READS_MAX {
        match socket.read(&mut unread).await {
            Ok(bytes) if bytes > 0 => {}
            _ => return,
        }
    }
}

/// Reading a few small files more often helps nobody.
const RELOAD_MIN: Duration = Duration::from_millis(100);

/// What a client says before it hears that it is refused is less.
const LINGER_READS_MAX: usize = 64;
