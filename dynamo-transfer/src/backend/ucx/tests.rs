//! A peer that speaks the protocol wrongly, straight over UCX.
#![expect(clippy::disallowed_methods, reason = "what UCX calls back is waited for in real time")]

mod numbers;
pub(super) mod raw;

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::UcxConfig;
use super::header::KINDS;
use super::library::Library;
use super::protocol::{
    Kind, RailKind, Request, STRIPE_BYTES_MAX, Way, decode_grants, decode_status,
};
use super::served::LINKS_PER_PEER_MAX;
use super::stream::{Holder, Stream};
use crate::backend::hostile::is_refused_whatever_it_claims;
use crate::conformance::{skipped, unless_ucx_is_missing};
use crate::descriptor::Ranges;
use crate::error::ErrorKind;
use crate::memory::{Leased, RegionTable, Right};
use crate::peer::PeerAddress;
use crate::{
    Agent, AgentConfig, BackendKind, BlockLayout, HostBuffer, RegisteredRegion, RemoteRegion,
    Rights, TransferOptions,
};
use raw::RawUcx;

pub(super) fn request(region: &RemoteRegion, ranges: &[(u64, u64)]) -> Request {
    let (right, way) = (Right::Write, Way::Messages);
    let ranges = Ranges::unchecked(ranges.iter().copied());
    Request { right, way, region: region.id, token: region.token, ranges }
}

pub(super) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

pub(super) async fn agent(name: &str) -> Option<Agent> {
    let config = AgentConfig::default().with_name(name).with_ucx(UcxConfig::default());
    unless_ucx_is_missing("a test of UCX", Agent::start(config).await)
}

/// Returns memory, and a stream that leases all of it.
pub(super) fn leased(len: usize) -> (RegisteredRegion<HostBuffer>, Rc<Stream>) {
    let table = Arc::new(RegionTable::new().unwrap());
    let memory = vec![HostBuffer::new(len)];
    let region = RegisteredRegion::writable(&table, memory, Rights::OwnerWrites).unwrap();
    let Ok(Leased::Host(lease)) =
        table.lease_local(region.grant().id, Right::Write, &Arc::default())
    else {
        unreachable!("it is memory of the host")
    };
    let stream = Stream::new(Holder::Lease(lease), [(0, len as u64)].into_iter());
    (region, Rc::new(stream))
}

#[test]
fn whatever_a_hostile_peer_claims_is_refused_and_the_owner_is_as_it_was() {
    runtime().block_on(async {
        let Some(first) = agent("first").await else { return };
        first.shutdown().await;
        let config = AgentConfig::default().with_ucx(UcxConfig::default());
        is_refused_whatever_it_claims::<RawUcx>(config).await;
    });
}

