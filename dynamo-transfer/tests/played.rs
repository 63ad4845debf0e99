//! Transfers over TCP to a peer that the test plays, which answers as it likes or not at all.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use dynamo_transfer::{
    Agent, AgentConfig, BackendKind, ErrorKind, HostBuffer, Priority, RegisteredRegion,
    RemoteAgent, RemoteMemory, Transfer, TransferOptions,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// A peer played by the test: whoever connects finds the test's own listener.
struct Played {
    listener: TcpListener,
    initiator: Agent,
    peer: RemoteAgent,
    target: RegisteredRegion<HostBuffer>,
}

impl Played {
    /// Starts an initiator that knows a peer with a region of `len` bytes behind `listener`.
    async fn new(len: usize, config: AgentConfig) -> Self {
        let listener = TcpListener::bind(loopback()).await.unwrap();
        let owner = AgentConfig::default().with_name("owner").with_tcp_listen(loopback());
        let owner = owner.with_tcp_advertise(listener.local_addr().unwrap());
        let owner = Agent::start(owner).await.unwrap();
        let region = owner.register(vec![HostBuffer::new(len)]).unwrap();
        let metadata = owner.metadata([region.grant()]).unwrap();
        let initiator = Agent::start(config).await.unwrap();
        let peer = initiator.load_metadata(&metadata).unwrap();
        let target = initiator.register_mut(vec![HostBuffer::new(len)]).unwrap();
        Self { listener, initiator, peer, target }
    }

    /// Accepts a lane, and takes its hello and its first request; grants as many of them.
    async fn grant(&self, granted: usize) -> TcpStream {
        let (mut stream, _) = self.listener.accept().await.unwrap();
        for index in 0..2 {
            let len = stream.read_u32_le().await.unwrap() as usize;
            stream.read_exact(&mut vec![0; len]).await.unwrap();
            if index < granted {
                stream.write_all(&[0; 8]).await.unwrap();
            }
        }
        stream
    }

