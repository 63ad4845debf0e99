use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::frame::{Access, Request, STATUS_BYTES_MAX, decode_status};
use super::stream::{STALL_MAX, recv_frame, recv_memory, send_frame, send_memory, within};
use crate::backend::{Backend, BackendKind, Operation};
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Right;
use crate::peer::PeerAddress;

/// Runs operations at their owners, over connections kept for reuse.
pub(crate) struct TcpClient {
    own: Arc<Endpoint>,
    /// Operations that have a connection; others wait for their turn, within their deadlines.
    turns: Semaphore,
    idle: Mutex<HashMap<PeerAddress, Vec<Idle>>>,
}

struct Idle {
    stream: TcpStream,
    since: Instant,
}

/// A connection in use by one operation.
struct Connection<'a> {
    stream: TcpStream,
    _turn: SemaphorePermit<'a>,
}

impl TcpClient {
    pub(crate) fn new(own: Arc<Endpoint>) -> Self {
        Self { own, turns: Semaphore::new(OPERATIONS_MAX), idle: Mutex::default() }
    }

    /// Closes the connections that are kept; called when no operation runs any more.
    pub(crate) fn close_idle(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    async fn connect(&self, peer: &PeerAddress) -> Result<Connection<'_>> {
        let closed = |_| Error::new(ErrorKind::Internal, "turns are never closed");
        let _turn = self.turns.acquire().await.map_err(closed)?;
        if let Some(stream) = self.take_idle(peer) {
            return Ok(Connection { stream, _turn });
        }
        let address = peer.tcp.ok_or_else(|| {
            Error::new(ErrorKind::BackendUnavailable, "peer offers no TCP address")
        })?;
        let mut stream = dial(address).await?;
        let hello = Request::Hello {
            target_name: peer.name.clone(),
            target_incarnation: peer.incarnation,
            name: self.own.name.clone(),
            incarnation: self.own.incarnation,
        };
        send_frame(&mut stream, &hello.encode()).await?;
        answer(&mut stream, CONNECT_MAX).await??;
        Ok(Connection { stream, _turn })
    }

    fn take_idle(&self, peer: &PeerAddress) -> Option<TcpStream> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = idle.get_mut(peer)?;
        while let Some(Idle { stream, since }) = idle.pop() {
            // Bytes or an end on an idle connection mean that it is of no use any more.
            let quiet = stream.try_read(&mut [0]).is_err_and(|e| e.kind() == WOULD_BLOCK);
            if quiet && since.elapsed() < IDLE_MAX {
                return Some(stream);
            }
        }
        None
    }

    /// Keeps the connection of an operation that came to its end.
    fn put_idle(&self, peer: &PeerAddress, Connection { stream, .. }: Connection<'_>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|_, streams| {
            streams.retain(|idle| idle.since.elapsed() < IDLE_MAX);
            !streams.is_empty()
        });
        let streams = idle.entry(peer.clone()).or_default();
        if streams.len() < IDLE_PER_PEER_MAX {
            streams.push(Idle { stream, since: Instant::now() });
        }
    }
}

#[async_trait]
impl Backend for TcpClient {
    fn kind(&self) -> BackendKind {
        BackendKind::Tcp
    }

    async fn run(&self, operation: Operation) -> Result<()> {
        let ranges = operation.chunks.iter().map(|chunk| (chunk.remote, chunk.len)).collect();
        let (region, key) = (operation.remote_id, operation.remote_key);
        let access = Access { region, key, ranges };
        let request = match operation.right {
            Right::Read => Request::Read(access),
            Right::Write => Request::Write(access),
        };
        let mut connection = self.connect(&operation.peer).await?;
        let stream = &mut connection.stream;
        send_frame(stream, &request.encode()).await?;
        let mut outcome = answer(stream, STALL_MAX).await?;
        if outcome.is_ok() {
            let local = &operation.local;
            for chunk in &operation.chunks {
                match operation.right {
                    Right::Read => recv_memory(stream, local, chunk.local, chunk.len).await?,
                    Right::Write => send_memory(stream, local, chunk.local, chunk.len).await?,
                }
            }
            if operation.right == Right::Write {
                outcome = answer(stream, STALL_MAX).await?;
            }
        }
        // The exchange came to its end, also if it was a refusal: the connection is in order.
        self.put_idle(&operation.peer, connection);
        outcome
    }

    async fn notify(&self, peer: &PeerAddress, payload: Bytes) -> Result<()> {
        let mut connection = self.connect(peer).await?;
        send_frame(&mut connection.stream, &Request::Notify(payload).encode()).await?;
        let outcome = answer(&mut connection.stream, STALL_MAX).await?;
        self.put_idle(peer, connection);
        outcome
    }
}

async fn dial(address: SocketAddr) -> Result<TcpStream> {
    let unreachable = || Error::new(ErrorKind::Unreachable, format!("cannot connect to {address}"));
    let stream = within(CONNECT_MAX, TcpStream::connect(address))
        .await
        .map_err(|error| unreachable().with_source(error))?;
    stream.set_nodelay(true).map_err(|error| unreachable().with_source(error))?;
    Ok(stream)
}

/// Receives a status: the outer error is the connection's, the inner one the owner's answer.
async fn answer(stream: &mut TcpStream, patience: Duration) -> Result<Result<()>> {
    decode_status(&recv_frame(stream, STATUS_BYTES_MAX, patience).await?)
}

const WOULD_BLOCK: std::io::ErrorKind = std::io::ErrorKind::WouldBlock;

/// A host that is there answers within this even over long distance.
const CONNECT_MAX: Duration = Duration::from_secs(3);

/// Half of what a server waits, so that a reused connection is not closed at that moment.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// Keeps the sockets of an agent far below a process's usual limit of 1024.
const OPERATIONS_MAX: usize = 256;

/// Enough for a few operations at once; each keeps a socket open.
const IDLE_PER_PEER_MAX: usize = 4;
