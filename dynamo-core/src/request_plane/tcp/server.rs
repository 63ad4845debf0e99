use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::remote::{Bound, CONNECT_MAX, Connection, Counters, Shares, answer};
use super::handshakes::Handshakes;
use super::room::{Place, Room};
use super::tls::Tls;
use crate::error::{Error, ErrorKind, Result};
use crate::wire::frame::HELLO_BYTES;
use crate::wire::session::{Limits, Session};

/// Serves whoever connects.
#[derive(Clone)]
pub(super) struct Acceptor {
    pub(super) limits: Limits,
    pub(super) room: Arc<Room>,
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
        let handshakes = Arc::<Handshakes>::default();
        loop {
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
            let (shutdown, handshake) = (self.shutdown.clone(), handshakes.begin());
            let greeted = self.clone().greet(socket);
            self.tasks.spawn(async move {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = handshake.given_up() => {}
                    () = greeted => {}
                }
            });
        }
    }

    /// Lets a peer show who it is and say hello, and serves it then; until then it takes no room of
    /// those who have.
    async fn greet(self, mut socket: TcpStream) {
        let greeted = async {
            if let Some(tls) = &self.tls {
                let mut stream = tls.accept(socket).await?;
                let session = self.hello(&mut stream).await?;
                self.serve(tokio::io::split(stream), session, self.room.enter().await?);
            } else {
                let session = self.hello(&mut socket).await?;
                self.serve(socket.into_split(), session, self.room.enter().await?);
            }
            Ok(())
        };
        match tokio::time::timeout(CONNECT_MAX, greeted).await {
            Ok::<Result<_>, _>(Err(error)) => tracing::debug!(%error, "peer refused"),
            Err(_) => tracing::debug!("no hello, or no room, in {CONNECT_MAX:?}"),
            Ok(Ok(())) => {}
        }
    }

    /// Reads what a peer says first, and not a byte more; its answer waits until there is room.
    async fn hello(&self, reader: &mut (impl AsyncRead + Unpin)) -> Result<Session> {
        let mut session = Session::server(self.limits.clone(), Instant::now().into_std());
        let mut reader = reader.take(HELLO_BYTES as u64);
        let mut said = BytesMut::with_capacity(HELLO_BYTES);
        while !session.is_open() {
            let ended =
                |error| Error::new(ErrorKind::Unavailable, "reading a hello").with_source(error);
            if reader.read_buf(&mut said).await.map_err(ended)? == 0 {
                return Err(Error::new(ErrorKind::Protocol, "what was said is no hello"));
            }
            session.receive(&mut said, Instant::now().into_std())?;
        }
        Ok(session)
    }

    fn serve<R, W>(&self, halves: (R, W), session: Session, mut place: Place)
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let connection = Connection::new(session, Arc::clone(&self.counters));
        let share = connection.share(&self.shares);
        place.seat(&connection);
        let (bound, own, tasks) = (Arc::clone(&self.bound), connection.clone(), self.tasks.clone());
        let driven = connection.drive(halves, self.shutdown.clone(), move |arrival| {
            tasks.spawn(answer(own.clone(), arrival, Arc::clone(&bound)));
        });
        self.tasks.spawn(async move {
            driven.await;
            drop((share, place));
        });
    }
}

const ACCEPT_BACK_OFF: Duration = Duration::from_millis(100);