    /// Posts a read of the whole region.
    fn read(&self, options: TransferOptions) -> Transfer {
        let whole = [(0, self.target.len())];
        let remote = self.peer.regions()[0].descriptor(whole).unwrap();
        self.initiator.read(self.target.descriptor(whole).unwrap(), remote, options)
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_never_answers_is_cut_at_the_deadline() {
    let silent = Played::new(8, AgentConfig::default()).await;
    let options = TransferOptions::default().with_deadline(Duration::from_millis(500));
    let error = silent.read(options).await.unwrap_err();
    assert_eq!((error.kind(), error.peer()), (ErrorKind::DeadlineExceeded, Some("owner")));
    // Nothing holds the memory any more.
    assert_eq!(silent.target.close().await.len(), 1);
}

/// One lane: what becomes of it is seen.
fn one_lane() -> AgentConfig {
    AgentConfig::default().with_tcp_lanes(NonZeroUsize::MIN)
}

#[tokio::test]
async fn a_peer_whose_lane_broke_and_that_was_away_is_reached_again() {
    let mut played = Played::new(8, one_lane()).await;
    let at = played.listener.local_addr().unwrap();
    let read = played.read(TransferOptions::default());
    let stream = played.grant(1).await;
    // Nobody listens any more when the lane that broke wants to connect again.
    played.listener = TcpListener::bind(loopback()).await.unwrap();
    drop(stream);
    assert!(read.await.unwrap_err().is_retryable());
    played.listener = TcpListener::bind(at).await.unwrap();
    let read = played.read(TransferOptions::default());
    let mut stream = tokio::time::timeout(Duration::from_secs(10), played.grant(2)).await.unwrap();
    stream.write_all(&[7; 8]).await.unwrap();
    assert_eq!(read.await.unwrap().bytes, 8);
}

#[tokio::test]
async fn an_idle_lane_ends_when_its_peer_leaves() {
    let played = Played::new(8, one_lane()).await;
    let read = played.read(TransferOptions::default());
    let mut stream = played.grant(2).await;
    stream.write_all(&[7; 8]).await.unwrap();
    read.await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    let closed = stream.read_to_end(&mut rest);
    tokio::time::timeout(Duration::from_secs(10), closed).await.unwrap().unwrap();
    // So the next one does not go out on it.
    let read = played.read(TransferOptions::default());
    let mut stream = played.grant(2).await;
    stream.write_all(&[7; 8]).await.unwrap();
    assert_eq!(read.await.unwrap().bytes, 8);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_transfer_is_waited_for_until_nothing_touches_its_memory() {
    let played = Played::new(8, one_lane()).await;
    let read = played.read(TransferOptions::default());
    let mut stream = played.grant(2).await;
    stream.write_all(&[7; 4]).await.unwrap();
    let mut bytes = [0; 8];
    while bytes[3] != 7 {
        tokio::task::yield_now().await;
        played.target.read_at(0, &mut bytes).unwrap();
    }
    let mut cancelled = std::pin::pin!(read.cancel());
    let early = tokio::time::timeout(Duration::from_secs(1), &mut cancelled).await;
    assert!(early.is_err(), "the rest may still come");
    stream.write_all(&[7; 4]).await.unwrap();
    assert_eq!(cancelled.await.unwrap_err().kind(), ErrorKind::Cancelled);
    // That was all: nothing comes after it.
    let lease = played.target.close();
    assert_eq!(tokio::time::timeout(Duration::from_secs(1), lease).await.unwrap().len(), 1);
}

#[tokio::test]
async fn close_waits_for_the_operation_in_flight() {
    let slow = Played::new(1 << 20, AgentConfig::default()).await;
    let transfer = slow.read(TransferOptions::default());
    let mut stream = slow.grant(2).await;
    stream.write_all(&vec![7; 1 << 19]).await.unwrap();
    let mut last = [0];
    while last != [7] {
        slow.target.read_at((1 << 19) - 1, &mut last).unwrap();
        tokio::task::yield_now().await;
    }
    let mut close = Box::pin(slow.target.close());
    assert!(futures::poll!(&mut close).is_pending());
    stream.write_all(&vec![8; 1 << 19]).await.unwrap();
    assert_eq!(transfer.await.unwrap().bytes, 1 << 20);
    let stats = slow.initiator.stats();
    assert_eq!((stats.completed_total, stats.bytes_by(BackendKind::Tcp)), (1, 1 << 20));
    let memory = close.await;
    assert!(memory[0][..1 << 19].iter().all(|byte| *byte == 7));
    assert!(memory[0][1 << 19..].iter().all(|byte| *byte == 8));
}

#[tokio::test]
async fn an_urgent_transfer_overtakes_one_that_was_posted_before_it() {
    const STRIPE: u64 = 512;
    let played = Played::new(64 << 10, one_lane()).await;
    // As many pieces as a stripe has, each a byte with one left out behind it.
    let post = |first: u64, stripes: u64, priority| {
        let ranges = || (first..first + stripes * STRIPE).map(|index| (index * 2, 1));
        let remote = played.peer.regions()[0].descriptor(ranges()).unwrap();
        let options = TransferOptions::default().with_priority(priority);
        played.initiator.read(played.target.descriptor(ranges()).unwrap(), remote, options)
    };
    let urgent_from = 20 * STRIPE;
    let early = post(0, 16, Priority::Low);
    let mut stream = played.grant(1).await;
    let urgent = post(urgent_from, 3, Priority::High);
    // The first has been asked for, and not been answered.
    let mut order = vec![false];
    let answer = [&[0; 8][..], &[7; 512]].concat();
    let owner = async {
        while order.len() < 19 {
            stream.write_all(&answer).await.unwrap();
            let mut request = vec![0; stream.read_u32_le().await.unwrap() as usize];
            stream.read_exact(&mut request).await.unwrap();
            // Behind the kind, the region, the token, two flags and the size of all ranges.
            let offset: [u8; 8] = request[52..60].try_into().unwrap();
            order.push(u64::from_le_bytes(offset) >= urgent_from * 2);
        }
        stream.write_all(&answer).await.unwrap();
    };
    let ((), early, urgent) = futures::join!(owner, early, urgent);
    assert_eq!((urgent.unwrap().bytes, early.unwrap().bytes), (3 * STRIPE, 16 * STRIPE));
    // What a lane had asked for by then: one is answered, two are in line.
    let ahead = order.iter().take_while(|is_urgent| !**is_urgent).count();
    assert!(ahead <= 3, "{order:?}");
    assert_eq!(order[ahead..ahead + 3], [true; 3], "{order:?}");
}

#[tokio::test]
async fn a_peer_that_says_it_has_ended_is_disconnected_and_this_agent_is_not() {
    let played = Played::new(8, one_lane()).await;
    // Closed, and cancelled: of the peer.
    for code in [14, 17] {
        let read = played.read(TransferOptions::default());
        let mut stream = played.grant(1).await;
        stream.write_all(&[code, 0, 0, 0, 3, 0, 0, 0]).await.unwrap();
        stream.write_all(b"bye").await.unwrap();
        let error = read.await.unwrap_err();
        let told = (error.kind(), error.message(), error.peer());
        assert_eq!(told, (ErrorKind::Disconnected, "bye", Some("owner")));
        assert!(error.is_retryable());
        stream.shutdown().await.unwrap();
        stream.read_to_end(&mut Vec::new()).await.unwrap();
    }
    let stats = played.initiator.stats();
    assert_eq!((stats.failed_total, stats.cancelled_total), (2, 0));
}

#[tokio::test]
async fn a_read_outlives_a_connection_that_breaks_and_not_the_death_of_the_peer() {
    let dying = Played::new(1 << 20, AgentConfig::default()).await;
    let transfer = dying.read(TransferOptions::default());
    let mut stream = dying.grant(2).await;
    stream.write_all(&vec![7; 1 << 19]).await.unwrap();
    drop(stream);
    let mut stream = dying.grant(2).await;
    stream.write_all(&vec![8; 1 << 20]).await.unwrap();
    assert_eq!(transfer.await.unwrap().bytes, 1 << 20);

    let transfer = dying.read(TransferOptions::default());
    drop((stream, dying.listener));
    let error = transfer.await.unwrap_err();
    assert_eq!((error.kind(), error.peer()), (ErrorKind::Unreachable, Some("owner")));
    assert!(error.is_retryable());
    assert!(dying.target.close().await[0].iter().all(|byte| *byte == 8));
}

#[tokio::test]
async fn a_write_that_breaks_off_is_not_sent_again_and_says_what_is_unknown() {
    let dying = Played::new(1 << 20, AgentConfig::default()).await;
    let whole = [(0, 1 << 20)];
    let remote = dying.peer.regions()[0].descriptor(whole).unwrap();
    let local = dying.target.descriptor(whole).unwrap();
    let transfer = dying.initiator.write(local, remote, TransferOptions::default());
    drop(dying.grant(1).await);
    let error = transfer.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disconnected);
    assert_eq!(error.remote_memory(), RemoteMemory::Unknown);
}

#[tokio::test]
async fn a_dropped_transfer_and_an_agent_that_ends_leave_nothing_behind() {
    let silent = Played::new(8, AgentConfig::default()).await;
    let transfer = silent.read(TransferOptions::default());
    let (mut stream, _) = silent.listener.accept().await.unwrap();
    drop(transfer);
    let cancelled = silent.read(TransferOptions::default()).cancel().await.unwrap_err();
    assert_eq!(cancelled.kind(), ErrorKind::Cancelled);

    let transfer = silent.read(TransferOptions::default());
    silent.initiator.shutdown().await;
    assert_eq!(transfer.await.unwrap_err().kind(), ErrorKind::Closed);
    stream.read_to_end(&mut Vec::new()).await.unwrap();
    assert_eq!(silent.target.close().await.len(), 1);
}

#[tokio::test]
async fn dropping_the_last_clone_of_an_agent_ends_its_transfers() {
    let silent = Played::new(8, AgentConfig::default()).await;
    let transfer = silent.read(TransferOptions::default());
    let (mut stream, _) = silent.listener.accept().await.unwrap();
    drop(silent.initiator);
    assert_eq!(transfer.await.unwrap_err().kind(), ErrorKind::Closed);
    stream.read_to_end(&mut Vec::new()).await.unwrap();
    assert_eq!(silent.target.close().await.len(), 1);
}

#[tokio::test]
async fn transfers_beyond_the_limit_are_refused_and_settling_makes_room() {
    let silent = Played::new(8, AgentConfig::default().with_transfers_max(1)).await;
    let first = silent.read(TransferOptions::default());
    let refused = silent.read(TransferOptions::default()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    let (stream, _) = silent.listener.accept().await.unwrap();
    drop(stream);
    assert_eq!(first.await.unwrap_err().kind(), ErrorKind::Disconnected);
    let options = TransferOptions::default().with_deadline(Duration::ZERO);
    assert_eq!(silent.read(options).await.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    drop(silent.read(TransferOptions::default()));
    let stats = silent.initiator.stats();
    assert_eq!((stats.posted_total, stats.failed_total, stats.completed_total), (4, 3, 0));
    while silent.initiator.stats().in_flight() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(silent.initiator.stats().cancelled_total, 1);
}
