//! Peers that use an operation's number again, or say a thing twice.

use std::sync::Arc;
use std::time::Duration;

use super::raw::{RawUcx, port};
use super::{agent, leased, request, runtime};
use crate::backend::ucx::header::Kind;
use crate::backend::ucx::port::Port;
use crate::backend::ucx::protocol::{Rails, encode_status};
use crate::memory::{MemoryKind, Right, Token};
use crate::peer::PeerAddress;
use crate::{ErrorKind, HostBuffer, RegisteredRegion, RemoteRegion, TransferOptions};

/// More than what all sockets and windows take.
const LEN: usize = 16 << 20;

/// As many operations as fill what an owner sends to one peer.
const OPS: u64 = 16;

/// Time for the agent to send all that a peer which does not read has room for.
fn until_it_is_stuck() {
    std::thread::sleep(Duration::from_millis(50));
}

fn closes(runtime: &tokio::runtime::Runtime, region: RegisteredRegion<HostBuffer>) -> HostBuffer {
    let closed = async { tokio::time::timeout(Duration::from_secs(10), region.close()).await };
    runtime.block_on(closed).expect("nothing holds the memory").remove(0)
}

#[test]
fn an_operation_whose_number_is_used_again_sends_its_own_fragments() {
    let runtime = runtime();
    let Some(owner) = runtime.block_on(agent("owner")) else { return };
    let _in_runtime = runtime.enter();
    let region = owner.register_peer_writable(vec![HostBuffer::new(LEN)]).unwrap();
    let peer = owner.load_metadata(&owner.metadata([region.grant()]).unwrap()).unwrap();
    let mut hostile = RawUcx::start(&peer.address).unwrap();
    let all = [(0, LEN as u64)];
    let read = super::Request { right: Right::Read, ..request(&peer.regions()[0], &all) };
    for _ in 0..4 {
        for op in 1..=OPS {
            hostile.say(Kind::Cancel, op, Vec::new());
            hostile.say(Kind::Request, op, read.encode());
        }
        until_it_is_stuck();
    }
    // It is heard after all that was on the way: what of it was of operations given up is nobody's.
    assert_eq!(hostile.refused(100, Vec::new()), ErrorKind::Protocol);
    for op in 1..=OPS {
        hostile.say(Kind::Cancel, op, Vec::new());
    }
    assert_eq!(hostile.refused(101, Vec::new()), ErrorKind::Protocol);
    closes(&runtime, region);
    runtime.block_on(owner.shutdown());
}

#[test]
fn an_operation_that_is_released_without_a_grant_gives_its_memory_back() {
    let runtime = runtime();
    let Some(owner) = runtime.block_on(agent("owner")) else { return };
    let _in_runtime = runtime.enter();
    let region = owner.register_peer_writable(vec![HostBuffer::new(64)]).unwrap();
    let peer = owner.load_metadata(&owner.metadata([region.grant()]).unwrap()).unwrap();
    let mut hostile = RawUcx::start(&peer.address).unwrap();
    hostile.say(Kind::Request, 1, request(&peer.regions()[0], &[(0, 64)]).encode());
    hostile.hear(&[Kind::Accept]);
    hostile.say(Kind::Release, 1, Vec::new());
    hostile.settle();
    closes(&runtime, region);
    runtime.block_on(owner.shutdown());
}

/// A region that is found at a port, and nowhere.
fn region_at(port: &Port) -> RemoteRegion {
    let (name, ucx) = ("hostile".to_owned(), Some(port.worker.address().unwrap().into()));
    let peer = PeerAddress { name, incarnation: 1, fabric: None, tcp: None, shm: None, ucx };
    let token = Token { generation: 1, is_writable: true, expires_ms: u64::MAX, proof: 1 };
    let (peer, len, kind) = (Arc::new(peer), LEN as u64, MemoryKind::Host);
    RemoteRegion { peer, id: 1, token, len, kind }
}

#[test]
fn owners_that_go_while_much_is_on_the_way_to_them_are_errors() {
    let runtime = runtime();
    let Some(initiator) = runtime.block_on(agent("initiator")) else { return };
    let _in_runtime = runtime.enter();
    let region = initiator.register(vec![vec![7; LEN]]).unwrap();
    for _ in 0..8 {
        let port = port().unwrap();
        let remote = region_at(&port);
        let all = [(0, LEN as u64)];
        let writes = (0..8).map(|_| {
            let (local, remote) =
                (region.descriptor(all).unwrap(), remote.descriptor(all).unwrap());
            runtime.spawn(initiator.write(local, remote, TransferOptions::default()))
        });
        let writes: Vec<_> = writes.collect();
        let mut hostile = RawUcx::own(port, Rails::default());
        for _ in 0..8 {
            let (request, _) = hostile.hear(&[Kind::Request]);
            hostile.say(Kind::Accept, request.op, Vec::new());
        }
        until_it_is_stuck();
        drop(hostile);
        for written in writes {
            let written = async { tokio::time::timeout(Duration::from_secs(10), written).await };
            assert!(runtime.block_on(written).unwrap().unwrap().unwrap_err().is_retryable());
        }
    }
    runtime.block_on(initiator.shutdown());
}

#[test]
fn an_owner_that_accepts_again_and_again_is_sent_the_data_once() {
    let runtime = runtime();
    let Some(initiator) = runtime.block_on(agent("initiator")) else { return };
    let _in_runtime = runtime.enter();
    let port = port().unwrap();
    let remote = region_at(&port);
    let mut memory = HostBuffer::new(LEN);
    memory.fill(7);
    let region = initiator.register_mut(vec![memory]).unwrap();
    let all = [(0, LEN as u64)];
    let (local, remote) = (region.descriptor(all).unwrap(), remote.descriptor(all).unwrap());
    let written = runtime.spawn(initiator.write(local, remote, TransferOptions::default()));
    let mut hostile = RawUcx::own(port, Rails::default());
    let (request, _) = hostile.hear(&[Kind::Request]);
    let (received, stream) = leased(LEN);
    hostile.open(request.op, stream);
    // Each would start once more, until all that may be under way is.
    for _ in 0..OPS {
        hostile.say(Kind::Accept, request.op, Vec::new());
        until_it_is_stuck();
    }
    let is_right = hostile.filled();
    hostile.say(Kind::Done, request.op, encode_status(&Ok(())));
    hostile.settle();
    let written = async { tokio::time::timeout(Duration::from_secs(10), written).await };
    runtime.block_on(written).unwrap().unwrap().unwrap();
    closes(&runtime, region);
    // As many bytes have come as there are, and every one of them.
    assert!(is_right && closes(&runtime, received).iter().all(|byte| *byte == 7));
    runtime.block_on(initiator.shutdown());
}
