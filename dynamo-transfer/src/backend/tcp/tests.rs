//! A peer that speaks the protocol by hand.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::TcpClient;
use super::frame::{Access, Head, Request, STATUS_BYTES, STRIPE_BYTES_MAX, STRIPE_CHUNKS_MAX};
use crate::backend::Backend;
use crate::backend::connection::HELLO_MAX;
use crate::backend::hostile::{Claim, Raw, is_refused_whatever_it_claims};
use crate::backend::stage::Bounces;
use crate::descriptor::Ranges;
use crate::inbound::Inbound;
use crate::memory::{RegionTable, Right};
use crate::peer::PeerAddress;
use crate::wire::Hello;
use crate::{Agent, AgentConfig, ErrorKind, HostBuffer, RemoteMemory, Result, TransferOptions};

struct RawTcp(TcpStream);

impl RawTcp {
    async fn ask(&mut self, request: &Request, bytes: &[u8]) -> Result<()> {
        self.0.write_all(&[&request.encode(), bytes].concat()).await.unwrap();
        let mut head = [0; STATUS_BYTES];
        self.0.read_exact(&mut head).await.unwrap();
        let head = Head::decode(head).unwrap();
        let mut reason = vec![0; head.reason_bytes];
        self.0.read_exact(&mut reason).await.unwrap();
        head.status(&reason)
    }
}

impl Raw for RawTcp {
    const NAMES_RANGES: bool = true;

    async fn connect(peer: &Arc<PeerAddress>) -> Result<Self> {
        let mut raw = Self(TcpStream::connect(peer.tcp.unwrap()).await.unwrap());
        let (target_name, name) = (peer.name.clone(), "hostile".to_owned());
        let target_incarnation = peer.incarnation;
        let hello = Hello { target_name, target_incarnation, name, incarnation: 1 };
        raw.ask(&Request::Hello(hello), &[]).await.map(|()| raw)
    }

    async fn claim(&mut self, claim: &Claim) -> Result<()> {
        let Claim { region, token, right, .. } = *claim;
        let access = Access { region, token, ranges: claim.ranges(), is_checked: false };
        match right {
            Right::Read => self.ask(&Request::Read(access), &[]).await,
            Right::Write => self.ask(&Request::Write(access), &claim.bytes()).await,
        }
    }
}

fn config() -> AgentConfig {
    AgentConfig::default().with_tcp_listen("127.0.0.1:0".parse().unwrap())
}

