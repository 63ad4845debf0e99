use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::remote::{Connection, Counters, Peers, Reach, Stage, Vouch};
use super::tls::Tls;
use crate::discovery::{Address, Instance};
use crate::error::{Error, ErrorKind, Result};
use crate::wire::codec::Codec;
use crate::wire::session::{Limits, Session};

/// Makes connections to peers.
pub(super) struct Dialer {
    pub(super) limits: Limits,
    pub(super) codec: Codec,
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) plaintext_allowed: bool,
    pub(super) peers: Peers<Target>,
    pub(super) counters: Arc<Counters>,
    pub(super) tasks: TaskTracker,
    pub(super) shutdown: CancellationToken,
}

/// What the address of an instance says: `tcp:host:port`, or `tls:host:port`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Target {
    pub(super) address: SocketAddr,
    pub(super) is_tls: bool,
}

impl Target {
    pub(super) fn parse(address: &Address) -> Option<Self> {
        let (scheme, address) = address.0.split_once(':')?;
        let is_tls = match scheme {
            "tcp" => false,
            "tls" => true,
            _ => return None,
        };
        Some(Self { address: address.parse().ok()?, is_tls })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", if self.is_tls { "tls" } else { "tcp" }, self.address)
    }
}

impl Dialer {
    /// Fails with [`InvalidArgument`](ErrorKind::InvalidArgument) if this plane does not call where
    /// an instance says it is.
    fn check(&self, instance: &Instance, target: Target) -> Result<()> {
        let why = match &self.tls {
            None if target.is_tls => "this plane has no TLS",
            Some(_) if !target.is_tls && !self.is_plaintext_allowed(target) => {
                "plain text beyond the loopback has to be allowed"
            }
            _ => return Ok(()),
        };
        Err(Error::invalid(format!("{instance} is at {target}: {why}")).unprocessed())
    }

    fn is_plaintext_allowed(&self, target: Target) -> bool {
        self.plaintext_allowed || target.address.ip().is_loopback()
    }

    /// Returns the connection to `instance`.
    async fn connection(&self, instance: &Instance, target: Target) -> Result<Connection> {
        if let Some(known) = self.peers.known(&target) {
            return Ok(known);
        }
        // Boxed: large and seldom run, while this future is made for each call.
        let connection = Box::pin(self.peers.connection(target, self.connect(target))).await;
        connection.map_err(|error| {
            let message = format!("{instance} cannot be reached at {target}");
            Error::new(ErrorKind::Unavailable, message).with_source(error).unprocessed()
        })
    }

    async fn connect(&self, target: Target) -> Result<Connection> {
        if self.shutdown.is_cancelled() {
            return Err(Error::new(ErrorKind::Closed, "the plane has shut down"));
        }
        let failed = |error| Error::new(ErrorKind::Unavailable, "connecting").with_source(error);
        let socket = TcpStream::connect(target.address).await.map_err(failed)?;
        socket.set_nodelay(true).map_err(failed)?;
        // Dropped before it is open, the connection goes no further.
        let shutdown = self.shutdown.child_token();
        let given_up = shutdown.clone().drop_guard();
        let connection = match self.tls.as_ref().filter(|_| target.is_tls) {
            None => self.start(socket.into_split(), None, shutdown),
            Some(tls) => {
                let (stream, vouch) = tls.connect(socket, target.address).await?;
                self.start(tokio::io::split(stream), Some(vouch), shutdown)
            }
        };
        match connection.greeted().await {
            Stage::Open => {
                given_up.disarm();
                Ok(connection)
            }
            _ => {
                let why = connection.why_gone();
                let message = format!("the peer refuses or speaks another protocol: {why}");
                Err(Error::new(ErrorKind::Unavailable, message))
            }
        }
    }

    fn start<R, W>(
        &self,
        halves: (R, W),
        vouch: Option<Vouch>,
        shutdown: CancellationToken,
    ) -> Connection
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let session = Session::client(self.limits.clone(), self.codec, Instant::now().into_std());
        let connection = Connection::new(session, Arc::clone(&self.counters)).vouched_by(vouch);
        self.tasks.spawn(connection.clone().drive(halves, shutdown, |_| {}));
        connection
    }
}

impl Reach for Dialer {
    /// The peer may answer for `instance`.
    async fn reach(&self, instance: &Instance) -> Result<Connection> {
        let target = Target::parse(&instance.address).ok_or_else(|| {
            Error::invalid(format!("{instance} has address {}, not one of TCP", instance.address))
        })?;
        self.check(instance, target)?;
        let mut connection = self.connection(instance, target).await?;
        if let Err(error) = connection.check(instance) {
            // The peer may have another certificate by now.
            if !connection.retire(RENEW_MIN) {
                return Err(error);
            }
            connection = self.connection(instance, target).await?;
            connection.check(instance)?;
        }
        Ok(connection)
    }
}

/// A peer that is asked for what its certificate does not cover is asked for another certificate
/// no more often.
const RENEW_MIN: Duration = Duration::from_secs(1);
