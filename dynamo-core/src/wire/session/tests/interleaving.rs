//! Two peers under random steps, deliveries in pieces, and cuts.

use std::collections::BTreeMap;

use super::*;

/// As many streams as have a part of the reserve.
fn limits() -> Limits {
    Limits { streams_max: 16, ..super::limits() }
}

#[derive(Debug, Clone)]
enum Step {
    Open(usize),
    Send(usize, usize),
    Finish(usize),
    Fail(usize),
    Kill(usize),
    Stop(usize),
    Recv(usize),
    /// Moves at most so many bytes to the server, or to the client.
    ToServer(usize),
    ToClient(usize),
    /// Lets the client have so many streams at once.
    Credits(u32),
    GoAway,
    Cut,
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![4 => 0usize..50, 2 => 0usize..3000, 1 => 0usize..40_000];
    let pick = 0usize..8;
    prop_oneof![
        6 => size.clone().prop_map(Step::Open),
        12 => (pick.clone(), size).prop_map(|(pick, size)| Step::Send(pick, size)),
        4 => pick.clone().prop_map(Step::Finish),
        1 => pick.clone().prop_map(Step::Fail),
        1 => pick.clone().prop_map(Step::Kill),
        1 => pick.clone().prop_map(Step::Stop),
        12 => pick.prop_map(Step::Recv),
        12 => (0usize..5000).prop_map(Step::ToServer),
        12 => (0usize..5000).prop_map(Step::ToClient),
        1 => (0u32..20).prop_map(Step::Credits),
        1 => Just(Step::GoAway),
        1 => Just(Step::Cut),
    ]
}

/// What became of a stream, by what each side was told.
#[derive(Debug, Default)]
struct Fate {
    body: Bytes,
    opened: u32,
    sent: Vec<Bytes>,
    finished: bool,
    failed: bool,
    received: usize,
    terminals: u32,
    killed: bool,
}

struct Run {
    pair: Pair,
    fates: BTreeMap<u32, Fate>,
    cut: bool,
}

impl Run {
    /// Picks one of the streams that the server answers.
    fn answered(&self, pick: usize) -> Option<u32> {
        let open = |fate: &Fate| fate.opened == 1 && !fate.finished && !fate.failed;
        let ids: Vec<_> =
            self.fates.iter().filter(|(_, fate)| open(fate)).map(|(id, _)| *id).collect();
        (!ids.is_empty()).then(|| ids[pick % ids.len()])
    }

    /// Picks one of the streams that the client waits for.
    fn awaited(&self, pick: usize) -> Option<u32> {
        let open = |fate: &Fate| fate.terminals == 0 && !fate.killed;
        let ids: Vec<_> =
            self.fates.iter().filter(|(_, fate)| open(fate)).map(|(id, _)| *id).collect();
        (!ids.is_empty()).then(|| ids[pick % ids.len()])
    }

    fn recv(&mut self, id: u32) -> bool {
        let fate = self.fates.get_mut(&id).unwrap();
        match self.pair.client.recv(id) {
            Recv::Message(message) => {
                assert!(message == fate.sent[fate.received], "stream {id}");
                fate.received += 1;
                true
            }
            Recv::Complete => {
                assert!(fate.finished && fate.received == fate.sent.len(), "stream {id}");
                fate.terminals += 1;
                false
            }
            Recv::Failed(error) => {
                assert!(!error.is_retryable() || fate.opened == 0, "stream {id}: {error}");
                let said = error.message() == "boom";
                assert!(!said || fate.failed && fate.received == fate.sent.len(), "stream {id}");
                fate.terminals += 1;
                false
            }
            Recv::Pending => false,
        }
    }

    fn events(&mut self) {
        while let Some(event) = self.pair.server.poll_event() {
            if let Event::Opened { stream, body, .. } = event {
                let fate = self.fates.get_mut(&stream).unwrap();
                assert_eq!(body, fate.body);
                fate.opened += 1;
            }
        }
        while self.pair.client.poll_event().is_some() {}
        let window = limits().stream_window as usize;
        assert!(self.pair.server.streams() <= limits().streams_max as usize);
        for side in [&self.pair.client, &self.pair.server] {
            let unread = side.streams.values().map(|stream| {
                stream.inbound.messages.iter().skip(1).map(|message| message.0.len()).sum()
            });
            assert!(unread.max().unwrap_or(0_usize) <= window, "unread messages are bounded");
        }
    }

