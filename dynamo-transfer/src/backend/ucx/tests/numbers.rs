//! Peers that use an operation's number again, or say a thing twice.

use std::sync::Arc;

use futures::FutureExt as _;

use super::raw::{RawUcx, port};
use super::{leased, request};
use crate::backend::ucx::engine::tests::Bench;
use crate::backend::ucx::header::Kind;
use crate::backend::ucx::port::Port;
use crate::backend::ucx::protocol::{HERE_BYTES_MAX, Rails, Request, Way, encode_status};
use crate::memory::{MemoryKind, Right, Token};
use crate::peer::PeerAddress;
use crate::{ErrorKind, HostBuffer, RegisteredRegion, RemoteRegion};

/// More than what all sockets and windows take.
const LEN: usize = 16 << 20;

/// As many operations as fill what an owner sends to one peer.
const OPS: u64 = 16;

fn closes(region: RegisteredRegion<HostBuffer>) -> HostBuffer {
    region.close().now_or_never().expect("nothing holds the memory").remove(0)
}

#[test]
fn an_operation_whose_number_is_used_again_sends_its_own_fragments() {
    let Some(mut bench) = Bench::new() else { return };
    let (region, remote) = bench.writable(HostBuffer::new(LEN));
    let all = [(0, LEN as u64)];
    let read = Request { right: Right::Read, ..request(&remote, &all) };
    bench.beside(|asks| {
        let mut hostile = RawUcx::start(&remote.peer).unwrap();
        for _ in 0..4 {
            for op in 1..=OPS {
                hostile.say(Kind::Cancel, op, Vec::new());
                hostile.say(Kind::Request, op, read.encode());
            }
            hostile.settle();
            // It reads nothing meanwhile: the owner sends until it is stuck.
            asks.have(Bench::rest);
        }
        // It is heard after all that was on the way: what of it was of operations given up is
        // nobody's.
        assert_eq!(hostile.refused(100, Vec::new()), ErrorKind::Protocol);
        for op in 1..=OPS {
            hostile.say(Kind::Cancel, op, Vec::new());
        }
        assert_eq!(hostile.refused(101, Vec::new()), ErrorKind::Protocol);
    });
    closes(region);
}

#[test]
fn an_operation_that_is_released_without_a_grant_gives_its_memory_back() {
    let Some(mut bench) = Bench::new() else { return };
    let (region, remote) = bench.writable(HostBuffer::new(64));
    bench.beside(|asks| {
        let mut hostile = RawUcx::start(&remote.peer).unwrap();
        hostile.say(Kind::Request, 1, request(&remote, &[(0, 64)]).encode());
        hostile.hear(&[Kind::Accept]);
        hostile.say(Kind::Release, 1, Vec::new());
        hostile.settle();
        asks.have(Bench::rest);
    });
    closes(region);
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
    let Some(mut bench) = Bench::new() else { return };
    let (region, local) = bench.writable(HostBuffer::new(LEN));
    for round in 0..8 {
        let writes = bench.beside(|asks| {
            let port = port().unwrap();
            let remote = region_at(&port);
            let write = move |bench: &mut Bench| {
                let ops = 8 * round..8 * (round + 1);
                ops.map(|op| bench.write(op, local.id, &remote)).collect::<Vec<_>>()
            };
            let writes = asks.have(write);
            let mut hostile = RawUcx::own(port, Rails::default());
            for _ in 0..8 {
                let (request, _) = hostile.hear(&[Kind::Request]);
                hostile.say(Kind::Accept, request.op, Vec::new());
            }
            hostile.settle();
            asks.have(Bench::rest);
            writes
        });
        for mut written in writes {
            let mut outcome = None;
            bench.until(|_| {
                outcome = written.try_recv().ok();
                outcome.is_some()
            });
            assert!(outcome.unwrap().unwrap_err().is_retryable());
        }
    }
    bench.rest();
    closes(region);
}

#[test]
fn an_owner_that_accepts_again_and_again_is_sent_the_data_once() {
    let Some(mut bench) = Bench::new() else { return };
    let mut memory = HostBuffer::new(LEN);
    memory.fill(7);
    let (region, local) = bench.writable(memory);
    let (mut written, received, is_right) = bench.beside(|asks| {
        let port = port().unwrap();
        let remote = region_at(&port);
        let written = asks.have(move |bench| bench.write(1, local.id, &remote));
        let mut hostile = RawUcx::own(port, Rails::default());
        let (request, _) = hostile.hear(&[Kind::Request]);
        let (received, stream) = leased(LEN);
        hostile.open(request.op, stream);
        // Each would start once more, until all that may be under way is.
        for _ in 0..OPS {
            hostile.say(Kind::Accept, request.op, Vec::new());
            hostile.settle();
            asks.have(Bench::rest);
        }
        let is_right = hostile.filled();
        hostile.say(Kind::Done, request.op, encode_status(&Ok(())));
        hostile.settle();
        (written, received, is_right)
    });
    bench.rest();
    written.try_recv().unwrap().unwrap();
    closes(region);
    // As many bytes have come as there are, and every one of them.
    assert!(is_right && closes(received).iter().all(|byte| *byte == 7));
}

#[test]
fn a_small_write_comes_with_its_request_and_never_again() {
    let Some(mut bench) = Bench::new() else { return };
    let mut memory = HostBuffer::new(HERE_BYTES_MAX);
    memory.fill(7);
    let (region, local) = bench.writable(memory);
    let (mut written, received) = bench.beside(|asks| {
        let port = port().unwrap();
        let remote = RemoteRegion { len: HERE_BYTES_MAX as u64, ..region_at(&port) };
        let written = asks.have(move |bench| bench.write(1, local.id, &remote));
        let mut hostile = RawUcx::own(port, Rails::default());
        let (header, body) = hostile.hear(&[Kind::Request]);
        assert!(Request::decode(&body).unwrap().way == Way::Here(vec![7; HERE_BYTES_MAX]));
        let (received, stream) = leased(HERE_BYTES_MAX);
        hostile.open(header.op, stream);
        hostile.say(Kind::Accept, header.op, Vec::new());
        hostile.settle();
        asks.have(Bench::rest);
        hostile.say(Kind::Done, header.op, encode_status(&Ok(())));
        hostile.settle();
        (written, received)
    });
    bench.rest();
    written.try_recv().unwrap().unwrap();
    closes(region);
    assert!(closes(received).iter().all(|byte| *byte == 0), "it is sent again");
}
