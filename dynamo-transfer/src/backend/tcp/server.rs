use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Context;

use bytes::BytesMut;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::frame::{Access, REQUEST_BYTES_MAX, Request, Status, encode_status};
use super::stream::{Arrival, CHECKSUM_BYTES, discard, recv_frame, recv_memory, send, send_memory};
use crate::backend::connection::{self, HELLO_MAX, IDLE_MAX};
use crate::backend::stage::{Bounce, Bounces, End};
use crate::descriptor::Ranges;
use crate::error::{Error, ErrorKind, RemoteMemory, Result};
use crate::inbound::Inbound;
use crate::memory::{Backed, Lease, Leased, Memory, Right};
use crate::wire::{HELLO_BYTES_MAX, Hello, protocol};

/// Serves an agent's regions to its peers.
pub(crate) struct TcpServer {
    inbound: Arc<Inbound>,
    shutdown: CancellationToken,
}

impl TcpServer {
    /// Listens at `address` and returns where that is.
    pub(crate) async fn start(
        address: SocketAddr,
        inbound: &Arc<Inbound>,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Result<SocketAddr> {
        let unavailable = |error| {
            let message = format!("cannot listen on {address}");
            Error::new(ErrorKind::BackendUnavailable, message).with_source(error)
        };
        let listener = TcpListener::bind(address).await.map_err(unavailable)?;
        let bound = listener.local_addr().map_err(unavailable)?;
        let server = Arc::new(Self { inbound: Arc::clone(inbound), shutdown: shutdown.clone() });
        let accept = move |cx: &mut Context<'_>| listener.poll_accept(cx);
        connection::accept(tasks, shutdown, accept, move |(stream, _)| {
            Arc::clone(&server).serve(stream)
        });
        Ok(bound)
    }

    async fn serve(self: Arc<Self>, stream: TcpStream) {
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            ended = serve(&stream, &self.inbound) => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "transfer connection ended");
                }
            }
        }
    }
}

async fn serve(stream: &TcpStream, inbound: &Inbound) -> Result<()> {
    stream.set_nodelay(true).map_err(connection::broken)?;
    let mut buffered = BytesMut::new();
    let hello = recv_frame(stream, &mut buffered, HELLO_BYTES_MAX, HELLO_MAX);
    let hello = Request::decode(&connection::hello(hello).await?);
    let Hello { name, incarnation, .. } = match hello.and_then(|hello| meant(hello, inbound)) {
        Ok(hello) => hello,
        Err(error) => return answer(stream, &Err(error)).await,
    };
    answer(stream, &Ok(())).await?;
    loop {
        let body = recv_frame(stream, &mut buffered, REQUEST_BYTES_MAX, IDLE_MAX).await?;
        match Request::decode(&body) {
            Ok(Request::Read(access)) => {
                paced(&access, serve_read(stream, inbound, &access)).await?;
            }
            Ok(Request::Write(access)) => {
                paced(&access, serve_write(stream, &mut buffered, inbound, &access)).await?;
            }
            Ok(Request::Notify(payload)) => {
                let delivered = inbound.deliver(name.clone(), incarnation, payload).await;
                answer(stream, &delivered).await?;
            }
            Ok(Request::Hello(_)) => {
                return answer(stream, &Err(protocol("second hello on a connection"))).await;
            }
            Err(error) => return answer(stream, &Err(error)).await,
        }
    }
}

/// Checks that the peer means this very agent.
fn meant(hello: Request, inbound: &Inbound) -> Result<Hello> {
    let Request::Hello(hello) = hello else {
        return Err(protocol("connection without a hello"));
    };
    inbound.check(&hello).map(|()| hello)
}

/// Bounds an operation as a whole.
async fn paced(access: &Access, operation: impl Future<Output = Result<()>>) -> Result<()> {
    let bytes = access.ranges.total();
    tokio::time::timeout(connection::patience(bytes), operation).await.unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Disconnected, format!("the peer is too slow for {bytes} bytes")))
    })
}

async fn serve_read(stream: &TcpStream, inbound: &Inbound, access: &Access) -> Result<()> {
    let Access { region, token, ranges, is_checked } = access;
    let leased = inbound.regions.lease_any(*region, token, Right::Read, ranges);
    let status = encode_status(&Ok(()));
    match leased {
        Err(error) => answer(stream, &Err(error)).await,
        Ok(Leased::Host(lease)) => {
            send_memory(stream, &status, lease.memory(), ranges.iter(), *is_checked).await
        }
        Ok(leased) => match fetch(&inbound.bounces, leased, ranges).await {
            Err(error) => answer(stream, &Err(error)).await,
            Ok(bounce) => {
                send_memory(stream, &status, bounce.memory(), whole(ranges), *is_checked).await
            }
        },
    }
}

