use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::remote::{Connection, Counters, Peers, Stage};
use crate::error::{Error, ErrorKind, Result};
use crate::wire::session::{Limits, Session};

/// Makes connections to peers.
pub(super) struct Dialer {
    pub(super) limits: Limits,
    pub(super) peers: Peers<SocketAddr>,
    pub(super) counters: Arc<Counters>,
    pub(super) tasks: TaskTracker,
    pub(super) shutdown: CancellationToken,
}

impl Dialer {
    /// Returns the connection to `address`.
    pub(super) async fn connection(&self, address: SocketAddr) -> Result<Connection> {
        self.peers.connection(address, self.connect(address)).await
    }

    async fn connect(&self, address: SocketAddr) -> Result<Connection> {
        if self.shutdown.is_cancelled() {
            return Err(Error::new(ErrorKind::Closed, "the plane has shut down"));
        }
        let connected = async {
            let socket = TcpStream::connect(address).await?;
            socket.set_nodelay(true)?;
            Ok(socket)
        };
        let socket = connected.await.map_err(|error: std::io::Error| {
            Error::new(ErrorKind::Unavailable, "connecting").with_source(error)
        })?;
        let now = Instant::now().into_std();
        let session = Session::client(self.limits.clone(), now);
        let connection = Connection::new(session, Arc::clone(&self.counters));
        let driven = connection.clone().drive(socket.into_split(), self.shutdown.clone(), |_| {});
        self.tasks.spawn(driven);
        match connection.greeted().await {
            Stage::Open => Ok(connection),
            _ => Err(Error::new(ErrorKind::Unavailable, "the peer speaks another protocol")),
        }
    }
}
