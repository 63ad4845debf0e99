use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Waiting, Poll};

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::discovery::{Address, Instance};
use crate::engine::{Context, Engine};
use crate::error::{ErrorKind, Result};
use crate::name::{EndpointPath, Name};
use crate::protocol::InstanceId;
use crate::wire::codec::Codec;
use crate::wire::head::Head;
use crate::wire::session::{Limits, Session};

/// Takes one write, and is broken from then on.
struct Breaks(bool);

impl AsyncWrite for Breaks {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Waiting<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let is_broken = std::mem::replace(&mut self.0, true);
        Poll::Ready(if is_broken { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(bytes.len()) })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Waiting<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Waiting<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Knows one connection, and makes no other.
struct Only(Connection);

impl Reach for Only {
    async fn reach(&self, _: &Instance) -> Result<Connection> {
        Ok(self.0.clone())
    }
}

#[tokio::test]
async fn a_farewell_counts_though_the_request_that_crosses_it_cannot_be_written() {
    let name = |name| Name::new(name).unwrap();
    let endpoint = EndpointPath { namespace: name("n"), component: name("c"), endpoint: name("e") };
    let (id, address, labels) = (InstanceId(1), Address("x".to_owned()), Default::default());
    let instance = Instance { id, incarnation: 0, endpoint, address, labels };
    // Whether reading or writing comes first is left to chance.
    for _ in 0..32 {
        let now = Instant::now().into_std();
        let (mut peer, reader) = tokio::io::duplex(1 << 10);
        let session = Session::client(Limits::default(), Codec::default(), now);
        let connection = Connection::new(session, Arc::default());
        let mut tasks = JoinSet::new();
        let halves = (reader, Breaks(false));
        tasks.spawn(connection.clone().drive(halves, CancellationToken::new(), |_| {}));
        let mut server = Session::server(Limits::default(), now);
        let mut said = BytesMut::new();
        server.transmit(&mut said, 1 << 10);
        peer.write_all_buf(&mut said).await.unwrap();
        assert_eq!(connection.greeted().await, Stage::Open);
        server.go_away();
        server.transmit(&mut said, 1 << 10);
        peer.write_all_buf(&mut said).await.unwrap();
        drop(peer);
        let engine = RemoteEngine::new(&Arc::new(Only(connection.clone())), &instance);
        let error = engine.generate(Context::new(), Bytes::new()).await.unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unavailable, true));
        assert!(!connection.is_open());
        tasks.join_all().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_dies_right_after_a_sign_of_life_is_given_up_in_time() {
    let limits = Limits::default();
    let now = Instant::now().into_std();
    let (ours, mut peer) = tokio::io::duplex(1 << 10);
    let session = Session::client(limits.clone(), Codec::default(), now);
    let connection = Connection::new(session, Arc::default());
    let mut tasks = JoinSet::new();
    let halves = tokio::io::split(ours);
    tasks.spawn(connection.clone().drive(halves, CancellationToken::new(), |_| {}));
    let mut server = Session::server(limits.clone(), now);
    let (mut heard, mut said) = (BytesMut::new(), BytesMut::new());
    let mut last = Instant::now();
    // The hello, and the answer to one ping.
    for _ in 0..3 {
        server.transmit(&mut said, 1 << 10);
        peer.write_all_buf(&mut said).await.unwrap();
        last = Instant::now();
        peer.read_buf(&mut heard).await.unwrap();
        server.receive(&mut heard, Instant::now().into_std()).unwrap();
    }
    tasks.join_all().await;
    assert!(!connection.is_open());
    let silent = last.elapsed();
    let late = limits.dead_after + Duration::from_millis(100);
    assert!((limits.dead_after..late).contains(&silent), "given up after {silent:?}");
}

#[tokio::test]
async fn who_is_alone_on_a_connection_needs_no_other_task_to_be_sent() {
    let now = Instant::now().into_std();
    let (ours, mut peer) = tokio::io::duplex(1 << 10);
    let session = Session::client(Limits::default(), Codec::default(), now);
    let connection = Connection::new(session, Arc::default());
    let mut tasks = JoinSet::new();
    let halves = tokio::io::split(ours);
    tasks.spawn(connection.clone().drive(halves, CancellationToken::new(), |_| {}));
    let mut server = Session::server(Limits::default(), now);
    let (mut heard, mut said) = (BytesMut::with_capacity(1 << 10), BytesMut::new());
    server.transmit(&mut said, 1 << 10);
    peer.write_all_buf(&mut said).await.unwrap();
    assert_eq!(connection.greeted().await, Stage::Open);
    peer.read_buf(&mut heard).await.unwrap();

    let head = Head::example();
    // Nothing else runs in between.
    connection.open(&head, Bytes::new()).unwrap();
    let sent = peer.read_buf(&mut heard).now_or_never().expect("sent at once").unwrap();
    connection.open(&head, Bytes::new()).unwrap();
    assert!(peer.read_buf(&mut heard).now_or_never().is_none(), "two are sent by the driver");
    assert_eq!(peer.read_buf(&mut heard).await.unwrap(), sent);
    server.receive(&mut heard, now).unwrap();
    assert_eq!(server.streams(), 2);
}