/// The bytes come behind the request, whether they are taken or not.
async fn serve_write(
    stream: &TcpStream,
    buffered: &mut BytesMut,
    inbound: &Inbound,
    access: &Access,
) -> Result<()> {
    let Access { ranges, is_checked, .. } = access;
    let target = match Target::of(inbound, access).await {
        Ok(target) => target,
        Err(refused) => {
            let checksum = if *is_checked { CHECKSUM_BYTES as u64 } else { 0 };
            discard(stream, buffered, ranges.total() + checksum).await?;
            return answer(stream, &Err(refused)).await;
        }
    };
    let (memory, places) = (target.memory(), target.places(ranges));
    let arrival = recv_memory(stream, buffered, memory, places.iter(), *is_checked).await?;
    let status = target.finish(arrival, ranges).await;
    answer(stream, &status).await
}

/// Where the bytes of a write go.
enum Target {
    Host(Lease),
    /// Memory that the processor does not reach, by way of a buffer.
    Bounced(Leased, Arc<Bounce>),
}

impl Target {
    async fn of(inbound: &Inbound, access: &Access) -> Result<Self> {
        let Access { region, token, ranges, .. } = access;
        match inbound.regions.lease_any(*region, token, Right::Write, ranges)? {
            Leased::Host(lease) => Ok(Self::Host(lease)),
            end => {
                let bounce = inbound.bounces.one(&end).await?;
                Ok(Self::Bounced(end, bounce))
            }
        }
    }

    fn memory(&self) -> &Memory {
        match self {
            Self::Host(lease) => lease.memory(),
            Self::Bounced(_, bounce) => bounce.memory(),
        }
    }

    /// Returns where in that memory the bytes go.
    fn places(&self, ranges: &Ranges) -> Ranges {
        match self {
            Self::Host(_) => ranges.clone(),
            Self::Bounced(..) => Ranges::unchecked(whole(ranges)),
        }
    }

    /// Brings what has arrived where it belongs; a failure says whether any of it is there.
    async fn finish(self, arrival: Arrival, ranges: &Ranges) -> Result<()> {
        let partial = |error: Error| error.with_remote_memory(RemoteMemory::Partial);
        match (self, arrival) {
            (Self::Host(_), Arrival::Intact) => Ok(()),
            (Self::Host(_), Arrival::Corrupted(error)) => Err(partial(error)),
            (Self::Bounced(..), Arrival::Corrupted(error)) => Err(error),
            (Self::Bounced(end, bounce), Arrival::Intact) => {
                let passed = end.pass(Right::Write, &bounce, ranges.iter().collect()).await;
                passed.map_err(partial)
            }
        }
    }
}

/// Brings ranges that the processor does not reach into host memory.
async fn fetch(bounces: &Bounces, end: Leased, ranges: &Ranges) -> Result<Arc<Bounce>> {
    let bounce = bounces.one(&end).await?;
    end.pass(Right::Read, &bounce, ranges.iter().collect()).await?;
    Ok(bounce)
}

/// Returns where ranges are that lie in a bounce buffer one behind the other.
fn whole(ranges: &Ranges) -> impl Iterator<Item = (u64, u64)> + Clone {
    std::iter::once((0, ranges.total()))
}

async fn answer(stream: &TcpStream, status: &Status) -> Result<()> {
    send(stream, &encode_status(status)).await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::backend::connection::STALL_MAX;
    use crate::{Agent, AgentConfig, HostBuffer};

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_trickles_does_not_keep_memory_for_ever() {
        let listen = "127.0.0.1:0".parse().unwrap();
        let owner = Agent::start(AgentConfig::default().with_tcp_listen(listen)).await.unwrap();
        let region = owner.register_peer_writable(vec![HostBuffer::new(64)]).unwrap();
        let peer = owner.load_metadata(&owner.metadata([region.grant()]).unwrap()).unwrap();
        let mut stream = TcpStream::connect(peer.address.tcp.unwrap()).await.unwrap();
        let hello = Request::Hello(Hello {
            target_name: peer.name().to_owned(),
            target_incarnation: peer.incarnation(),
            name: "trickle".to_owned(),
            incarnation: 1,
        });
        let ranges = Ranges::unchecked([(0, 64)]);
        let write = Access { region: 0, token: peer.regions()[0].token, ranges, is_checked: false };
        stream.write_all(&hello.encode()).await.unwrap();
        assert_eq!(stream.read_u64_le().await.unwrap(), 0, "welcome");
        stream.write_all(&Request::Write(write).encode()).await.unwrap();
        stream.write_all(&[7]).await.unwrap();
        // Only when it has begun to write does the owner hold on to the memory.
        let has_begun = || {
            let mut first = [0];
            region.read_at(0, &mut first).unwrap();
            first == [7]
        };
        while !has_begun() {
            tokio::task::yield_now().await;
        }
        let mut closing = std::pin::pin!(region.close());
        let mut bytes = 0;
        // Each byte comes well before the peer would count as stalled.
        let closed = loop {
            tokio::select! {
                memory = &mut closing => break memory,
                () = tokio::time::sleep(STALL_MAX / 4) => {
                    // Fails once the owner has cut the connection off.
                    let _ = stream.write_all(&[7]).await;
                    bytes += 1;
                }
            }
        };
        assert_eq!(closed.len(), 1);
        assert!((2..10).contains(&bytes), "{bytes} bytes were let through");
    }
}
