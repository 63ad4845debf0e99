//! What a side allows its peer, and what becomes of what is beyond.

use super::*;

#[test]
fn a_share_that_shrinks_lets_what_runs_go_on_and_refuses_what_crossed_it() {
    let mut pair = Pair::established(&limits());
    let running = [pair.open(b"a"), pair.open(b"b")];
    pair.server.set_streams_max(2);
    // Opened before the word arrives.
    let late = pair.client.open(&Head::example(), Bytes::from_static(b"late")).unwrap();
    let body = message(3 * PAYLOAD, 0);
    let late_and_large = pair.client.open(&Head::example(), body).unwrap();
    pair.client.transmit(&mut pair.to_server, 1 << 20);
    pair.settle();
    for id in [late, late_and_large] {
        let Recv::Failed(error) = pair.client.recv(id) else { unreachable!() };
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Overloaded, true));
    }
    assert!(pair.server.poll_event().is_none(), "no request was seen");
    let refused = pair.client.open(&Head::example(), Bytes::new()).unwrap_err();
    assert_eq!((refused.kind(), refused.is_retryable()), (ErrorKind::Overloaded, true));
    // Still less: those that run go on.
    pair.server.set_streams_max(1);
    for id in running {
        pair.server.send(id, message(3, 0)).unwrap();
        pair.server.finish(id);
    }
    pair.settle();
    for id in running {
        assert!(matches!(pair.client.recv(id), Recv::Message(_)));
        assert!(matches!(pair.client.recv(id), Recv::Complete));
    }
    let one = pair.open(b"c");
    assert!(pair.client.open(&Head::example(), Bytes::new()).is_err());
    pair.server.set_streams_max(2);
    pair.settle();
    pair.server.finish(one);
    let two = pair.open(b"d");
    pair.server.finish(two);
    pair.settle();
    assert!(matches!(pair.client.recv(one), Recv::Complete));
    assert!(matches!(pair.client.recv(two), Recv::Complete));
    pair.settle();
    pair.assert_nothing_is_held();
}

#[test]
fn of_many_shares_the_last_is_told_and_never_none_or_more_than_the_limit() {
    let mut pair = Pair::established(&Limits { streams_max: 100, ..limits() });
    for share in [90, 7, 0] {
        pair.server.set_streams_max(share);
    }
    assert!(pair.server.has_control());
    pair.server.transmit(&mut pair.to_client, 1 << 20);
    let mut expected = BytesMut::new();
    frame::put(&mut expected, Kind::Credits, 0, 0, &1u32.to_le_bytes());
    assert_eq!(pair.to_client, expected);
    pair.settle();
    // What the client knows already is not said again.
    pair.server.set_streams_max(50);
    pair.server.set_streams_max(1);
    assert!(!pair.server.has_control());
    pair.server.set_streams_max(u32::MAX);
    pair.settle();
    assert_eq!(pair.client.peer.as_ref().unwrap().streams_max, 100);
}

#[test]
fn what_follows_of_an_answer_too_large_is_no_breach_and_its_credit_comes_back() {
    let small = Limits { assembly_bytes_max: 20_000, ..Limits::default() };
    let mut pair = Pair::established(&small);
    let (large, other) = (pair.open(b"a"), pair.open(b"b"));
    pair.server.send(large, message(100_000, 0)).unwrap();
    pair.server.send(large, message(10, 0)).unwrap();
    pair.server.finish(large);
    // All of it is on its way before the refusal arrives.
    while pair.server.transmit(&mut pair.to_client, 1 << 20) {}
    assert!(pair.to_client.len() > 100_000 && !pair.server.has_stream(large));
    let mut late = pair.to_client.split_off(60_000);
    let now = pair.now;
    pair.client.receive(&mut pair.to_client, now).unwrap();
    pair.to_client.unsplit(late.split());
    pair.client.receive(&mut pair.to_client, now).unwrap();
    assert!(!pair.client.is_closed() && pair.client.assembling == 0);
    let Recv::Failed(error) = pair.client.recv(large) else { unreachable!() };
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Overloaded, false));
    pair.settle();
    pair.server.send(other, message(9, 0)).unwrap();
    pair.server.finish(other);
    pair.settle();
    assert!(matches!(pair.client.recv(other), Recv::Message(got) if got == message(9, 0)));
    assert!(matches!(pair.client.recv(other), Recv::Complete));
    pair.settle();
    pair.assert_nothing_is_held();
}

