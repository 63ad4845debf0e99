use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::{Arrival, Connection};
use super::handshakes::Handshakes;
use super::tls::Tls;
use super::{CONNECT_MAX, Counters, lock};
use crate::engine::{Context, DynEngine, Priority, RequestId, SharedEngine};
use crate::error::{Error, ErrorKind, Result};
use crate::name::EndpointPath;
use crate::protocol::InstanceId;
use crate::wire::session::{Limits, Session};

/// What can be asked here: endpoint and instance → incarnation → engine.
#[derive(Default)]
pub(super) struct Bound(Mutex<HashMap<Key, Incarnations>>);

type Key = (String, u64);
type Incarnations = BTreeMap<u64, SharedEngine<Bytes, Bytes>>;

impl Bound {
    /// Makes an engine reachable until the returned function is called.
    pub(super) fn insert(
        self: &Arc<Self>,
        endpoint: &EndpointPath,
        (id, incarnation): (InstanceId, u64),
        engine: SharedEngine<Bytes, Bytes>,
    ) -> Result<impl FnOnce() + Send + Sync + 'static> {
        let key = (endpoint.to_string(), id.0);
        let mut bound = lock(&self.0);
        let incarnations = bound.entry(key.clone()).or_default();
        if incarnations.contains_key(&incarnation) {
            let message = format!("instance {id} of {endpoint} is bound");
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        incarnations.insert(incarnation, engine);
        drop(bound);
        let own = Arc::clone(self);
        Ok(move || {
            let mut bound = lock(&own.0);
            if let Some(incarnations) = bound.get_mut(&key) {
                incarnations.remove(&incarnation);
                if incarnations.is_empty() {
                    bound.remove(&key);
                }
            }
        })
    }

    /// Returns the engine of an incarnation, or of the last one before it: an instance whose lease
    /// was lost goes on under a later one.
    fn find(&self, key: &Key, incarnation: u64) -> Result<SharedEngine<Bytes, Bytes>> {
        let bound = lock(&self.0);
        let found = bound.get(key).and_then(|known| known.range(..=incarnation).next_back());
        found.map(|(_, engine)| Arc::clone(engine)).ok_or_else(|| {
            let message = format!("instance {:x}.{incarnation} of {} is gone", key.1, key.0);
            Error::new(ErrorKind::Unavailable, message).unprocessed()
        })
    }
}

/// Serves whoever connects.
#[derive(Clone)]
pub(super) struct Acceptor {
    pub(super) limits: Limits,
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) bound: Arc<Bound>,
    pub(super) counters: Arc<Counters>,
    pub(super) tasks: TaskTracker,
    pub(super) shutdown: CancellationToken,
}

impl Acceptor {
    /// Listens at `address`; returns where that is.
    pub(super) async fn listen(self, address: SocketAddr) -> Result<SocketAddr> {
        let unavailable = |error| {
            let message = format!("cannot listen on {address}");
            Error::new(ErrorKind::Unavailable, message).with_source(error)
        };
        let listener = TcpListener::bind(address).await.map_err(unavailable)?;
        let at = listener.local_addr().map_err(unavailable)?;
        self.tasks.clone().spawn(async move {
            tokio::select! {
                () = self.shutdown.cancelled() => {}
                () = self.accept(listener) => {}
            }
        });
        Ok(at)
    }

    async fn accept(&self, listener: TcpListener) {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let handshakes = Arc::<Handshakes>::default();
        loop {
            // At the limit, further peers wait in the kernel's bounded backlog; with TLS, those who
            // have not shown who they are take no room of those who have.
            let permit = match &self.tls {
                Some(_) => None,
                None => Arc::clone(&room).acquire_owned().await.ok(),
            };
            let accepted = listener.accept().await;
            let socket =
                match accepted.and_then(|(socket, _)| socket.set_nodelay(true).map(|()| socket)) {
                    Ok(socket) => socket,
                    Err(error) => {
                        tracing::warn!(%error, "connection not accepted");
                        // Out of descriptors, for instance: trying again at once would spin.
                        tokio::time::sleep(ACCEPT_BACK_OFF).await;
                        continue;
                    }
                };
            match (&self.tls, permit) {
                (None, None) => return,
                (None, Some(permit)) => self.serve(socket.into_split(), permit),
                (Some(tls), _) => {
                    let greeted = self.clone().greet(socket, Arc::clone(tls), Arc::clone(&room));
                    let (shutdown, handshake) = (self.shutdown.clone(), handshakes.begin());
                    self.tasks.spawn(async move {
                        tokio::select! {
                            () = shutdown.cancelled() => {}
                            () = handshake.given_up() => {}
                            () = greeted => {}
                        }
                    });
                }
            }
        }
    }

