use std::time::Duration;

use proptest::prelude::*;

use super::*;

mod credit;
mod golden;
mod idle;
mod interleaving;
mod limits;

/// Two sessions and the bytes between them.
struct Pair {
    client: Session,
    server: Session,
    to_server: BytesMut,
    to_client: BytesMut,
    now: Instant,
}

fn limits() -> Limits {
    Limits { stream_window: 4 << 10, connection_window: 16 << 10, ..Limits::default() }
}

impl Pair {
    fn new(limits: &Limits) -> Self {
        #[expect(clippy::disallowed_methods, reason = "any time will do")]
        let now = Instant::now();
        Self {
            client: Session::client(limits.clone(), Codec::default(), now),
            server: Session::server(limits.clone(), now),
            to_server: BytesMut::new(),
            to_client: BytesMut::new(),
            now,
        }
    }

    /// Moves bytes until neither side has any.
    fn settle(&mut self) {
        loop {
            let client = self.client.transmit(&mut self.to_server, 1 << 20);
            let server = self.server.transmit(&mut self.to_client, 1 << 20);
            self.server.receive(&mut self.to_server, self.now).unwrap();
            self.client.receive(&mut self.to_client, self.now).unwrap();
            if !client && !server && !self.client.has_control() && !self.server.has_control() {
                return;
            }
        }
    }

    fn established(limits: &Limits) -> Self {
        let mut pair = Self::new(limits);
        pair.settle();
        assert!(pair.client.is_open());
        while pair.client.poll_event().is_some() || pair.server.poll_event().is_some() {}
        pair
    }

    /// Opens a stream and returns it once the server has it.
    fn open(&mut self, body: &[u8]) -> u32 {
        let id = self.client.open(&Head::example(), Bytes::copy_from_slice(body)).unwrap();
        self.settle();
        while let Some(event) = self.server.poll_event() {
            if let Event::Opened { stream, body: arrived, .. } = event {
                assert_eq!((stream, &arrived[..]), (id, body));
                return id;
            }
        }
        unreachable!("the request did not arrive")
    }

    fn assert_nothing_is_held(&self) {
        for (name, side) in [("client", &self.client), ("server", &self.server)] {
            assert_eq!(side.streams(), 0, "{name}");
            assert_eq!(side.credit + side.owed, side.limits.connection_window, "{name}");
            assert_eq!(side.assembling, 0, "{name}");
        }
        assert_eq!(self.client.send_credit, self.server.credit);
        assert_eq!(self.server.send_credit, self.client.credit);
    }
}

fn message(len: usize, seed: usize) -> Bytes {
    (0..len).map(|at| u8::try_from((at * 7 + seed) % 256).unwrap()).collect()
}

#[test]
fn a_request_and_its_answer_cross_in_whole_whatever_their_size() {
    let mut pair = Pair::established(&limits());
    for len in [0, 1, 100, PAYLOAD, PAYLOAD + 1, 100_000, 1 << 20] {
        let id = pair.open(&message(len, 1));
        pair.server.accept(id);
        for seed in 0..3 {
            pair.server.send(id, message(len, seed)).unwrap();
        }
        pair.server.finish(id);
        for seed in 0..3 {
            pair.settle();
            match pair.client.recv(id) {
                Recv::Message(got) => assert_eq!(got, message(len, seed)),
                other => unreachable!("{other:?}"),
            }
        }
        pair.settle();
        assert!(matches!(pair.client.recv(id), Recv::Complete));
        pair.settle();
        pair.assert_nothing_is_held();
    }
}

const PAYLOAD: usize = frame::PAYLOAD_BYTES_MAX;

#[test]
fn a_large_message_does_not_hold_up_a_small_one() {
    let mut pair = Pair::established(&Limits::default());
    let (bulk, token) = (pair.open(b"a"), pair.open(b"b"));
    pair.server.send(bulk, message(1 << 20, 0)).unwrap();
    pair.server.send(bulk, message(1 << 20, 1)).unwrap();
    pair.server.transmit(&mut pair.to_client, PAYLOAD);
    pair.server.send(token, message(4, 2)).unwrap();
    pair.server.finish(token);
    // The next write has the token in front of the bulk.
    let before = pair.to_client.len();
    pair.server.transmit(&mut pair.to_client, before + PAYLOAD);
    let header = frame::Header::decode(&pair.to_client[before..]).unwrap().unwrap();
    assert_eq!((header.kind, header.stream, header.len), (Kind::Data, token, 4));
}