    fn step(&mut self, step: Step, seed: usize) {
        let pair = &mut self.pair;
        match step {
            Step::Open(size) => {
                let body = message(size, seed);
                if let Ok(id) = pair.client.open(&Head::example(), body.clone()) {
                    self.fates.insert(id, Fate { body, ..Fate::default() });
                }
            }
            Step::Send(pick, size) => {
                let Some(id) = self.answered(pick) else { return };
                let message = message(size, seed);
                self.pair.server.send(id, message.clone()).unwrap();
                self.fates.get_mut(&id).unwrap().sent.push(message);
            }
            Step::Finish(pick) => {
                let Some(id) = self.answered(pick) else { return };
                self.pair.server.finish(id);
                self.fates.get_mut(&id).unwrap().finished = true;
            }
            Step::Fail(pick) => {
                let Some(id) = self.answered(pick) else { return };
                self.pair.server.fail(id, Error::internal("boom"));
                self.fates.get_mut(&id).unwrap().failed = true;
            }
            Step::Kill(pick) => {
                let Some(id) = self.awaited(pick) else { return };
                self.pair.client.kill(id);
                self.fates.get_mut(&id).unwrap().killed = true;
            }
            Step::Stop(pick) => {
                if let Some(id) = self.awaited(pick) {
                    self.pair.client.stop(id);
                }
            }
            Step::Recv(pick) => {
                if let Some(id) = self.awaited(pick) {
                    self.recv(id);
                }
            }
            Step::ToServer(bytes) if !self.cut => {
                pair.client.transmit(&mut pair.to_server, bytes);
                let len = pair.to_server.len().min(bytes);
                let mut part = pair.to_server.split_to(len);
                // What is cut in the middle of a frame waits for its rest.
                pair.server.receive(&mut part, pair.now).unwrap();
                let rest = std::mem::replace(&mut pair.to_server, part);
                pair.to_server.extend_from_slice(&rest);
            }
            Step::ToClient(bytes) if !self.cut => {
                pair.server.transmit(&mut pair.to_client, bytes);
                let len = pair.to_client.len().min(bytes);
                let mut part = pair.to_client.split_to(len);
                pair.client.receive(&mut part, pair.now).unwrap();
                let rest = std::mem::replace(&mut pair.to_client, part);
                pair.to_client.extend_from_slice(&rest);
            }
            Step::Credits(streams_max) => pair.server.set_streams_max(streams_max),
            Step::GoAway => pair.server.go_away(),
            Step::Cut => {
                self.cut = true;
                pair.client.close(ErrorKind::Unavailable, "cut");
                pair.server.close(ErrorKind::Unavailable, "cut");
            }
            Step::ToServer(_) | Step::ToClient(_) => {}
        }
    }