    /// Lets a peer show who it is, and serves it then.
    async fn greet(self, socket: TcpStream, tls: Arc<Tls>, room: Arc<Semaphore>) {
        let greeted = async {
            let stream = tls.accept(socket).await?;
            let permit = room.acquire_owned().await;
            Ok((stream, permit.map_err(|_| Error::internal("the room is closed"))?))
        };
        match tokio::time::timeout(CONNECT_MAX, greeted).await {
            Ok(Ok((stream, permit))) => self.serve(tokio::io::split(stream), permit),
            Ok::<Result<_>, _>(Err(error)) => tracing::debug!(%error, "peer refused"),
            Err(_) => tracing::debug!("no handshake in {CONNECT_MAX:?}"),
        }
    }

    fn serve<R, W>(&self, halves: (R, W), permit: OwnedSemaphorePermit)
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let session = Session::server(self.limits.clone(), Instant::now().into_std());
        let connection = Connection::new(session, Arc::clone(&self.counters));
        let (bound, own, tasks) = (Arc::clone(&self.bound), connection.clone(), self.tasks.clone());
        let driven = connection.drive(halves, self.shutdown.clone(), move |arrival| {
            tasks.spawn(answer(own.clone(), arrival, Arc::clone(&bound)));
        });
        self.tasks.spawn(async move {
            driven.await;
            drop(permit);
        });
    }
}

/// Runs one request and sends its answer.
async fn answer(connection: Connection, arrival: Arrival, bound: Arc<Bound>) {
    let Arrival { stream, head, body } = arrival;
    let mut ctx = Context::with_id(RequestId::from(&*head.request))
        .with_priority(Priority::new(head.priority).unwrap_or(Priority::NORMAL));
    for (key, value) in head.metadata {
        ctx = ctx.with_metadata(key, value);
    }
    if let Some(remaining) = head.remaining {
        ctx = ctx.with_timeout(remaining);
    }
    // The client may have left before the task ran.
    if !connection.run_in(stream, &ctx) {
        return;
    }
    let outcome = match bound.find(&(head.endpoint, head.instance), head.incarnation) {
        Ok(engine) => run(&connection, stream, &ctx, &engine, body).await,
        Err(error) => Err(error),
    };
    connection.settle(stream, outcome);
}

async fn run(
    connection: &Connection,
    stream: u32,
    ctx: &Context,
    engine: &SharedEngine<Bytes, Bytes>,
    body: Bytes,
) -> Result<()> {
    let items = engine.generate_dyn(ctx.clone(), body).await?;
    connection.accept(stream);
    // What is ready goes out together, and at the latest when the engine has nothing ready.
    let mut items = items.ready_chunks(ITEMS_AT_ONCE);
    loop {
        let mut next = items.next();
        let next = match futures::poll!(&mut next) {
            Poll::Ready(next) => next,
            Poll::Pending => {
                connection.flush();
                next.await
            }
        };
        let Some(ready) = next else { return Ok(()) };
        let is_burst = ready.len() == ITEMS_AT_ONCE;
        let has_room = connection.send(stream, ready)?;
        if is_burst || !has_room {
            connection.flush();
        }
        if !has_room {
            // A client that does not read holds the engine, to the deadline or its kill.
            ctx.bound(connection.room(stream)).await?;
        }
    }
}

/// A few per process of a large fleet; each costs a socket and a task.
const CONNECTIONS_MAX: usize = 1024;

/// One lock for a burst; a client that stops to read is noticed after as many.
const ITEMS_AT_ONCE: usize = 32;

const ACCEPT_BACK_OFF: Duration = Duration::from_millis(100);