#[tokio::test]
async fn whatever_a_hostile_peer_claims_is_refused_and_the_owner_is_as_it_was() {
    is_refused_whatever_it_claims::<RawTcp>(config()).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_trickles_its_hello_is_not_waited_for() {
    let owner = Agent::start(config()).await.unwrap();
    let peer = owner.load_metadata(&owner.metadata([]).unwrap()).unwrap();
    let mut stream = TcpStream::connect(peer.address.tcp.unwrap()).await.unwrap();
    let (target_name, name) = (peer.name().to_owned(), "slow".to_owned());
    let target_incarnation = peer.address.incarnation;
    let hello = Hello { target_name, target_incarnation, name, incarnation: 1 };
    let hello = Request::Hello(hello).encode();
    let mut said = 0;
    let mut scratch = [0; 8];
    for byte in hello {
        tokio::select! {
            ended = stream.read(&mut scratch) => {
                assert!(matches!(ended, Ok(0) | Err(_)), "it is not answered");
                break;
            }
            () = tokio::time::sleep(HELLO_MAX / 4) => {}
        }
        // Fails once the owner has cut the connection off.
        let _ = stream.write_all(&[byte]).await;
        said += 1;
    }
    assert!((3..8).contains(&said), "{said} bytes were waited for");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_was_not_reached_is_away_until_it_may_be_looked_for_again() {
    let owner = Agent::start(config()).await.unwrap();
    let peer = owner.load_metadata(&owner.metadata([]).unwrap()).unwrap().address;
    owner.shutdown().await;
    let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
    let own = Arc::new(Inbound {
        name: "initiator".to_owned(),
        incarnation: 7,
        regions: Arc::new(RegionTable::new().unwrap()),
        bounces: Bounces::new(64, 1, &tasks),
        notifications: mpsc::channel(1).0,
    });
    let client = TcpClient::new(&own, NonZeroUsize::MIN, &tasks, &shutdown);
    assert!(!client.is_away(&peer), "nobody has looked for it");
    let error = client.notify(&peer, Bytes::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(client.is_away(&peer));
    tokio::time::advance(Duration::from_secs(2)).await;
    assert!(!client.is_away(&peer));
}

#[tokio::test]
async fn forged_frames_end_the_connection_and_no_lease_is_left() {
    let owner = Agent::start(config().with_name("owner")).await.unwrap();
    let region = owner.register_peer_writable(vec![HostBuffer::new(64)]).unwrap();
    let peer = owner.load_metadata(&owner.metadata([region.grant()]).unwrap()).unwrap();
    let (address, token) = (&peer.address, peer.regions()[0].token);
    let hello = || {
        let (target_name, name) = ("owner".to_owned(), "forger".to_owned());
        let target_incarnation = address.incarnation;
        Request::Hello(Hello { target_name, target_incarnation, name, incarnation: 1 })
    };
    let write = |ranges| {
        let ranges = Ranges::unchecked(ranges);
        Request::Write(Access { region: peer.regions()[0].id, token, ranges, is_checked: true })
    };
    let notify = Request::Notify(Bytes::from_static(b"x"));
    let too_much = vec![(0, 64); STRIPE_CHUNKS_MAX + 1];
    let said: [&[Request]; 5] = [
        &[write(vec![(0, 64)])],
        &[notify],
        &[hello(), hello()],
        &[hello(), write(too_much)],
        &[hello(), write(vec![(0, STRIPE_BYTES_MAX), (0, 1)])],
    ];
    let said = said.iter().map(|said| said.iter().flat_map(Request::encode).collect());
    let garbled = [vec![0xff; 64], vec![0; 64], vec![1, 0, 0, 0, 99], vec![3, 0, 0, 0, 2, 0, 0]];
    let cut = [hello().encode(), write(vec![(0, 64)]).encode()].concat();
    for bytes in said.chain(garbled).chain([cut]) {
        let mut stream = TcpStream::connect(address.tcp.unwrap()).await.unwrap();
        let bytes: Vec<u8> = bytes;
        stream.write_all(&bytes).await.unwrap();
        // It says no more: a write that was granted lacks its bytes.
        stream.shutdown().await.unwrap();
        let mut answers = Vec::new();
        // Broken off or closed, but over.
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answers)).await;
        let _ = ended.expect("the owner hangs up");
    }
    let memory = tokio::time::timeout(PATIENCE, region.close()).await.expect("no lease is left");
    assert_eq!(memory[0][..], [0; 64]);
}

#[tokio::test]
async fn a_write_says_what_its_owner_has_taken_before_it_refused() {
    let owner = Agent::start(config().with_name("owner")).await.unwrap();
    let initiator = Agent::start(AgentConfig::default()).await.unwrap();
    let region = owner.register_peer_writable(vec![HostBuffer::new(1024)]).unwrap();
    let peer = initiator.load_metadata(&owner.metadata([region.grant()]).unwrap()).unwrap();
    let mut lying = peer.regions()[0].clone();
    lying.len = 1 << 20;
    let source = initiator.register(vec![HostBuffer::new(513)]).unwrap();
    // One stripe, and another one of one piece that is not inside.
    for (first, left) in [(0, RemoteMemory::Partial), (2048, RemoteMemory::Untouched)] {
        let pieces = (0..=STRIPE_CHUNKS_MAX as u64).map(|index| match index {
            512 => (1 << 19, 1),
            _ => (first + index * 2, 1),
        });
        let (local, remote) = (source.descriptor([(0, 513)]), lying.descriptor(pieces));
        let options = TransferOptions::default();
        let error = initiator.write(local.unwrap(), remote.unwrap(), options).await.unwrap_err();
        assert_eq!((error.kind(), error.remote_memory()), (ErrorKind::OutOfBounds, left));
    }
}

const PATIENCE: Duration = Duration::from_secs(20);