    /// Asks once more, and reads that answer alone: whatever the others hold, it gets through.
    fn ask_amid_the_unread(&mut self) {
        self.pair.server.set_streams_max(u32::MAX);
        self.pair.settle();
        self.events();
        let known = self.pair.client.peer.as_ref().unwrap().streams_max;
        assert_eq!(known, limits().streams_max, "the last word on streams has arrived");
        if self.pair.client.streams() == known as usize {
            self.step(Step::Kill(0), 0);
        }
        let Ok(id) = self.pair.client.open(&Head::example(), Bytes::new()) else {
            assert!(!self.pair.client.is_open());
            return;
        };
        self.fates.insert(id, Fate::default());
        for (seed, size) in [0, 9, 3000].into_iter().enumerate() {
            self.pair.settle();
            self.events();
            let message = message(size, seed);
            self.pair.server.send(id, message.clone()).unwrap();
            self.fates.get_mut(&id).unwrap().sent.push(message);
            self.pair.settle();
            assert!(self.recv(id), "a message of {size} bytes got through");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_stream_ends_once_and_as_it_was_told(
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut run =
            Run { pair: Pair::established(&limits()), fates: BTreeMap::new(), cut: false };
        for (seed, step) in steps.into_iter().enumerate() {
            run.step(step, seed);
            run.events();
        }
        if !run.cut {
            run.ask_amid_the_unread();
        }
        // Quiescence: everything arrives, everything is answered and read.
        loop {
            if !run.cut {
                run.pair.settle();
            }
            run.events();
            let ids: Vec<_> = run.fates.keys().copied().collect();
            let mut moved = false;
            for id in ids {
                let fate = run.fates.get_mut(&id).unwrap();
                if fate.opened == 1 && !fate.finished && !fate.failed {
                    run.pair.server.finish(id);
                    fate.finished = true;
                    moved = true;
                }
                if fate.terminals == 0 && !fate.killed {
                    let before = (fate.received, fate.terminals);
                    while run.recv(id) {}
                    let fate = &run.fates[&id];
                    moved |= before != (fate.received, fate.terminals);
                }
            }
            if !moved {
                break;
            }
        }
        for (id, fate) in &run.fates {
            prop_assert_eq!(fate.terminals, u32::from(!fate.killed), "stream {}", id);
            prop_assert!(fate.opened <= 1);
        }
        if run.cut {
            prop_assert_eq!((run.pair.client.streams(), run.pair.server.streams()), (0, 0));
        } else {
            run.pair.settle();
            run.events();
            run.pair.assert_nothing_is_held();
        }
    }

    /// Of a peer that mostly keeps to the rules.
    #[test]
    fn whatever_a_peer_says_nothing_panics_and_what_a_session_holds_is_accounted_for(
        to_server in prop::collection::vec(word(true), 0..60),
        to_client in prop::collection::vec(word(false), 0..60),
        asked in 1u32..4,
    ) {
        for (is_server, words) in [(true, &to_server), (false, &to_client)] {
            let mut pair = Pair::established(&limits());
            for _ in 0..asked {
                pair.open(b"ask");
            }
            let mut opened = asked;
            let side = if is_server { &mut pair.server } else { &mut pair.client };
            for (kind, flags, stream, payload) in words {
                let is_open = *kind == Kind::Open as u8;
                opened += u32::from(is_open);
                let mut said = BytesMut::new();
                let stream = if is_open { opened } else { 1 + stream % opened };
                frame::put(&mut said, Kind::Data, 0, stream, payload);
                said[3] = kind | flags << 4;
                let is_broken = side.receive(&mut said, pair.now).is_err();
                prop_assert!(!is_broken || side.is_closed());
                fuzz::check(side);
            }
        }
    }
}

/// Kind, flags, stream and payload of a frame.
fn word(to_server: bool) -> BoxedStrategy<(u8, u8, u32, Vec<u8>)> {
    let part = prop_oneof![3 => 0usize..40, 1 => 0usize..3000].prop_map(|len| vec![7; len]);
    let open = [&Head::example().encode().unwrap()[..], b"part"].concat();
    let more = prop_oneof![4 => Just(frame::MORE), 1 => Just(0)];
    let frame = |kind: Kind, payload: &[u8]| {
        (Just(kind as u8), Just(0), any::<u32>(), Just(payload.to_vec()))
    };
    let data = (Just(Kind::Data as u8), more.clone(), any::<u32>(), part);
    let anything = (0u8..16, 0u8..4, any::<u32>(), prop::collection::vec(any::<u8>(), 0..40));
    let common = prop_oneof![
        8 => data,
        2 => frame(Kind::Reset, b"\x05\x00"),
        1 => frame(Kind::Window, &[9, 0, 0, 0]),
        1 => frame(Kind::Ping, &[0; 8]),
    ];
    if to_server {
        let open = (Just(Kind::Open as u8), more, any::<u32>(), Just(open));
        let stop = frame(Kind::Stop, &[]);
        return prop_oneof![30 => common, 20 => open, 3 => stop, 1 => anything].boxed();
    }
    let batch = (Just(Kind::Data as u8), Just(frame::BATCH), any::<u32>(), Just(vec![1, 7, 0]));
    let end = frame(Kind::End, &[1, 0, 0, 0, 0, 0, 0, 0]);
    prop_oneof![30 => common, 5 => batch, 5 => end, 1 => anything].boxed()
}