/// The kinds and streams of the frames in `bytes`, and the bytes of each.
fn frames(bytes: &[u8]) -> Vec<(Kind, u32, usize)> {
    let (mut found, mut rest) = (Vec::new(), bytes);
    while let Some(header) = frame::Header::decode(rest).unwrap() {
        let size = frame::HEADER_BYTES + header.len;
        found.push((header.kind, header.stream, size));
        rest = &rest[size..];
    }
    assert!(rest.is_empty());
    found
}

/// Each write is one frame, or what there is of control frames.
#[test]
fn a_prompt_of_4_mb_holds_up_no_token_and_no_grant_by_more_than_a_frame() {
    let mut pair = Pair::established(&Limits { stream_window: 16 << 10, ..Limits::default() });
    let answered = pair.open(b"ask");
    let body = message(4 << 20, 1);
    let prompt = pair.client.open(&Head::example(), body.clone()).unwrap();
    let (mut parts, mut tokens, mut grants, mut asked) = (0, 0, 0, 0);
    let mut arrived = None;
    while arrived.is_none() {
        // A request that comes while the prompt goes out is in the next write.
        let other =
            (parts % 32 == 5).then(|| pair.client.open(&Head::example(), Bytes::new()).unwrap());
        let owes = pair.client.has_control();
        pair.client.transmit(&mut pair.to_server, 1);
        let said = frames(&pair.to_server);
        if owes {
            assert!(said.iter().all(|said| said.0 == Kind::Window), "{said:?}");
            grants += said.iter().filter(|said| said.1 == answered).count();
            pair.server.receive(&mut pair.to_server, pair.now).unwrap();
            pair.client.transmit(&mut pair.to_server, 1);
        }
        let said = frames(&pair.to_server);
        assert_eq!(said.len(), 1, "{said:?}");
        match other {
            Some(other) => {
                assert_eq!((said[0].0, said[0].1), (Kind::Open, other));
                asked += 1;
            }
            None => assert_eq!(said[0].1, prompt),
        }
        parts += 1;
        pair.server.receive(&mut pair.to_server, pair.now).unwrap();
        // A token is in the first write of the server, behind its grants.
        let token = message(100, tokens);
        pair.server.send(answered, token.clone()).unwrap();
        pair.server.transmit(&mut pair.to_client, PAYLOAD);
        let said = frames(&pair.to_client);
        let (last, before) = said.split_last().unwrap();
        assert_eq!((last.0, last.1), (Kind::Data, answered));
        assert!(before.iter().all(|said| said.0 == Kind::Window), "{said:?}");
        let waited: usize = before.iter().map(|said| said.2).sum();
        assert!(waited <= PAYLOAD, "{waited} bytes before the token");
        pair.client.receive(&mut pair.to_client, pair.now).unwrap();
        assert!(matches!(pair.client.recv(answered), Recv::Message(got) if got == token));
        tokens += 1;
        while let Some(event) = pair.server.poll_event() {
            match event {
                Event::Opened { stream, body, .. } if stream == prompt => arrived = Some(body),
                _ => {}
            }
        }
    }
    assert!(arrived.is_some_and(|arrived| arrived == body));
    assert!(parts >= (4 << 20) / PAYLOAD, "the prompt went out in {parts} frames");
    // More tokens than the stream's window holds: they were granted meanwhile.
    assert!(tokens * 108 > 16 << 10 && grants > 0, "{tokens} tokens, {grants} grants");
    assert!(asked >= parts / 32);
}

#[test]
fn a_reader_that_stops_holds_one_stream_and_a_bounded_number_of_bytes() {
    let mut pair = Pair::established(&limits());
    let (unread, read) = (pair.open(b"a"), pair.open(b"b"));
    for seed in 0..1000 {
        pair.server.send(unread, message(50, seed)).unwrap();
    }
    pair.settle();
    let held: usize = pair.client.streams[&unread].inbound.messages.iter().map(|m| m.0.len()).sum();
    assert!((1000..=4 << 10).contains(&held), "{held}");
    assert!(!pair.server.has_room(unread) || pair.server.streams[&unread].outbound.queued > 0);
    pair.server.send(read, message(9, 0)).unwrap();
    pair.server.finish(read);
    pair.settle();
    assert!(matches!(pair.client.recv(read), Recv::Message(_)));
    assert!(matches!(pair.client.recv(read), Recv::Complete));
    // Empty messages cost as well.
    let empty = pair.open(b"c");
    for _ in 0..5000 {
        pair.server.send(empty, Bytes::new()).unwrap();
    }
    pair.settle();
    assert!(pair.client.streams[&empty].inbound.messages.len() <= (4 << 10) / 8);
    pair.client.kill(unread);
    pair.client.kill(empty);
    pair.settle();
    pair.assert_nothing_is_held();
}

