//! A peer that speaks the protocol wrongly, straight over UCX.
#![expect(clippy::disallowed_methods, reason = "which library to test is of the process")]
#![expect(clippy::print_stderr, reason = "says what is skipped")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::inbox::{Event, Inbox};
use super::library::Library;
use super::port::{EndpointId, MESSAGE_ID, Port};
use super::protocol::{
    Header, Hello, Kind, RailKind, Rails, Request, STRIPE_BYTES_MAX, Welcome, decode_grants,
    decode_status,
};
use super::worker::Worker;
use super::{UcxConfig, sys};
use crate::descriptor::Ranges;
use crate::error::ErrorKind;
use crate::memory::{Right, Token};
use crate::peer::PeerAddress;
use crate::{
    Agent, AgentConfig, BackendKind, BlockLayout, Grant, HostBuffer, RemoteAgent, RemoteRegion,
    TransferOptions,
};

const LINK: u64 = 77;

struct Hostile {
    port: Port,
    owner: EndpointId,
    rails: Rails,
}

impl Hostile {
    fn start(config: &UcxConfig, peer: &RemoteAgent) -> Self {
        let library = Library::open(&config.library).unwrap();
        let inbox = Inbox::new(library.functions().ucp_request_free);
        let settings = config.messages();
        let worker = Worker::new(&library, sys::FEATURE_AM, &settings, &inbox).unwrap();
        worker.listen(MESSAGE_ID).unwrap();
        let mut port = Port::new(worker, inbox);
        let owner = port.connect(peer.address.ucx.as_ref().unwrap()).unwrap();
        let mut hostile = Self { port, owner, rails: Rails::default() };
        let hello = Hello {
            target_name: peer.name().to_owned(),
            target_incarnation: peer.incarnation(),
            name: "hostile".to_owned(),
            incarnation: 1,
            address: hostile.port.worker.address().unwrap(),
        };
        hostile.say(Kind::Hello, 0, hello.encode());
        let (_, welcome) = hostile.hear(Kind::Welcome);
        let Welcome { status, rails } = Welcome::decode(&welcome).unwrap();
        status.unwrap();
        hostile.rails = rails;
        hostile
    }

    fn say(&mut self, kind: Kind, op: u64, body: Vec<u8>) {
        self.port.send(self.owner, Header::new(kind, LINK, op), body);
    }

    fn hear(&mut self, kind: Kind) -> (Header, Vec<u8>) {
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            self.port.progress();
            match self.port.inbox.pop() {
                Some(Event::Control(header, body)) if header.kind == kind => return (header, body),
                Some(Event::Sent(id)) => drop(self.port.sent(id)),
                _ => {}
            }
        }
        unreachable!("{kind:?} is not heard")
    }

    /// Has everything sent.
    fn settle(&mut self) {
        while self.port.is_draining() {
            self.port.progress();
            if let Some(Event::Sent(id)) = self.port.inbox.pop() {
                self.port.sent(id);
            }
        }
    }

    fn refused(&mut self, op: u64, body: Vec<u8>) -> ErrorKind {
        self.say(Kind::Request, op, body);
        let (header, body) = self.hear(Kind::Done);
        assert_eq!(header.op, op);
        decode_status(&body).unwrap().unwrap_err().kind()
    }
}

fn request(region: &RemoteRegion, ranges: &[(u64, u64)]) -> Request {
    let (right, rail) = (Right::Write, None);
    let ranges = Ranges::unchecked(ranges.iter().copied());
    Request { right, rail, region: region.id, token: region.token, ranges }
}

