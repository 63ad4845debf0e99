use super::*;

/// Tells both sides the time as it comes, until `end`; what they say arrives at once.
fn pass(pair: &mut Pair, end: Instant) {
    loop {
        pair.settle();
        let sides = [&pair.client, &pair.server];
        let Some(due) = sides.iter().filter_map(|side| side.poll_timeout()).min() else { return };
        if due > end {
            pair.now = end;
            return;
        }
        assert!(due > pair.now || pair.client.is_closed(), "a time that comes to nothing");
        pair.now = due;
        for side in [&mut pair.client, &mut pair.server] {
            if side.poll_timeout() == Some(due) {
                side.on_timeout(due);
            }
        }
    }
}

const IDLE: Duration = Duration::from_secs(60);

fn limits() -> Limits {
    Limits { idle_after: IDLE, ..Limits::default() }
}

#[test]
fn a_peer_that_drips_its_hello_is_given_up_as_one_that_is_silent() {
    let mut pair = Pair::new(&limits());
    pair.client.transmit(&mut pair.to_server, 1 << 20);
    pair.server.transmit(&mut pair.to_client, 1 << 20);
    let hello = [pair.to_server.split(), pair.to_client.split()];
    let begun = pair.now;
    for (side, hello) in [&mut pair.server, &mut pair.client].into_iter().zip(hello) {
        assert_eq!(hello.len(), frame::HELLO_BYTES);
        let (mut now, mut arrived) = (begun, BytesMut::new());
        for byte in &hello[..hello.len() - 1] {
            arrived.extend_from_slice(&[*byte]);
            side.receive(&mut arrived, now).unwrap();
            now += Duration::from_millis(200);
            if side.poll_timeout().is_some_and(|due| due <= now) {
                side.on_timeout(now);
            }
        }
        assert!(side.is_closed(), "given up before it has said all but the last byte");
    }
}

#[test]
fn an_idle_connection_is_taken_leave_of_and_one_that_is_in_use_is_not() {
    let mut pair = Pair::established(&limits());
    let id = pair.open(b"a");
    let begun = pair.now;
    pass(&mut pair, begun + 5 * IDLE);
    assert!(pair.client.is_open() && pair.server.is_open(), "a stream runs");
    assert_eq!(pair.server.idle_since(), None);
    pair.server.finish(id);
    pair.settle();
    assert!(matches!(pair.client.recv(id), Recv::Complete));
    let ended = pair.now;
    pass(&mut pair, ended + IDLE - Duration::from_millis(1));
    assert!(pair.client.is_open() && pair.server.is_open(), "idle, and not for long");
    // The accuracy of what it knows of time is a sign of life.
    pass(&mut pair, ended + IDLE + Limits::default().ping_after);
    assert!(!pair.client.is_open() && pair.server.has_said_farewell());
    assert!(matches!(pair.server.poll_event(), Some(Event::GoingAway)));
    assert_eq!(pair.server.idle_since(), None, "it is not asked to leave twice");
    assert!(!pair.client.is_closed() && !pair.server.is_closed(), "in order");
    pair.assert_nothing_is_held();
}

#[test]
fn requests_that_come_and_go_between_two_looks_at_the_clock_are_use() {
    let mut pair = Pair::established(&limits());
    let begun = pair.now;
    for at in 1..20 {
        let id = pair.open(b"a");
        pair.server.finish(id);
        pair.settle();
        assert!(matches!(pair.client.recv(id), Recv::Complete));
        pass(&mut pair, begun + at * IDLE / 2);
        assert!(pair.client.is_open());
    }
}

#[test]
fn a_request_that_crosses_the_farewell_was_not_started_whichever_word_is_heard_first() {
    for is_refused_first in [false, true] {
        let mut pair = Pair::established(&limits());
        let begun = pair.now;
        pass(&mut pair, begun + IDLE - Duration::from_millis(1));
        let id = pair.client.open(&Head::example(), Bytes::from_static(b"late")).unwrap();
        pair.now += Duration::from_millis(1);
        pair.server.on_timeout(pair.now);
        if is_refused_first {
            // The server hears it behind its own word, and is still there to say no.
            pair.client.transmit(&mut pair.to_server, 1 << 20);
            pair.server.receive(&mut pair.to_server, pair.now).unwrap();
        } else {
            pair.server.transmit(&mut pair.to_client, 1 << 20);
            pair.client.receive(&mut pair.to_client, pair.now).unwrap();
        }
        pair.settle();
        let Recv::Failed(error) = pair.client.recv(id) else { unreachable!() };
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unavailable, true));
        while let Some(event) = pair.server.poll_event() {
            assert!(matches!(event, Event::GoingAway), "{event:?}");
        }
        pair.assert_nothing_is_held();
    }
}

#[test]
fn limits_that_end_connections_at_once_are_refused() {
    let limits = Limits { idle_after: Duration::ZERO, ..limits() };
    let error = limits.check().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().contains("idle_after"), "{error}");
    // So long that no clock shows it: never.
    let never = Limits { idle_after: Duration::MAX, ..Limits::default() };
    never.check().unwrap();
    assert!(Pair::established(&never).server.poll_timeout().is_some());
}