#[test]
fn a_kill_at_the_client_and_a_failure_at_the_server_end_the_other_side() {
    let mut pair = Pair::established(&limits());
    let id = pair.open(b"a");
    pair.client.stop(id);
    pair.settle();
    assert!(matches!(pair.server.poll_event(), Some(Event::Stopped(stopped)) if stopped == id));
    pair.server.send(id, message(100, 0)).unwrap();
    pair.client.kill(id);
    pair.settle();
    assert!(matches!(pair.server.poll_event(), Some(Event::Killed(killed)) if killed == id));
    pair.assert_nothing_is_held();

    let id = pair.open(b"a");
    pair.server.send(id, message(100, 0)).unwrap();
    pair.settle();
    let error = Error::new(ErrorKind::Overloaded, "full").unprocessed();
    pair.server.fail(id, error);
    pair.settle();
    assert!(matches!(pair.client.recv(id), Recv::Message(_)));
    let Recv::Failed(error) = pair.client.recv(id) else { unreachable!() };
    assert_eq!((error.kind(), error.message()), (ErrorKind::Overloaded, "full"));
    assert!(error.is_retryable());
    pair.assert_nothing_is_held();
}

#[test]
fn a_request_that_was_never_sent_provably_did_not_start() {
    let mut pair = Pair::established(&limits());
    let sent = pair.open(b"a");
    let unsent = pair.client.open(&Head::example(), Bytes::new()).unwrap();
    pair.client.close(ErrorKind::Unavailable, "the connection broke");
    for (id, is_retryable) in [(sent, false), (unsent, true)] {
        let Recv::Failed(error) = pair.client.recv(id) else { unreachable!() };
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unavailable, is_retryable));
    }
    assert!(pair.client.open(&Head::example(), Bytes::new()).unwrap_err().is_retryable());
}

#[test]
fn going_away_lets_what_runs_finish_and_refuses_the_rest_as_not_started() {
    let mut pair = Pair::established(&limits());
    let running = pair.open(b"a");
    pair.server.go_away();
    // Opened before the word arrives.
    let late = pair.client.open(&Head::example(), Bytes::from_static(b"b")).unwrap();
    pair.client.transmit(&mut pair.to_server, 1 << 20);
    pair.settle();
    let Recv::Failed(error) = pair.client.recv(late) else { unreachable!() };
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unavailable, true));
    assert!(!pair.client.is_open());
    pair.server.send(running, message(3, 0)).unwrap();
    pair.server.finish(running);
    pair.settle();
    assert!(matches!(pair.client.recv(running), Recv::Message(_)));
    assert!(matches!(pair.client.recv(running), Recv::Complete));
    pair.assert_nothing_is_held();
}

#[test]
fn streams_beyond_the_limit_are_refused_on_both_sides() {
    let small = Limits { streams_max: 2, ..limits() };
    let mut pair = Pair::established(&small);
    let first = pair.open(b"a");
    pair.open(b"b");
    let refused = pair.client.open(&Head::example(), Bytes::new()).unwrap_err();
    assert_eq!((refused.kind(), refused.is_retryable()), (ErrorKind::Overloaded, true));
    // A client that does not count is refused by the server.
    pair.client.peer.as_mut().unwrap().streams_max = 9;
    let id = pair.client.open(&Head::example(), Bytes::new()).unwrap();
    pair.settle();
    let Recv::Failed(error) = pair.client.recv(id) else { unreachable!() };
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Overloaded, true));
    pair.client.kill(first);
    pair.settle();
    assert!(matches!(pair.server.poll_event(), Some(Event::Killed(_))));
    pair.open(b"c");
}