fn config() -> UcxConfig {
    match std::env::var("DYNAMO_TEST_LIBUCP") {
        Ok(path) => UcxConfig::default().with_library(path),
        Err(_) => UcxConfig::default(),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

async fn agent(name: &str) -> Option<Agent> {
    match Agent::start(AgentConfig::default().with_name(name).with_ucx(config())).await {
        Ok(agent) => Some(agent),
        Err(error) => {
            eprintln!("SKIPPED: {error}; apt-get install libucx0");
            None
        }
    }
}

#[test]
fn a_hostile_peer_is_refused_and_the_owner_lives() {
    let runtime = runtime();
    let Some(owner) = runtime.block_on(agent("owner")) else { return };
    let _in_runtime = runtime.enter();
    let writable = owner.register_peer_writable(vec![HostBuffer::new(4096)]).unwrap();
    let readable = owner.register(vec![HostBuffer::new(4096)]).unwrap();
    let metadata = owner.metadata([writable.handle(), readable.handle()]);
    let peer = owner.load_metadata(&metadata).unwrap();
    let regions = peer.regions();
    let mut hostile = Hostile::start(&config(), &peer);

    let good = request(&regions[0], &[(0, 64)]);
    let keyed = |generation, proof| {
        let right = good.token;
        let (generation, proof) = (right.generation ^ generation, right.proof ^ proof);
        Request { token: Token { generation, proof, ..right }, ..good.clone() }.encode()
    };
    assert_eq!(hostile.refused(1, keyed(0, 1)), ErrorKind::PermissionDenied);
    assert_eq!(hostile.refused(2, keyed(1, 0)), ErrorKind::StaleRegion);
    assert_eq!(
        hostile.refused(3, Request { region: 99, ..good.clone() }.encode()),
        ErrorKind::StaleRegion
    );
    let read_only = request(&regions[1], &[(0, 64)]);
    assert_eq!(hostile.refused(4, read_only.encode()), ErrorKind::PermissionDenied);
    for range in [(4090, 7), (u64::MAX, 1), (1, u64::MAX), (1 << 40, 1)] {
        let outside = request(&regions[0], &[(0, 8), range]);
        assert_eq!(hostile.refused(5, outside.encode()), ErrorKind::OutOfBounds, "{range:?}");
    }
    // Asking for remote keys is checked alike.
    let rail = Some(RailKind::Cma);
    let outside = Request { rail, ..request(&regions[0], &[(4090, 7)]) };
    assert_eq!(hostile.refused(5, outside.encode()), ErrorKind::OutOfBounds);
    assert_eq!(hostile.refused(6, vec![9; 50]), ErrorKind::Protocol);
    assert_eq!(hostile.refused(7, Vec::new()), ErrorKind::Protocol);

    // Data outside of a write that was accepted.
    hostile.say(Kind::Request, 8, good.encode());
    hostile.hear(Kind::Accept);
    hostile.say(Kind::WriteData, 8, vec![1; 65]);
    let (_, status) = hostile.hear(Kind::Done);
    assert_eq!(decode_status(&status).unwrap().unwrap_err().kind(), ErrorKind::Protocol);

    // Every kind of message, of operations that are not, with bodies that are none.
    let kinds = [
        Kind::Hello,
        Kind::Welcome,
        Kind::Accept,
        Kind::Grant,
        Kind::Release,
        Kind::ReadData,
        Kind::WriteData,
        Kind::Done,
        Kind::Cancel,
    ];
    for kind in kinds {
        for len in [0, 1, 33, 300, 100_000] {
            hostile.say(kind, 1000, vec![0xff; len]);
        }
    }

    // The owner is as it was.
    let mut notifications = owner.notifications().unwrap();
    runtime.block_on(async {
        let initiator = agent("initiator").await.unwrap();
        let peer = initiator.load_metadata(&metadata).unwrap();
        let target = initiator.register_mut(vec![HostBuffer::new(4096)]).unwrap();
        let all = [(0, 4096)];
        let (local, remote) =
            (target.descriptor(all).unwrap(), peer.regions()[0].descriptor(all).unwrap());
        initiator.read(local, remote, TransferOptions::default()).await.unwrap();
        assert!(target.close().await[0].iter().all(|byte| *byte == 0));
        initiator.notify(&peer, b"alive"[..].into()).await.unwrap();
        assert_eq!(notifications.recv().await.unwrap().payload, b"alive"[..]);
        initiator.shutdown().await;
        assert!(writable.close().await[0].iter().all(|byte| *byte == 0));
        owner.shutdown().await;
    });
}

#[test]
fn memory_that_was_granted_is_kept_until_it_is_released() {
    let runtime = runtime();
    let Some(owner) = runtime.block_on(agent("owner")) else { return };
    let _in_runtime = runtime.enter();
    let writable = owner.register_peer_writable(vec![HostBuffer::new(4096)]).unwrap();
    let peer = owner.load_metadata(&owner.metadata([writable.handle()])).unwrap();
    let mut initiator = Hostile::start(&config(), &peer);
    let rail = Some(RailKind::Cma);
    let request = Request { rail, ..request(&peer.regions()[0], &[(0, 64), (128, 64)]) };
    initiator.say(Kind::Request, 1, request.encode());
    let library = Library::open(&config().library).unwrap();
    if library.is_degraded() {
        // The owner lets nobody at its memory: it waits for messages with the data.
        assert_eq!(initiator.rails.cma, [0; 0]);
        initiator.hear(Kind::Accept);
        return runtime.block_on(owner.shutdown());
    }
    let (_, grants) = initiator.hear(Kind::Grant);
    let (keys, grants) = decode_grants(&grants, 128).unwrap();
    assert_eq!((keys.len(), grants.len()), (1, 2));
    assert_eq!(grants[1].address - grants[0].address, 128);
    let close = runtime.spawn(writable.close());
    std::thread::sleep(Duration::from_millis(100));
    assert!(!close.is_finished());
    initiator.say(Kind::Release, 1, Vec::new());
    let closed = async { tokio::time::timeout(Duration::from_secs(5), close).await };
    initiator.settle();
    assert_eq!(runtime.block_on(closed).unwrap().unwrap().len(), 1);
    runtime.block_on(owner.shutdown());
}

#[test]
fn an_operation_of_many_stripes_moves_every_byte_once() {
    const BLOCK: usize = 99_991;
    const BLOCKS: u16 = 1000;
    let runtime = runtime();
    let Some(owner) = runtime.block_on(agent("owner")) else { return };
    let _in_runtime = runtime.enter();
    let len = BLOCK * usize::from(BLOCKS);
    let bytes: Vec<u8> = (0..=250).cycle().take(len).collect();
    assert!(bytes.len() as u64 > 2 * STRIPE_BYTES_MAX);
    let source = owner.register(vec![bytes]).unwrap();
    let metadata = owner.metadata([source.handle()]);
    runtime.block_on(async {
        let initiator = agent("initiator").await.unwrap();
        let peer = initiator.load_metadata(&metadata).unwrap();
        let target = initiator.register_mut(vec![HostBuffer::new(len)]).unwrap();
        let layout = BlockLayout::contiguous(BLOCK as u64);
        let blocks = |back: bool| -> Vec<u32> {
            (0..BLOCKS).map(|i| if back { BLOCKS - 1 - i } else { i }.into()).collect()
        };
        let local = target.blocks(layout, blocks(false)).unwrap();
        let remote = peer.regions()[0].blocks(layout, blocks(true)).unwrap();
        let report = initiator.read(local, remote, TransferOptions::default()).await.unwrap();
        let moved = (report.bytes, report.backend);
        assert_eq!(moved, (len as u64, BackendKind::Ucx));
        // A block that is cut between two stripes counts twice.
        assert!((1000..1004).contains(&report.chunks), "{}", report.chunks);
        let (got, source) = (target.close().await, source.close().await);
        for index in 0..BLOCKS {
            let at = |index: u16| usize::from(index) * BLOCK;
            let (here, there) = (at(index), at(BLOCKS - 1 - index));
            let is_right = got[0][here..here + BLOCK] == source[0][there..there + BLOCK];
            assert!(is_right, "block {index}");
        }
        initiator.shutdown().await;
        owner.shutdown().await;
    });
}

#[test]
fn a_peer_that_ucx_does_not_reach_is_reached_over_tcp_and_only_the_first_transfer_waits() {
    runtime().block_on(async {
        let Some(initiator) = agent("initiator").await else { return };
        let gone = agent("gone").await.unwrap();
        let away = gone.load_metadata(&gone.metadata([] as [Grant; 0])).unwrap().address;
        gone.shutdown().await;
        let listen = "127.0.0.1:0".parse().unwrap();
        let owner = AgentConfig::default().with_tcp_listen(listen).with_ucx(config());
        let owner = Agent::start(owner).await.unwrap();
        let source = owner.register(vec![vec![7; 4096]]).unwrap();
        let peer = initiator.load_metadata(&owner.metadata([source.handle()])).unwrap();
        let target = initiator.register_mut(vec![HostBuffer::new(4096)]).unwrap();
        let mut region = peer.regions()[0].clone();
        let (ucx, tcp) = (BackendKind::Ucx, BackendKind::Tcp);
        let mut reads = vec![(&peer.address.ucx, ucx)];
        reads.extend([(&away.ucx, tcp); 20]);
        let started = Instant::now();
        for (ucx, backend) in reads {
            let ucx = ucx.clone();
            region.peer = Arc::new(PeerAddress { ucx, ..(*peer.address).clone() });
            target.write_at(0, &[0; 4096]).unwrap();
            let all = [(0, 4096)];
            let (local, remote) = (target.descriptor(all), region.descriptor(all));
            let read = initiator.read(local.unwrap(), remote.unwrap(), TransferOptions::default());
            assert_eq!(read.await.unwrap().backend, backend);
            let mut bytes = [0; 4096];
            target.read_at(0, &mut bytes).unwrap();
            assert_eq!(bytes, [7; 4096]);
        }
        // One waits for a second; twenty would wait for longer.
        assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
        initiator.shutdown().await;
        owner.shutdown().await;
    });
}
