use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::remote::{Bound, Connection, Counters, answer};
use crate::error::{Error, ErrorKind, Result};
use crate::wire::session::{Limits, Session};

/// Serves whoever connects.
pub(super) struct Acceptor {
    pub(super) limits: Limits,
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
        loop {
            // At the limit, further peers wait in the kernel's bounded backlog.
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((socket, _)) => self.serve(socket, permit),
                Err(error) => {
                    tracing::warn!(%error, "connection not accepted");
                    // Out of descriptors, for instance: trying again at once would spin.
                    tokio::time::sleep(ACCEPT_BACK_OFF).await;
                }
            }
        }
    }

    fn serve(&self, socket: TcpStream, permit: OwnedSemaphorePermit) {
        if socket.set_nodelay(true).is_err() {
            // The peer has left already.
            return;
        }
        let session = Session::server(self.limits.clone(), Instant::now().into_std());
        let connection = Connection::new(session, Arc::clone(&self.counters));
        let (bound, own, tasks) = (Arc::clone(&self.bound), connection.clone(), self.tasks.clone());
        let driven = connection.drive(socket.into_split(), self.shutdown.clone(), move |arrival| {
            tasks.spawn(answer(own.clone(), arrival, Arc::clone(&bound)));
        });
        self.tasks.spawn(async move {
            driven.await;
            drop(permit);
        });
    }
}

/// A few per process of a large fleet; each costs a socket and a task.
const CONNECTIONS_MAX: usize = 1024;

const ACCEPT_BACK_OFF: Duration = Duration::from_millis(100);