#[test]
fn a_silent_peer_is_asked_and_then_given_up() {
    let mut pair = Pair::established(&Limits::default());
    let id = pair.open(b"a");
    let Limits { ping_after, dead_after, .. } = Limits::default();
    assert_eq!(pair.client.poll_timeout(), Some(pair.now + ping_after));
    pair.now += ping_after;
    pair.client.on_timeout(pair.now);
    pair.settle();
    assert_eq!(pair.client.poll_timeout(), Some(pair.now + ping_after), "it answered");
    pair.now += ping_after;
    pair.client.on_timeout(pair.now);
    // From here on nothing arrives.
    assert_eq!(pair.client.poll_timeout(), Some(pair.now + dead_after - ping_after));
    pair.client.on_timeout(pair.now + dead_after - ping_after);
    assert!(pair.client.is_closed());
    let Recv::Failed(error) = pair.client.recv(id) else { unreachable!() };
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unavailable, false));
}

#[test]
fn a_peer_that_breaks_the_rules_is_dropped() {
    let put = |kind, flags, stream, payload: &[u8]| {
        let mut out = BytesMut::new();
        frame::put(&mut out, kind, flags, stream, payload);
        out
    };
    let body = Head::example().encode().unwrap();
    let data = [0; PAYLOAD];
    let broken: Vec<(&str, Vec<BytesMut>)> = vec![
        ("data on a stream that was never opened", vec![put(Kind::Data, 0, 9, b"x")]),
        ("an answer from a client", vec![put(Kind::End, 0, 1, &[0; 8])]),
        ("a second hello", vec![put(Kind::Hello, 0, 0, &[])]),
        ("a stream opened twice", vec![put(Kind::Open, 0, 1, &body), put(Kind::Open, 0, 1, &body)]),
        ("a body behind its end", vec![put(Kind::Open, 0, 1, &body), put(Kind::Data, 0, 1, b"x")]),
        (
            "credit overrun",
            vec![put(Kind::Open, frame::MORE, 1, &body), put(Kind::Data, frame::MORE, 1, &data)],
        ),
        ("a window that overflows", vec![put(Kind::Window, 0, 0, &u32::MAX.to_le_bytes())]),
        ("a window cut short", vec![put(Kind::Window, 0, 0, &[1])]),
        ("a head cut short", vec![put(Kind::Open, 0, 1, &body[..9])]),
    ];
    for (name, frames) in broken {
        let mut pair = Pair::established(&limits());
        let mut bytes: BytesMut = frames.concat()[..].into();
        let error = pair.server.receive(&mut bytes, pair.now).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{name}");
        assert!(pair.server.is_closed() && pair.server.streams() == 0, "{name}");
    }
    let mut pair = Pair::new(&limits());
    let mut early = put(Kind::Ping, 0, 0, &[0; 8]);
    assert!(pair.server.receive(&mut early, pair.now).is_err(), "before the hello");
}

#[test]
fn a_peer_that_asks_and_does_not_read_is_bounded() {
    let mut pair = Pair::established(&limits());
    let mut pings = BytesMut::new();
    for at in 0..100_000u64 {
        frame::put(&mut pings, Kind::Ping, 0, 0, &at.to_le_bytes());
    }
    pair.server.receive(&mut pings, pair.now).unwrap();
    assert!(pair.server.control.len() < 100 && pair.server.pong == Some(99_999));
    pair.server.go_away();
    let mut opens = BytesMut::new();
    for id in 1..100_000 {
        frame::put(&mut opens, Kind::Open, 0, id, &Head::example().encode().unwrap());
    }
    // Each is refused; the refusals are not read.
    let _ = pair.server.receive(&mut opens, pair.now);
    assert!(pair.server.is_closed());
}

#[test]
fn messages_that_arrive_are_bounded_in_all() {
    let small = Limits { assembly_bytes_max: 100_000, ..limits() };
    let mut pair = Pair::established(&small);
    let id = pair.client.open(&Head::example(), message(200_000, 0)).unwrap();
    pair.settle();
    let Recv::Failed(error) = pair.client.recv(id) else { unreachable!() };
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Overloaded, true));
    pair.assert_nothing_is_held();
    let id = pair.open(b"a");
    pair.server.send(id, message(200_000, 0)).unwrap();
    pair.settle();
    let Recv::Failed(error) = pair.client.recv(id) else { unreachable!() };
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    assert!(matches!(pair.server.poll_event(), Some(Event::Killed(killed)) if killed == id));
    pair.settle();
    pair.assert_nothing_is_held();
}

