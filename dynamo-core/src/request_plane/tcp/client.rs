use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, ready};

use bytes::Bytes;
use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;

use super::connection::{Connection, Stage, Vouch};
use super::tls::Tls;
use super::{CONNECT_MAX, Counters, lock};
use crate::discovery::{Address, Instance};
use crate::engine::{Context, Engine, ResponseStream};
use crate::error::{Error, ErrorKind, Result};
use crate::wire::head::Head;
use crate::wire::session::{Limits, Session};

/// The connections to peers: one each, made anew when it is gone.
pub(super) struct Dialer {
    pub(super) limits: Limits,
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) plaintext_allowed: bool,
    pub(super) peers: Mutex<HashMap<Target, Peer>>,
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

/// Held while a connection is being made, so that it is made once.
type Peer = Arc<tokio::sync::Mutex<Option<Connection>>>;

impl Dialer {
    /// Fails with [`InvalidArgument`](ErrorKind::InvalidArgument) if this plane does not call where
    /// an instance says it is.
    pub(super) fn check(&self, instance: &Instance, target: Target) -> Result<()> {
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

    /// Returns the connection to `target`, made within [`CONNECT_MAX`].
    pub(super) async fn connection(&self, target: Target) -> Result<Connection> {
        let peer = {
            let mut peers = lock(&self.peers);
            // Peers come and go with discovery: what is gone is not kept.
            if peers.len() >= PEERS_TIDY {
                peers.retain(|_, peer| match peer.try_lock() {
                    Ok(peer) => peer.as_ref().is_some_and(Connection::is_open),
                    Err(_) => true,
                });
            }
            Arc::clone(peers.entry(target).or_default())
        };
        let connected = async {
            let mut known = peer.lock().await;
            if let Some(connection) = known.as_ref().filter(|known| known.is_open()) {
                return Ok(connection.clone());
            }
            let connection = self.connect(target).await?;
            *known = Some(connection.clone());
            Ok(connection)
        };
        tokio::time::timeout(CONNECT_MAX, connected).await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Unavailable, format!("no answer in {CONNECT_MAX:?}")))
        })
    }

    async fn connect(&self, target: Target) -> Result<Connection> {
        if self.shutdown.is_cancelled() {
            return Err(Error::new(ErrorKind::Closed, "the plane has shut down"));
        }
        let failed = |error| Error::new(ErrorKind::Unavailable, "connecting").with_source(error);
        let socket = TcpStream::connect(target.address).await.map_err(failed)?;
        socket.set_nodelay(true).map_err(failed)?;
        let connection = match self.tls.as_ref().filter(|_| target.is_tls) {
            None => self.start(socket.into_split(), None),
            Some(tls) => {
                let (stream, vouch) = tls.connect(socket, target.address).await?;
                self.start(tokio::io::split(stream), Some(vouch))
            }
        };
        match connection.greeted().await {
            Stage::Open => Ok(connection),
            _ => {
                let why = connection.why_gone();
                let message = format!("the peer refuses or speaks another protocol: {why}");
                Err(Error::new(ErrorKind::Unavailable, message))
            }
        }
    }

    fn start<R, W>(&self, halves: (R, W), vouch: Option<Vouch>) -> Connection
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let session = Session::client(self.limits.clone(), Instant::now().into_std());
        let connection = Connection::new(session, Arc::clone(&self.counters)).vouched_by(vouch);
        self.tasks.spawn(connection.clone().drive(halves, self.shutdown.clone(), |_| {}));
        connection
    }
}

/// One instance behind a connection.
pub(super) struct RemoteEngine {
    connection: Connection,
    endpoint: String,
    instance: u64,
    incarnation: u64,
}

impl RemoteEngine {
    pub(super) fn new(connection: Connection, instance: &Instance) -> Self {
        Self {
            connection,
            endpoint: instance.endpoint.to_string(),
            instance: instance.id.0,
            incarnation: instance.incarnation,
        }
    }
}

impl Engine for RemoteEngine {
    type Request = Bytes;
    type Response = Bytes;

    async fn generate(&self, ctx: Context, request: Bytes) -> Result<ResponseStream<Bytes>> {
        ctx.check()?;
        let head = Head {
            instance: self.instance,
            incarnation: self.incarnation,
            endpoint: self.endpoint.clone(),
            request: ctx.id().as_str().to_owned(),
            priority: ctx.priority().level(),
            remaining: ctx.remaining(),
            metadata: ctx.metadata().clone().into_iter().collect(),
        };
        let is_over = Arc::<AtomicBool>::default();
        let id = self.connection.open(&ctx, &head, request, Arc::clone(&is_over))?;
        let items = Items {
            is_over,
            connection: self.connection.clone(),
            id,
            ready: VecDeque::new(),
            end: None,
            stopped: Some(Box::pin(ctx.stop_token().clone().cancelled_owned())),
        };
        ctx.bound(self.connection.started(id)).await?;
        Ok(ResponseStream::new(&ctx, items))
    }
}

/// The items of one answer; dropped before its end, it kills the request.
struct Items {
    /// Set when nobody waits for the answer any more.
    is_over: Arc<AtomicBool>,
    connection: Connection,
    id: u32,
    /// Messages that have arrived.
    ready: VecDeque<Bytes>,
    /// How the stream ends behind them, once that is known.
    end: Option<Option<Error>>,
    stopped: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Stream for Items {
    type Item = Result<Bytes>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Bytes>>> {
        let this = &mut *self;
        loop {
            if let Some(message) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(message)));
            }
            if let Some(end) = &mut this.end {
                return Poll::Ready(end.take().map(Err));
            }
            if this.stopped.as_mut().is_some_and(|stopped| stopped.as_mut().poll(cx).is_ready()) {
                this.stopped = None;
                this.connection.stop(this.id);
            }
            match ready!(this.connection.poll_recv(this.id, &mut this.ready, cx)) {
                Some(Ok(())) => {}
                None => this.end = Some(None),
                Some(Err(error)) => this.end = Some(Some(error)),
            }
        }
    }
}

impl Drop for Items {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if self.end.is_none() {
            self.connection.kill(self.id);
        }
    }
}

/// Peers beyond which those that are gone are looked for.
const PEERS_TIDY: usize = 64;
