use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::frame::{Access, Request, Status, encode_status};
use super::stream::{recv_frame, recv_memory, send_frame, send_memory};
use crate::agent::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Right;

/// Serves an agent's regions to its peers.
pub(crate) struct TcpServer {
    endpoint: Arc<Endpoint>,
    connections: Arc<Semaphore>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl TcpServer {
    /// Listens at `address` and returns where that is.
    pub(crate) async fn start(
        address: SocketAddr,
        endpoint: &Arc<Endpoint>,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Result<SocketAddr> {
        let unavailable = |error| {
            let message = format!("cannot listen on {address}");
            Error::new(ErrorKind::BackendUnavailable, message).with_source(error)
        };
        let listener = TcpListener::bind(address).await.map_err(unavailable)?;
        let bound = listener.local_addr().map_err(unavailable)?;
        let server = Self {
            endpoint: Arc::clone(endpoint),
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            tasks: tasks.clone(),
            shutdown: shutdown.clone(),
        };
        tasks.spawn(async move {
            let shutdown = server.shutdown.clone();
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = server.accept(listener) => {}
            }
        });
        Ok(bound)
    }

    async fn accept(&self, listener: TcpListener) {
        loop {
            // At the limit, further peers wait in the kernel's bounded backlog.
            let Ok(permit) = Arc::clone(&self.connections).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (endpoint, shutdown) = (Arc::clone(&self.endpoint), self.shutdown.clone());
                    self.tasks.spawn(async move {
                        tokio::select! {
                            () = shutdown.cancelled() => {}
                            outcome = serve(stream, &endpoint) => {
                                if let Err(error) = outcome {
                                    tracing::debug!(%error, "transfer connection ended");
                                }
                            }
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "transfer connection not accepted");
                    // Out of descriptors, for instance: trying again at once would spin.
                    tokio::time::sleep(ACCEPT_BACK_OFF).await;
                }
            }
        }
    }
}

async fn serve(mut stream: TcpStream, endpoint: &Endpoint) -> Result<()> {
    stream.set_nodelay(true).map_err(|error| {
        Error::new(ErrorKind::Disconnected, "the connection broke").with_source(error)
    })?;
    let hello = Request::decode(&recv_frame(&mut stream, HELLO_MAX).await?);
    let (name, incarnation) = match hello.and_then(|hello| welcome(hello, endpoint)) {
        Ok(peer) => peer,
        Err(error) => return answer(&mut stream, &Err(error)).await,
    };
    answer(&mut stream, &Ok(())).await?;
    loop {
        let body = recv_frame(&mut stream, IDLE_MAX).await?;
        match Request::decode(&body) {
            Ok(Request::Read(access)) => serve_read(&mut stream, endpoint, access).await?,
            Ok(Request::Write(access)) => serve_write(&mut stream, endpoint, access).await?,
            Ok(Request::Notify(payload)) => {
                let delivered = endpoint.deliver(name.clone(), incarnation, payload).await;
                answer(&mut stream, &delivered).await?;
            }
            Ok(Request::Hello { .. }) => {
                let error = Error::new(ErrorKind::Protocol, "second hello on a connection");
                return answer(&mut stream, &Err(error)).await;
            }
            Err(error) => return answer(&mut stream, &Err(error)).await,
        }
    }
}

/// Checks that the peer means this very agent; returns who the peer says it is.
fn welcome(hello: Request, endpoint: &Endpoint) -> Result<(String, u64)> {
    let Request::Hello { target_name, target_incarnation, name, incarnation } = hello else {
        return Err(Error::new(ErrorKind::Protocol, "connection without a hello"));
    };
    if target_name != endpoint.name || target_incarnation != endpoint.incarnation {
        let message =
            format!("agent {target_name} of incarnation {target_incarnation:x} has ended");
        return Err(Error::new(ErrorKind::StaleRegion, message));
    }
    Ok((name, incarnation))
}

async fn serve_read(stream: &mut TcpStream, endpoint: &Endpoint, access: Access) -> Result<()> {
    let Access { region, key, ranges } = access;
    match endpoint.regions.lease_remote(region, key, Right::Read, &ranges) {
        Err(error) => answer(stream, &Err(error)).await,
        Ok(memory) => {
            answer(stream, &Ok(())).await?;
            for (offset, len) in ranges {
                send_memory(stream, &memory, offset, len).await?;
            }
            Ok(())
        }
    }
}

async fn serve_write(stream: &mut TcpStream, endpoint: &Endpoint, access: Access) -> Result<()> {
    let Access { region, key, ranges } = access;
    match endpoint.regions.lease_remote(region, key, Right::Write, &ranges) {
        Err(error) => answer(stream, &Err(error)).await,
        Ok(memory) => {
            answer(stream, &Ok(())).await?;
            for (offset, len) in ranges {
                recv_memory(stream, &memory, offset, len).await?;
            }
            drop(memory);
            answer(stream, &Ok(())).await
        }
    }
}

async fn answer(stream: &mut TcpStream, status: &Status) -> Result<()> {
    send_frame(stream, &encode_status(status)).await
}

/// A few per worker of a large fleet; each costs a socket and a task.
const CONNECTIONS_MAX: usize = 1024;

/// A peer that connects says hello at once.
const HELLO_MAX: Duration = Duration::from_secs(3);

/// A connection without requests is closed after this.
const IDLE_MAX: Duration = Duration::from_secs(60);

const ACCEPT_BACK_OFF: Duration = Duration::from_millis(100);