#[test]
fn a_refused_answer_that_nobody_looks_at_holds_no_credit() {
    let small = Limits { assembly_bytes_max: 20_000, ..Limits::default() };
    let mut pair = Pair::established(&small);
    let large = pair.open(b"a");
    pair.server.send(large, message(200_000, 0)).unwrap();
    pair.settle();
    let mut events = std::iter::from_fn(|| pair.server.poll_event());
    assert!(events.any(|event| matches!(event, Event::Killed(killed) if killed == large)));
    // Its failure is still to be read.
    assert_eq!((pair.client.streams(), pair.server.streams()), (1, 0));
    assert_eq!(pair.client.credit + pair.client.owed, small.connection_window);
    pair.client.kill(large);
    pair.settle();
    pair.assert_nothing_is_held();
}

#[test]
fn the_last_stream_number_makes_the_connection_go_and_what_runs_ends() {
    let mut pair = Pair::established(&limits());
    pair.client.next_stream = u32::MAX - 1;
    let last = pair.open(b"last");
    assert_eq!(last, u32::MAX - 1);
    for _ in 0..3 {
        let error = pair.client.open(&Head::example(), Bytes::new()).unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unavailable, true));
    }
    assert!(!pair.client.is_open());
    let mut gone = 0;
    while let Some(event) = pair.client.poll_event() {
        gone += u32::from(matches!(event, Event::GoingAway));
    }
    assert_eq!(gone, 1, "it is said once");
    pair.server.send(last, message(3, 0)).unwrap();
    pair.server.finish(last);
    pair.settle();
    assert!(matches!(pair.client.recv(last), Recv::Message(_)));
    assert!(matches!(pair.client.recv(last), Recv::Complete));
    pair.settle();
    pair.assert_nothing_is_held();
}

#[test]
fn a_stop_that_overtakes_the_body_of_its_request_is_told_behind_it() {
    for is_early in [true, false] {
        let mut pair = Pair::established(&limits());
        let body = message(3 * PAYLOAD, 0);
        let id = pair.client.open(&Head::example(), body.clone()).unwrap();
        if !is_early {
            pair.client.transmit(&mut pair.to_server, 1);
        }
        pair.client.stop(id);
        pair.settle();
        let Some(Event::Opened { stream, body: arrived, .. }) = pair.server.poll_event() else {
            unreachable!("no request")
        };
        assert_eq!((stream, &arrived), (id, &body));
        assert!(matches!(pair.server.poll_event(), Some(Event::Stopped(stopped)) if stopped == id));
    }
}

#[test]
fn a_large_message_keeps_no_memory_behind_it() {
    let mut pair = Pair::established(&Limits::default());
    let id = pair.client.open(&Head::example(), message(100_000, 0)).unwrap();
    pair.settle();
    let Some(Event::Opened { body, .. }) = pair.server.poll_event() else { unreachable!() };
    assert!(body.is_unique());
    for seed in 0..2 {
        pair.server.send(id, message(100_000, seed)).unwrap();
        pair.settle();
        let Recv::Message(answer) = pair.client.recv(id) else { unreachable!() };
        assert!(answer.is_unique());
        pair.settle();
    }
}

#[test]
fn messages_of_no_bytes_are_bounded_too() {
    let mut pair = Pair::established(&limits());
    let id = pair.open(b"a");
    let mut sent = 0;
    while pair.server.has_room(id) {
        pair.server.send(id, Bytes::new()).unwrap();
        sent += 1;
        assert!(sent <= 1 << 20, "an engine that is ahead is never told to wait");
    }
    pair.server.finish(id);
    let mut received = 0;
    loop {
        pair.settle();
        match pair.client.recv(id) {
            Recv::Message(message) => received += usize::from(message.is_empty()),
            Recv::Complete => break,
            other => unreachable!("{other:?}"),
        }
    }
    assert_eq!(received, sent);
}

#[test]
fn what_the_client_has_killed_is_cancelled_to_whoever_still_asks() {
    let mut pair = Pair::established(&limits());
    let id = pair.open(b"a");
    pair.client.kill(id);
    assert!(pair.client.is_decided(id) && !pair.client.is_accepted(id));
    let Recv::Failed(error) = pair.client.recv(id) else { unreachable!() };
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Cancelled, false));
}
