//! How streams share the credit of a connection, and in which order they go.

use super::*;

/// Opens a stream whose answer nobody reads.
fn unread(pair: &mut Pair, bytes: usize) -> u32 {
    let id = pair.open(b"slow");
    (0..2).for_each(|_| pair.server.send(id, vec![1; bytes].into()).unwrap());
    id
}

/// Asks once, and reads the answer as it arrives.
fn ask(pair: &mut Pair, bytes: usize) {
    let id = pair.open(b"prompt");
    pair.server.send(id, message(bytes, 3)).unwrap();
    pair.server.send(id, message(4, 4)).unwrap();
    pair.server.finish(id);
    for expected in [message(bytes, 3), message(4, 4)] {
        pair.settle();
        match pair.client.recv(id) {
            Recv::Message(got) => assert_eq!(got, expected),
            other => unreachable!("{bytes} bytes: {other:?}"),
        }
    }
    pair.settle();
    assert!(matches!(pair.client.recv(id), Recv::Complete));
    pair.settle();
}

/// Ends what was not read, and finds nothing left behind.
fn kill(pair: &mut Pair, ids: &[u32]) {
    ids.iter().for_each(|id| pair.client.kill(*id));
    pair.settle();
    pair.assert_nothing_is_held();
}

#[test]
fn readers_that_stop_do_not_stop_those_that_read() {
    for (unread_max, one_by_one) in [(16, true), (16, false), (300, true), (300, false)] {
        let mut pair = Pair::established(&Limits::default());
        let mut slow = Vec::new();
        for _ in 0..unread_max {
            slow.push(unread(&mut pair, 150 << 10));
            if one_by_one {
                pair.settle();
            }
        }
        pair.settle();
        [0, 100, 1000, 100 << 10].into_iter().for_each(|bytes| ask(&mut pair, bytes));
        kill(&mut pair, &slow);
    }
}

#[test]
fn not_even_all_streams_but_one_stop_the_last() {
    let limits = Limits { streams_max: 64, ..limits() };
    let mut pair = Pair::established(&limits);
    // 4 KiB are kept for streams: 256 bytes each, for 16 of them.
    let mut slow = Vec::new();
    for at in 0..15 {
        slow.push(unread(&mut pair, 50 + 60 * at));
        pair.settle();
    }
    [0, 100, 20_000].into_iter().for_each(|bytes| ask(&mut pair, bytes));
    kill(&mut pair, &slow);

    let mut pair = Pair::established(&Limits::default());
    let all = Limits::default().streams_max - 1;
    let slow: Vec<_> = (0..all).map(|_| unread(&mut pair, 10_000)).collect();
    pair.settle();
    [0, 100, 5_000].into_iter().for_each(|bytes| ask(&mut pair, bytes));
    kill(&mut pair, &slow);
}

#[test]
fn readers_that_stop_together_hold_the_same_and_leave_as_much() {
    let limits = Limits { stream_window: 4 << 20, ..Limits::default() };
    for count in [1, 3, 8] {
        let mut pair = Pair::established(&limits);
        let ids: Vec<_> = (0..count).map(|_| pair.open(b"slow")).collect();
        for (id, seed) in ids.iter().flat_map(|id| (0..200).flat_map(move |seed| [(*id, seed); 25]))
        {
            pair.server.send(id, vec![seed; 992].into()).unwrap();
        }
        pair.settle();
        // A quarter is kept for streams with little.
        let share: u32 = (3 << 20) / (count + 1);
        for id in &ids {
            let held = pair.client.streams[id].inbound.held();
            assert!(share.abs_diff(held) <= 2 * 17_000, "{held} of {count}, not {share}");
        }
        assert!(pair.server.send_credit + 17_000 >= share + (1 << 20));
        kill(&mut pair, &ids);
    }
}

#[test]
fn the_smallest_windows_do_not_run_dry() {
    let windows = [(4 << 10, 4 << 10), (1 << 20, 4 << 10), (4 << 10, 1 << 20)];
    for (stream_window, connection_window) in windows {
        let limits = Limits { stream_window, connection_window, ..Limits::default() };
        let mut pair = Pair::established(&limits);
        ask(&mut pair, 300_000);
        // One that has taken part of what it may when others take the rest.
        let id = pair.open(b"late");
        for seed in 0..10 {
            pair.server.send(id, message(40, seed)).unwrap();
            pair.settle();
            assert!(matches!(pair.client.recv(id), Recv::Message(_)));
        }
        let slow = [(); 3].map(|()| unread(&mut pair, 5_000));
        pair.settle();
        for seed in 0..100 {
            pair.server.send(id, message(40 * seed, seed)).unwrap();
            pair.settle();
            let Recv::Message(got) = pair.client.recv(id) else { unreachable!("message {seed}") };
            assert_eq!(got, message(40 * seed, seed));
        }
        ask(&mut pair, 10_000);
        pair.client.kill(id);
        kill(&mut pair, &slow);
    }
}

