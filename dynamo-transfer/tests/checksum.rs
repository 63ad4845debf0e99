//! Bytes that change on their way over TCP: a proxy between two agents flips some.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]
#![expect(clippy::disallowed_methods, reason = "a proxy of a test ends with its runtime")]

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dynamo_transfer::{
    Agent, AgentConfig, ErrorKind, HostBuffer, RegisteredRegion, RemoteAgent, RemoteMemory, Result,
    TransferOptions, TransferReport,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// Which bytes of a connection are flipped, counted in each direction.
type Flips = fn(u64) -> bool;

/// What has passed in one direction, over all connections.
#[derive(Debug, Default)]
struct Passed {
    bytes: AtomicU64,
    flips: AtomicU64,
}

impl Passed {
    /// Returns how often a stripe was sent, and how many of its bytes were flipped. What is said
    /// beside stripes is far smaller than one.
    fn take(&self) -> (u64, u64) {
        let bytes = self.bytes.swap(0, Ordering::SeqCst);
        (bytes / BYTES as u64, self.flips.swap(0, Ordering::SeqCst))
    }
}

/// Passes on what comes, with some bytes flipped.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, flips: Flips, passed: Arc<Passed>) {
    let (mut buffer, mut position) = (vec![0; 64 << 10], 0u64);
    while let Ok(len @ 1..) = from.read(&mut buffer).await {
        for byte in &mut buffer[..len] {
            let is_flipped = flips(position);
            *byte ^= u8::from(is_flipped);
            passed.flips.fetch_add(u64::from(is_flipped), Ordering::SeqCst);
            position += 1;
        }
        passed.bytes.fetch_add(len as u64, Ordering::SeqCst);
        if to.write_all(&buffer[..len]).await.is_err() {
            return;
        }
    }
}

async fn proxy(listener: TcpListener, owner: SocketAddr, flips: Flips, passed: [Arc<Passed>; 2]) {
    while let Ok((near, _)) = listener.accept().await {
        let (near_from, near_to) = near.into_split();
        let (far_from, far_to) = TcpStream::connect(owner).await.unwrap().into_split();
        let [read, written] = passed.clone();
        tokio::spawn(pass(near_from, far_to, flips, written));
        tokio::spawn(pass(far_from, near_to, flips, read));
    }
}

struct Lab {
    initiator: Agent,
    owner: Agent,
    source: RegisteredRegion<HostBuffer>,
    target: RegisteredRegion<HostBuffer>,
    peer: RemoteAgent,
    read: Arc<Passed>,
    written: Arc<Passed>,
}

async fn lab(flips: Flips) -> Lab {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    // A port that is free: bound, and given up at once.
    let listen = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let owner = AgentConfig::default().with_tcp_listen(listen).with_tcp_advertise(at);
    let owner = Agent::start(owner).await.unwrap();
    let (read, written) = (Arc::<Passed>::default(), Arc::<Passed>::default());
    let passed = [Arc::clone(&read), Arc::clone(&written)];
    tokio::spawn(proxy(listener, listen, flips, passed));
    // One lane: on another connection the flips would begin anew.
    let initiator = AgentConfig::default().with_tcp_lanes(NonZeroUsize::MIN);
    let initiator = Agent::start(initiator).await.unwrap();
    let source = owner.register_peer_writable(vec![HostBuffer::new(BYTES)]).unwrap();
    source.write_at(0, &pattern()).unwrap();
    let peer = initiator.load_metadata(&owner.metadata([source.grant()]).unwrap()).unwrap();
    let target = initiator.register_mut(vec![HostBuffer::new(BYTES)]).unwrap();
    Lab { initiator, owner, source, target, peer, read, written }
}

impl Lab {
    async fn read(&self, is_checked: bool) -> Result<TransferReport> {
        let all = [(0, BYTES as u64)];
        let remote = self.peer.regions()[0].descriptor(all).unwrap();
        let options = TransferOptions::default().with_checksum(is_checked);
        self.initiator.read(self.target.descriptor(all).unwrap(), remote, options).await
    }

    async fn write(&self, is_checked: bool) -> Result<TransferReport> {
        let all = [(0, BYTES as u64)];
        let remote = self.peer.regions()[0].descriptor(all).unwrap();
        let options = TransferOptions::default().with_checksum(is_checked);
        self.initiator.write(self.target.descriptor(all).unwrap(), remote, options).await
    }

    async fn end(self) {
        drop((self.source, self.target));
        self.initiator.shutdown().await;
        self.owner.shutdown().await;
    }
}

fn pattern() -> Vec<u8> {
    (0..=250).cycle().take(BYTES).collect()
}

fn content(region: &RegisteredRegion<HostBuffer>) -> Vec<u8> {
    let mut bytes = vec![0; BYTES];
    region.read_at(0, &mut bytes).unwrap();
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_flipped_is_sent_once_more() {
    let lab = lab(|position| position == IN_THE_MIDDLE).await;
    assert_eq!(lab.read(true).await.unwrap().bytes, BYTES as u64);
    assert!(content(&lab.target) == pattern());
    // How often it was sent, and flipped.
    assert_eq!(lab.read.take(), (2, 1));
    let flipped: Vec<u8> = pattern().iter().map(|byte| !byte).collect();
    lab.target.write_at(0, &flipped).unwrap();
    lab.write(true).await.unwrap();
    assert!(content(&lab.source) == flipped);
    assert_eq!(lab.written.take(), (2, 1));
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_flipped_twice_fails_as_corrupted() {
    let lab = lab(|position| position % (BYTES as u64) == IN_THE_MIDDLE).await;
    let error = lab.read(true).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Corrupted, true));
    assert_eq!(error.remote_memory(), RemoteMemory::Untouched);
    assert_eq!(lab.read.take(), (2, 2));
    let error = lab.write(true).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupted);
    assert_eq!(error.remote_memory(), RemoteMemory::Partial);
    assert_eq!(lab.written.take(), (2, 2));
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_looks_who_was_not_asked_to() {
    let lab = lab(|position| position == IN_THE_MIDDLE).await;
    lab.read(false).await.unwrap();
    let (got, sent) = (content(&lab.target), pattern());
    assert_eq!(got.iter().zip(&sent).filter(|(got, sent)| got != sent).count(), 1);
    assert_eq!(lab.read.take(), (1, 1));
    lab.end().await;
}

/// One stripe.
const BYTES: usize = 1 << 20;

/// Far from what is said before and behind a stripe.
const IN_THE_MIDDLE: u64 = 500_000;