/// The connection is cut behind every byte: an answer is complete only if all of it arrived.
#[test]
fn no_cut_makes_a_short_answer_look_complete() {
    let mut pair = Pair::established(&Limits::default());
    let ids = [pair.open(b"a"), pair.open(b"b")];
    for (index, id) in ids.into_iter().enumerate() {
        pair.server.accept(id);
        (0..=index).for_each(|seed| pair.server.send(id, message(20, seed)).unwrap());
        pair.server.finish(id);
    }
    let mut answer = BytesMut::new();
    pair.server.transmit(&mut answer, 1 << 20);
    for cut in 0..=answer.len() {
        let mut pair = Pair::established(&Limits::default());
        let ids = [pair.open(b"a"), pair.open(b"b")];
        let mut bytes: BytesMut = answer[..cut].into();
        pair.client.receive(&mut bytes, pair.now).unwrap();
        pair.client.close(ErrorKind::Unavailable, "cut");
        for (index, id) in ids.into_iter().enumerate() {
            let mut messages = 0;
            let is_complete = loop {
                match pair.client.recv(id) {
                    Recv::Message(_) => messages += 1,
                    Recv::Complete => break true,
                    Recv::Failed(_) => break false,
                    Recv::Pending => unreachable!("the connection is closed"),
                }
            };
            assert!(!is_complete || messages == index + 1, "cut at {cut}");
        }
        assert_eq!(pair.client.streams(), 0);
    }
}

#[test]
fn small_messages_that_are_due_together_share_a_frame() {
    let mut pair = Pair::established(&Limits::default());
    let id = pair.open(b"ask");
    pair.server.accept(id);
    let lens = [3, 0, 127, 128, 1024, 1025, 5, 6];
    let messages: Vec<_> = (0..).zip(lens).map(|(seed, len)| message(len, seed)).collect();
    for message in &messages {
        pair.server.send(id, message.clone()).unwrap();
    }
    pair.server.finish(id);
    pair.server.transmit(&mut pair.to_client, 1 << 20);
    let (mut frames, mut rest) = (Vec::new(), &pair.to_client[..]);
    while let Some(header) = frame::Header::decode(rest).unwrap() {
        frames.push((header.kind, header.flags));
        rest = &rest[frame::HEADER_BYTES + header.len..];
    }
    let batch = (Kind::Data, frame::BATCH);
    assert_eq!(frames, [(Kind::Accept, 0), batch, (Kind::Data, 0), batch, (Kind::End, 0)]);
    pair.settle();
    for expected in messages {
        assert!(matches!(pair.client.recv(id), Recv::Message(message) if message == expected));
    }
    assert!(matches!(pair.client.recv(id), Recv::Complete));
    pair.settle();
    pair.assert_nothing_is_held();
}

#[test]
fn batches_stop_at_the_credit_and_go_on_when_it_is_back() {
    let mut pair = Pair::established(&limits());
    let id = pair.open(b"ask");
    for seed in 0..1000 {
        pair.server.send(id, message(20, seed)).unwrap();
    }
    pair.server.finish(id);
    pair.settle();
    let mut seen = 0;
    while let Recv::Message(got) = pair.client.recv(id) {
        assert_eq!(got, message(20, seen));
        seen += 1;
        if seen == 1 {
            // A window of 4 KiB holds as many as cost 28 each.
            let held = pair.client.streams[&id].inbound.messages.len();
            assert_eq!(held + 1, (4 << 10) / 28);
        }
        pair.settle();
    }
    assert_eq!(seen, 1000);
    assert!(pair.client.streams.is_empty());
    pair.assert_nothing_is_held();
}

#[test]
fn a_bad_batch_closes_the_connection() {
    let large = [&[0x81, 8][..], &[7; 1025]].concat();
    for batch in [&[][..], &[5, 1, 2], &[0x80], &[1, 7, 9], &[0x81, 0, 7], &large] {
        let mut pair = Pair::established(&Limits::default());
        let id = pair.open(b"ask");
        frame::put(&mut pair.to_client, Kind::Data, frame::BATCH, id, batch);
        let error = pair.client.receive(&mut pair.to_client, pair.now).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol);
        assert!(matches!(pair.client.recv(id), Recv::Failed(_)));
    }
}