#[test]
fn what_was_taken_while_credit_was_plenty_is_granted_once_it_is_scarce() {
    let limits = Limits { stream_window: 1 << 20, ..Limits::default() };
    let mut pair = Pair::established(&limits);
    let id = pair.open(b"prompt");
    // As much as is not granted again yet.
    pair.server.send(id, message(200_000, 0)).unwrap();
    pair.settle();
    assert!(matches!(pair.client.recv(id), Recv::Message(_)));
    let slow: Vec<_> = (0..100)
        .map(|_| {
            pair.settle();
            unread(&mut pair, 600_000)
        })
        .collect();
    pair.settle();
    assert_eq!(pair.client.streams[&id].inbound.owed, 0);
    pair.server.send(id, message(10_000, 1)).unwrap();
    pair.settle();
    assert!(matches!(pair.client.recv(id), Recv::Message(_)));
    pair.client.kill(id);
    kill(&mut pair, &slow);
}

#[test]
fn streams_that_wait_for_credit_are_asked_once_and_not_at_each_write() {
    let mut pair = Pair::established(&limits());
    let slow: Vec<_> = (0..40).map(|_| unread(&mut pair, 3000)).collect();
    pair.settle();
    assert!(pair.server.first.is_empty() && pair.server.bulk.is_empty());
    let starved = pair.server.starved.len();
    assert!((1..=40).contains(&starved), "{starved}");
    // More to send does not make them wait twice, and an end takes them out.
    slow.iter().for_each(|id| pair.server.send(*id, message(10, 0)).unwrap());
    pair.settle();
    assert_eq!(pair.server.starved.len(), starved);
    kill(&mut pair, &slow);
    assert!(pair.server.starved.is_empty());
}

#[test]
fn streams_that_come_and_go_leave_no_trace_in_the_list_of_grants() {
    let mut pair = Pair::established(&Limits::default());
    for _ in 0..1000 {
        let id = pair.open(b"a");
        pair.server.send(id, message(10, 0)).unwrap();
        pair.settle();
        assert!(matches!(pair.client.recv(id), Recv::Message(_)));
        pair.client.kill(id);
    }
    assert!(pair.client.owing.len() < 200, "{}", pair.client.owing.len());
}

/// Returns kind and stream of each frame.
fn frames(mut bytes: &[u8]) -> Vec<(Kind, u32)> {
    let mut frames = Vec::new();
    while let Some(header) = frame::Header::decode(bytes).unwrap() {
        frames.push((header.kind, header.stream));
        bytes = &bytes[frame::HEADER_BYTES + header.len..];
    }
    frames
}

#[test]
fn ends_cost_no_credit_and_wait_for_nobody_who_needs_some() {
    let mut pair = Pair::established(&limits());
    let slow: Vec<_> = (0..40).map(|_| unread(&mut pair, 3000)).collect();
    pair.settle();
    let others = [pair.open(b"needs credit"), pair.open(b"ends"), pair.open(b"fails")];
    pair.server.send(others[0], message(5000, 0)).unwrap();
    pair.server.finish(others[1]);
    pair.server.fail(others[2], Error::internal("boom"));
    pair.server.transmit(&mut pair.to_client, 1 << 20);
    let sent = frames(&pair.to_client);
    assert!(sent.contains(&(Kind::End, others[1])), "{sent:?}");
    assert!(sent.contains(&(Kind::Reset, others[2])), "{sent:?}");
    pair.settle();
    assert!(matches!(pair.client.recv(others[1]), Recv::Complete));
    assert!(matches!(pair.client.recv(others[2]), Recv::Failed(_)));
    pair.client.kill(others[0]);
    kill(&mut pair, &slow);
}

#[test]
fn an_end_goes_before_the_bulk_of_others_once_it_is_next() {
    let mut pair = Pair::established(&Limits::default());
    let others = [(); 4].map(|()| pair.open(b"bulk"));
    let id = pair.open(b"a");
    for other in others {
        pair.server.send(other, message(100_000, 0)).unwrap();
    }
    pair.server.send(id, message(4, 0)).unwrap();
    pair.server.transmit(&mut pair.to_client, 1);
    pair.server.transmit(&mut pair.to_client, 90_000);
    pair.server.send(id, message(2000, 0)).unwrap();
    pair.server.finish(id);
    let before = pair.to_client.len();
    pair.server.transmit(&mut pair.to_client, 1 << 20);
    let sent = frames(&pair.to_client[before..]);
    let at = sent.iter().position(|frame| *frame == (Kind::Data, id)).unwrap();
    assert_eq!(sent[at + 1], (Kind::End, id), "{sent:?}");
    assert!(sent.len() > at + 2, "bulk follows");
}

#[test]
fn nothing_goes_before_the_hello() {
    let mut pair = Pair::new(&limits());
    pair.client.transmit(&mut pair.to_server, 1 << 20);
    frame::put(&mut pair.to_server, Kind::Ping, 0, 0, &[7; 8]);
    pair.server.receive(&mut pair.to_server, pair.now).unwrap();
    pair.server.set_streams_max(3);
    pair.server.transmit(&mut pair.to_client, 1 << 20);
    let sent: Vec<_> = frames(&pair.to_client).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(sent, [Kind::Hello, Kind::Pong, Kind::Credits]);
}
