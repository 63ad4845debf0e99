//! What sessions say, byte by byte: `docs/wire-format.md` with examples.

use std::collections::BTreeSet;

use super::*;

/// Who says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}
use Side::{Client, Server};

/// Two sessions whose every word is compared.
struct Scene {
    pair: Pair,
    kinds: BTreeSet<u8>,
}

impl Scene {
    /// Compares what a side has to say, and lets the other hear it.
    fn says(&mut self, side: Side, golden: &[&[u8]]) {
        let Pair { client, server, now, .. } = &mut self.pair;
        let (from, to) = if side == Client { (client, server) } else { (server, client) };
        let mut out = BytesMut::new();
        from.transmit(&mut out, 1 << 20);
        assert_eq!(out, golden.concat(), "{side:?}");
        let mut rest = &out[..];
        while let Some(header) = frame::Header::decode(rest).unwrap() {
            self.kinds.insert(header.kind as u8);
            rest = &rest[frame::HEADER_BYTES + header.len..];
        }
        to.receive(&mut out, *now).unwrap();
    }
}

const HEAD: &[u8] = b"\x26\x00\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\0\0\
    \x05\x00n/c/e\x01\x00r\x00\x00";

#[test]
fn every_kind_of_frame_is_what_the_page_says() {
    let small = Limits { streams_max: 0x0102, ..limits() };
    let mut scene = Scene { pair: Pair::new(&small), kinds: BTreeSet::new() };
    // HELLO: version 1, windows of 4 KiB and 16 KiB, streams at once, bincode.
    let windows = b"DYNW\x01\x00\x00\x10\x00\x00\x00\x40\x00\x00";
    scene.says(Client, &[&[19, 0, 0, 0, 0, 0, 0, 0], windows, &[0, 0, 0, 0, 0]]);
    scene.says(Server, &[&[19, 0, 0, 0, 0, 0, 0, 0], windows, &[2, 1, 0, 0, 0]]);

    // OPEN: the head, and the request behind it.
    let id = scene.pair.client.open(&Head::example(), Bytes::from_static(b"ask")).unwrap();
    assert_eq!(id, 1);
    scene.says(Client, &[&[43, 0, 0, 1, 1, 0, 0, 0], HEAD, b"ask"]);
    // ACCEPT; BATCH: three messages; END behind five.
    scene.pair.server.accept(id);
    let medium = message(200, 0);
    for message in [Bytes::from_static(b"ab"), Bytes::new(), medium.clone()] {
        scene.pair.server.send(id, message).unwrap();
    }
    let batch = [&[206, 0, 0, 0x23, 1, 0, 0, 0][..], b"\x02ab", &[0], &[0xc8, 1], &medium];
    scene.says(Server, &[&[0, 0, 0, 2, 1, 0, 0, 0], &batch.concat()]);
    // DATA: one message. END: there were four.
    scene.pair.server.send(id, Bytes::from_static(b"hi")).unwrap();
    scene.says(Server, &[&[2, 0, 0, 3, 1, 0, 0, 0], b"hi"]);
    scene.pair.server.finish(id);
    scene.says(Server, &[&[8, 0, 0, 4, 1, 0, 0, 0], &[4, 0, 0, 0, 0, 0, 0, 0]]);

    // OPEN with MORE, and the rest of the request in DATA.
    let request = message(17_000, 1);
    let id = scene.pair.client.open(&Head::example(), request.clone()).unwrap();
    let (first, rest) = request.split_at(PAYLOAD - HEAD.len());
    let open = [&[0, 0x40, 0, 0x11, 2, 0, 0, 0], HEAD, first].concat();
    scene.says(Client, &[&open, &[0x90, 2, 0, 3, 2, 0, 0, 0], rest]);
    // STOP, and RESET by the server: overloaded, unprocessed, again in 1,500 ms.
    scene.pair.client.stop(id);
    scene.says(Client, &[&[0, 0, 0, 6, 2, 0, 0, 0]]);
    let error = Error::new(ErrorKind::Overloaded, "full").unprocessed();
    scene.pair.server.fail(id, error.with_retry_after(Duration::from_millis(1500)));
    scene.says(Server, &[&[10, 0, 0, 5, 2, 0, 0, 0], b"\x03\x03\xdc\x05\x00\x00full"]);

    // WINDOW: a quarter of the stream's is granted again. RESET by the client: cancelled.
    let id = scene.pair.client.open(&Head::example(), Bytes::new()).unwrap();
    scene.says(Client, &[&[40, 0, 0, 1, 3, 0, 0, 0], HEAD]);
    scene.pair.server.send(id, message(1016, 2)).unwrap();
    scene.says(Server, &[&[0xf8, 3, 0, 3, 3, 0, 0, 0], &message(1016, 2)]);
    assert!(matches!(scene.pair.client.recv(id), Recv::Message(_)));
    scene.says(Client, &[&[4, 0, 0, 7, 3, 0, 0, 0], &[0, 4, 0, 0]]);
    scene.pair.client.kill(id);
    scene.says(Client, &[&[15, 0, 0, 5, 3, 0, 0, 0], b"\x05\x00by the client"]);

    // PING, and PONG with the same number.
    scene.pair.client.put_control(Kind::Ping, 0, &0x0102_0304_u64.to_le_bytes());
    scene.says(Client, &[&[8, 0, 0, 8, 0, 0, 0, 0], &[4, 3, 2, 1, 0, 0, 0, 0]]);
    scene.says(Server, &[&[8, 0, 0, 9, 0, 0, 0, 0], &[4, 3, 2, 1, 0, 0, 0, 0]]);
    // CREDITS, and GOAWAY with the last stream taken.
    scene.pair.server.set_streams_max(9);
    scene.says(Server, &[&[4, 0, 0, 11, 0, 0, 0, 0], &[9, 0, 0, 0]]);
    scene.pair.server.go_away();
    scene.says(Server, &[&[4, 0, 0, 10, 0, 0, 0, 0], &[3, 0, 0, 0]]);
    assert!(scene.kinds.into_iter().eq(0..12), "every kind was said");
}
