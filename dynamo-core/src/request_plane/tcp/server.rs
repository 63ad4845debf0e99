use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::remote::{Bound, CONNECT_MAX, Connection, Counters, Shares, answer};
use super::handshakes::Handshakes;
use super::tls::Tls;
use crate::error::{Error, ErrorKind, Result};
use crate::wire::session::{Limits, Session};

/// Serves whoever connects.
#[derive(Clone)]
pub(super) struct Acceptor {
    pub(super) limits: Limits,
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) bound: Arc<Bound>,
    pub(super) shares: Arc<Shares>,
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
        let share = connection.share(&self.shares);
        let (bound, own, tasks) = (Arc::clone(&self.bound), connection.clone(), self.tasks.clone());
        let driven = connection.drive(halves, self.shutdown.clone(), move |arrival| {
            tasks.spawn(answer(own.clone(), arrival, Arc::clone(&bound)));
        });
        self.tasks.spawn(async move {
            driven.await;
            drop((share, permit));
        });
    }
}

/// A few per process of a large fleet; each costs a socket and a task.
const CONNECTIONS_MAX: usize = 1024;

const ACCEPT_BACK_OFF: Duration = Duration::from_millis(100);