#[test]
fn messages_that_are_none_are_refused_and_the_owner_lives() {
    let runtime = runtime();
    let Some(owner) = runtime.block_on(agent("owner")) else { return };
    let _in_runtime = runtime.enter();
    let writable = owner.register_peer_writable(vec![HostBuffer::new(4096)]).unwrap();
    let metadata = owner.metadata([writable.grant()]).unwrap();
    let peer = owner.load_metadata(&metadata).unwrap();
    let mut hostile = RawUcx::start(&peer.address).unwrap();

    let good = request(&peer.regions()[0], &[(0, 64)]);
    let outside = request(&peer.regions()[0], &[(0, 8), (1, u64::MAX)]);
    assert_eq!(hostile.refused(5, outside.encode()), ErrorKind::OutOfBounds);
    assert_eq!(hostile.refused(6, vec![9; 50]), ErrorKind::Protocol);
    assert_eq!(hostile.refused(7, Vec::new()), ErrorKind::Protocol);

    // Data outside of a write that was accepted.
    hostile.say(Kind::Request, 8, good.encode());
    hostile.hear(&[Kind::Accept]);
    hostile.say(Kind::WriteData, 8, vec![1; 65]);
    let (_, status) = hostile.hear(&[Kind::Done]);
    assert_eq!(decode_status(&status).unwrap().unwrap_err().kind(), ErrorKind::Protocol);

    // Less or more data with a request than it asks for, and data of what is under way already.
    let with = |len| Request { way: Way::Here(vec![1; len]), ..good.clone() }.encode();
    for len in [0, 63, 65, 4096] {
        assert_eq!(hostile.refused(9, with(len)), ErrorKind::Protocol);
    }
    hostile.say(Kind::Request, 10, good.encode());
    hostile.hear(&[Kind::Accept]);
    assert_eq!(hostile.refused(10, with(64)), ErrorKind::Protocol);
    hostile.say(Kind::Cancel, 10, Vec::new());

    // Every kind of message, of operations that are not, with bodies that are none.
    for kind in KINDS.into_iter().filter(|kind| !matches!(kind, Kind::Request | Kind::Notify)) {
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
fn a_fragment_that_has_changed_on_its_way_is_found_where_that_was_asked_for() {
    let runtime = runtime();
    let Some(owner) = runtime.block_on(agent("owner")) else { return };
    let _in_runtime = runtime.enter();
    let writable = owner.register_peer_writable(vec![HostBuffer::new(64)]).unwrap();
    let peer = owner.load_metadata(&owner.metadata([writable.grant()]).unwrap()).unwrap();
    let mut initiator = RawUcx::start(&peer.address).unwrap();
    let unchecked = request(&peer.regions()[0], &[(0, 64)]);
    let checked = Request { way: Way::Checked, ..unchecked.clone() };
    let right = crc32c::crc32c(&[7; 64]);
    let mut written = |op, request: &Request, checksum, byte| {
        initiator.say(Kind::Request, op, request.encode());
        initiator.hear(&[Kind::Accept]);
        initiator.write(op, checksum, vec![byte; 64]);
        let (_, status) = initiator.hear(&[Kind::Done]);
        let status = decode_status(&status).unwrap().map_err(|error| error.kind());
        let mut bytes = [0; 64];
        writable.read_at(0, &mut bytes).unwrap();
        (status, bytes)
    };
    assert_eq!(written(1, &checked, right, 6), (Err(ErrorKind::Corrupted), [0; 64]));
    assert_eq!(written(2, &checked, 0, 7), (Err(ErrorKind::Corrupted), [0; 64]));
    assert_eq!(written(3, &checked, right, 7), (Ok(()), [7; 64]));
    assert_eq!(written(4, &unchecked, 0, 6), (Ok(()), [6; 64]));
    drop(writable);
    runtime.block_on(owner.shutdown());
}

#[test]
fn what_is_checked_arrives_both_ways_in_messages_alone() {
    runtime().block_on(async {
        const BYTES: usize = 1 << 20;
        let Some(owner) = agent("owner").await else { return };
        let initiator = agent("initiator").await.unwrap();
        let region = owner.register_peer_writable(vec![HostBuffer::new(BYTES)]).unwrap();
        let peer = initiator.load_metadata(&owner.metadata([region.grant()]).unwrap()).unwrap();
        let bytes: Vec<u8> = (0..=250).cycle().take(BYTES).collect();
        let mine = initiator.register_mut(vec![bytes.clone()]).unwrap();
        // A few bytes, which without a checksum go with their request, and many.
        for len in [100, BYTES] {
            let all = [(0, len as u64)];
            let part = || (mine.descriptor(all), peer.regions()[0].descriptor(all));
            let options = TransferOptions::default().with_checksum(true);
            let (local, remote) = part();
            initiator.write(local.unwrap(), remote.unwrap(), options.clone()).await.unwrap();
            mine.write_at(0, &vec![0; BYTES]).unwrap();
            let (local, remote) = part();
            let read = initiator.read(local.unwrap(), remote.unwrap(), options).await.unwrap();
            assert_eq!((read.bytes, read.backend), (len as u64, BackendKind::Ucx));
            let mut got = vec![0; BYTES];
            mine.read_at(0, &mut got).unwrap();
            assert!(got[..len] == bytes[..len]);
            mine.write_at(0, &bytes).unwrap();
        }
        initiator.shutdown().await;
        owner.shutdown().await;
    });
}

#[test]
fn memory_that_was_granted_is_kept_until_it_is_released() {
    let runtime = runtime();
    let Some(owner) = runtime.block_on(agent("owner")) else { return };
    let _in_runtime = runtime.enter();
    let writable = owner.register_peer_writable(vec![HostBuffer::new(4096)]).unwrap();
    let peer = owner.load_metadata(&owner.metadata([writable.grant()]).unwrap()).unwrap();
    let mut initiator = RawUcx::start(&peer.address).unwrap();
    let way = Way::Rail(RailKind::Cma);
    let request = Request { way, ..request(&peer.regions()[0], &[(0, 64), (128, 64)]) };
    initiator.say(Kind::Request, 1, request.encode());
    let library = Library::open(&UcxConfig::default().library).unwrap();
    if library.is_degraded() {
        // The owner lets nobody at its memory: it waits for messages with the data.
        assert_eq!(initiator.rails.cma, [0; 0]);
        initiator.hear(&[Kind::Accept]);
        skipped("what is granted is kept: UCX before 1.22 grants nothing; see tests/ucx.rs");
        return runtime.block_on(owner.shutdown());
    }
    let (_, grants) = initiator.hear(&[Kind::Grant]);
    let (keys, grants) = decode_grants(&grants, 128).unwrap();
    assert_eq!((keys.len(), grants.len()), (1, 2));
    assert_eq!(grants[1].address - grants[0].address, 128);
    let mut close = Box::pin(writable.close());
    assert!(runtime.block_on(async { futures::poll!(&mut close) }).is_pending());
    initiator.say(Kind::Release, 1, Vec::new());
    initiator.settle();
    let closed = async { tokio::time::timeout(Duration::from_secs(5), close).await };
    assert_eq!(runtime.block_on(closed).unwrap().len(), 1);
    runtime.block_on(owner.shutdown());
}

#[test]
fn an_agent_without_one_sided_access_lets_nobody_at_its_memory() {
    let runtime = runtime();
    let Some(probe) = runtime.block_on(agent("probe")) else { return };
    runtime.block_on(probe.shutdown());
    let ucx = UcxConfig::default().with_one_sided(false);
    let owner = runtime.block_on(Agent::start(AgentConfig::default().with_ucx(ucx))).unwrap();
    let _in_runtime = runtime.enter();
    let writable = owner.register_peer_writable(vec![HostBuffer::new(4096)]).unwrap();
    let peer = owner.load_metadata(&owner.metadata([writable.grant()]).unwrap()).unwrap();
    let mut initiator = RawUcx::start(&peer.address).unwrap();
    assert!(initiator.rails.cma.is_empty() && initiator.rails.rdma.is_empty());
    for (op, rail) in [(1, RailKind::Cma), (2, RailKind::Rdma)] {
        let way = Way::Rail(rail);
        let request = Request { way, ..request(&peer.regions()[0], &[(0, 64)]) };
        initiator.say(Kind::Request, op, request.encode());
        initiator.hear(&[Kind::Accept]);
    }
    runtime.block_on(owner.shutdown());
}

#[test]
fn a_peer_has_its_share_of_the_links_and_is_told_so() {
    let runtime = runtime();
    let Some(owner) = runtime.block_on(agent("owner")) else { return };
    let peer = owner.load_metadata(&owner.metadata([]).unwrap()).unwrap();
    // It has one of them.
    let mut hostile = RawUcx::start(&peer.address).unwrap();
    for link in 1..LINKS_PER_PEER_MAX as u64 {
        hostile.hello(&peer.address, link).unwrap();
    }
    for link in 100..104 {
        let refused = hostile.hello(&peer.address, link).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Overloaded);
    }
    runtime.block_on(async {
        let other = agent("other").await.unwrap();
        let mut notifications = owner.notifications().unwrap();
        other.notify(&peer, b"me too"[..].into()).await.unwrap();
        assert_eq!(notifications.recv().await.unwrap().payload, b"me too"[..]);
        other.shutdown().await;
        owner.shutdown().await;
    });
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
    let metadata = owner.metadata([source.grant()]).unwrap();
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
        let away = gone.load_metadata(&gone.metadata([]).unwrap()).unwrap().address;
        gone.shutdown().await;
        let listen = "127.0.0.1:0".parse().unwrap();
        let owner = AgentConfig::default().with_tcp_listen(listen).with_ucx(UcxConfig::default());
        let owner = Agent::start(owner).await.unwrap();
        let source = owner.register(vec![vec![7; 4096]]).unwrap();
        let peer = initiator.load_metadata(&owner.metadata([source.grant()]).unwrap()).unwrap();
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
