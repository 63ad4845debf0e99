//! Bytes that change on their way over TCP: a proxy between two agents flips some.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]
#![expect(clippy::disallowed_methods, reason = "a proxy of a test ends with its runtime")]

use std::net::SocketAddr;

use dynamo_transfer::{
    Agent, AgentConfig, ErrorKind, HostBuffer, RegisteredRegion, RemoteAgent, RemoteMemory, Result,
    TransferOptions, TransferReport,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// Which bytes of a connection are flipped, counted in each direction.
type Flips = fn(u64) -> bool;

/// Passes on what comes, with some bytes flipped.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, flips: Flips) {
    let (mut buffer, mut position) = (vec![0; 64 << 10], 0u64);
    while let Ok(len @ 1..) = from.read(&mut buffer).await {
        for byte in &mut buffer[..len] {
            *byte ^= u8::from(flips(position));
            position += 1;
        }
        if to.write_all(&buffer[..len]).await.is_err() {
            return;
        }
    }
}

async fn proxy(listener: TcpListener, owner: SocketAddr, flips: Flips) {
    while let Ok((near, _)) = listener.accept().await {
        let (near_from, near_to) = near.into_split();
        let (far_from, far_to) = TcpStream::connect(owner).await.unwrap().into_split();
        tokio::spawn(pass(near_from, far_to, flips));
        tokio::spawn(pass(far_from, near_to, flips));
    }
}

struct Lab {
    initiator: Agent,
    owner: Agent,
    source: RegisteredRegion<HostBuffer>,
    target: RegisteredRegion<HostBuffer>,
    peer: RemoteAgent,
}

async fn lab(flips: Flips) -> Lab {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    // A port that is free: bound, and given up at once.
    let listen = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let owner = AgentConfig::default().with_tcp_listen(listen).with_tcp_advertise(at);
    let owner = Agent::start(owner).await.unwrap();
    tokio::spawn(proxy(listener, listen, flips));
    let initiator = Agent::start(AgentConfig::default()).await.unwrap();
    let source = owner.register_peer_writable(vec![HostBuffer::new(BYTES)]).unwrap();
    source.write_at(0, &pattern()).unwrap();
    let peer = initiator.load_metadata(&owner.metadata([source.handle()])).unwrap();
    let target = initiator.register_mut(vec![HostBuffer::new(BYTES)]).unwrap();
    Lab { initiator, owner, source, target, peer }
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
async fn what_is_flipped_once_is_sent_again() {
    let lab = lab(|position| position == IN_THE_MIDDLE).await;
    assert_eq!(lab.read(true).await.unwrap().bytes, BYTES as u64);
    assert!(content(&lab.target) == pattern());
    let flipped: Vec<u8> = pattern().iter().map(|byte| !byte).collect();
    lab.target.write_at(0, &flipped).unwrap();
    lab.write(true).await.unwrap();
    assert!(content(&lab.source) == flipped);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_flipped_again_and_again_fails_as_corrupted() {
    let lab = lab(|position| position % (BYTES as u64) == IN_THE_MIDDLE).await;
    let error = lab.read(true).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Corrupted, true));
    assert_eq!(error.remote_memory(), RemoteMemory::Untouched);
    let error = lab.write(true).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupted);
    assert_eq!(error.remote_memory(), RemoteMemory::Partial);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_looks_who_was_not_asked_to() {
    let lab = lab(|position| position == IN_THE_MIDDLE).await;
    lab.read(false).await.unwrap();
    let (got, sent) = (content(&lab.target), pattern());
    assert_eq!(got.iter().zip(&sent).filter(|(got, sent)| got != sent).count(), 1);
    lab.end().await;
}

/// One stripe.
const BYTES: usize = 1 << 20;

/// Far from what is said before and behind a stripe.
const IN_THE_MIDDLE: u64 = 500_000;
