use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

/// Two processes, a link between them, and a carrier that can lose what it has.
struct World {
    client: Link,
    server: Option<Link>,
    /// On their way to the client, and to the server.
    on_way: [Vec<Bytes>; 2],
    sent: [Vec<u8>; 2],
    got: [Vec<u8>; 2],
    carried: usize,
    limits: Limits,
    now: Instant,
}

const CLIENT: usize = 0;
const SERVER: usize = 1;

fn limits() -> Limits {
    Limits { datagram_bytes_max: 100, unacked_bytes_max: 1000, ..Limits::default() }
}

fn never_dead() -> Limits {
    Limits { dead_after: Duration::from_secs(1 << 20), ..limits() }
}

impl World {
    fn new(limits: Limits) -> Self {
        #[expect(clippy::disallowed_methods, reason = "any time will do")]
        let now = Instant::now();
        Self {
            client: Link::connect(7, limits.clone(), now),
            server: None,
            on_way: Default::default(),
            sent: Default::default(),
            got: Default::default(),
            carried: 0,
            limits,
            now,
        }
    }

    fn open(limits: Limits) -> Self {
        let mut world = Self::new(limits);
        world.settle();
        assert_eq!((world.client.peer(), world.server().peer()), (Some(8), Some(7)));
        world
    }

    fn server(&mut self) -> &mut Link {
        self.server.as_mut().unwrap()
    }

    fn side(&mut self, side: usize) -> Option<&mut Link> {
        if side == CLIENT { Some(&mut self.client) } else { self.server.as_mut() }
    }

    fn send(&mut self, side: usize, len: usize) {
        let (now, at) = (self.now, self.sent[side].len());
        let bytes: Vec<_> = (at..at + len).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect();
        let Some(link) = self.side(side) else { return };
        let taken = link.send(&bytes, now);
        self.sent[side].extend(&bytes[..taken]);
    }

    fn transmit(&mut self, side: usize, count: usize) {
        let now = self.now;
        for _ in 0..count {
            let Some(link) = self.side(side) else { return };
            let is_due = link.is_due();
            let next = link.transmit(now);
            assert_eq!(next.is_some(), is_due);
            let Some(next) = next else { return };
            assert!(next.bytes.len() <= self.limits.datagram_bytes_max);
            self.carried += 1;
            self.on_way[1 - side].push(next.bytes);
        }
    }

    fn deliver(&mut self, to: usize, datagram: Bytes) {
        let datagram = Datagram::decode(datagram).unwrap();
        let (now, limits) = (self.now, self.limits.clone());
        match (datagram, to) {
            (Datagram::Open { from }, SERVER) if self.server.is_none() => {
                self.server = Some(Link::accept(8, from, limits, now));
            }
            (datagram, to) => {
                if let Some(link) = self.side(to) {
                    link.receive(datagram, now);
                }
            }
        }
    }

    fn take(&mut self, side: usize, bytes_max: usize) -> bool {
        let now = self.now;
        let Some(link) = self.side(side) else { return false };
        let Some(bytes) = link.recv(bytes_max, now) else { return false };
        assert!(!bytes.is_empty() && bytes.len() <= bytes_max);
        self.got[side].extend_from_slice(&bytes);
        true
    }

    fn advance(&mut self, by: Duration) {
        self.now += by;
        let now = self.now;
        for side in [CLIENT, SERVER] {
            if let Some(link) = self.side(side)
                && link.poll_timeout().is_some_and(|at| now >= at)
            {
                link.on_timeout(now);
                // Even if nothing can be sent, the next one is not due at once.
                assert!(link.poll_timeout().is_none_or(|at| now < at));
            }
        }
    }

    fn check(&mut self) {
        for side in [CLIENT, SERVER] {
            let (got, sent) = (&self.got[side], &self.sent[1 - side]);
            assert!(sent.starts_with(got), "{} of {} bytes", got.len(), sent.len());
            let bytes_max = self.limits.unacked_bytes_max;
            if let Some(link) = self.side(side) {
                assert!(link.outbound.held_bytes() <= bytes_max);
                assert!(link.inbound.held_bytes() <= bytes_max);
            }
        }
    }

    /// Carries all there is, in order, and takes it.
    fn settle(&mut self) {
        loop {
            let before = self.carried;
            for side in [CLIENT, SERVER] {
                self.transmit(side, usize::MAX);
                for datagram in std::mem::take(&mut self.on_way[1 - side]) {
                    self.deliver(1 - side, datagram);
                }
                while self.take(1 - side, usize::MAX) {}
            }
            self.check();
            if self.carried == before {
                return;
            }
        }
    }

    /// Lets the network be well until nothing is due.
    fn heal(&mut self) {
        for _ in 0..200 {
            self.settle();
            self.advance(Duration::from_millis(100));
        }
    }
}

#[test]
fn nothing_is_sent_twice_over_a_network_that_loses_nothing() {
    let mut world = World::open(limits());
    let greetings = world.carried;
    for _ in 0..100 {
        for side in [CLIENT, SERVER] {
            world.send(side, 75);
            world.settle();
        }
        world.advance(Duration::from_millis(1));
    }
    world.heal();
    assert_eq!(world.got, [world.sent[SERVER].clone(), world.sent[CLIENT].clone()]);
    assert_eq!(world.sent[CLIENT].len(), 7500);
    // Acknowledgements travel along, but for the last, and where one end is 16 ahead.
    let carried = world.carried - greetings;
    assert!((200..220).contains(&carried), "{carried} datagrams for 200 messages");
}

#[test]
fn what_nobody_takes_holds_the_sender_and_nothing_is_lost() {
    let mut world = World::open(never_dead());
    for _ in 0..100 {
        world.send(CLIENT, 500);
        for side in [CLIENT, SERVER] {
            world.transmit(side, usize::MAX);
            for datagram in std::mem::take(&mut world.on_way[1 - side]) {
                world.deliver(1 - side, datagram);
            }
        }
        world.advance(Duration::from_millis(300));
        world.check();
    }
    assert_eq!(world.sent[CLIENT].len(), 1000, "back-pressure");
    world.heal();
    assert_eq!(world.got[SERVER].len(), 1000);
    world.send(CLIENT, 500);
    assert_eq!(world.sent[CLIENT].len(), 1500);
}

#[test]
fn one_that_is_missing_is_asked_for_and_not_waited_for() {
    let mut world = World::open(limits());
    world.send(CLIENT, 75 * 5);
    world.transmit(CLIENT, usize::MAX);
    world.on_way[SERVER].remove(1);
    // No time passes.
    world.settle();
    assert_eq!(world.got[SERVER], world.sent[CLIENT]);
}

#[test]
fn a_carrier_that_comes_back_gets_at_once_what_it_lost() {
    let mut world = World::open(limits());
    for side in [CLIENT, SERVER] {
        world.send(side, 75 * 5);
        world.transmit(side, usize::MAX);
    }
    world.on_way = Default::default();
    let now = world.now;
    world.client.on_reconnect(now);
    world.server().on_reconnect(now);
    world.settle();
    assert_eq!(world.got, [world.sent[SERVER].clone(), world.sent[CLIENT].clone()]);
}

#[test]
fn a_peer_that_never_acknowledges_or_never_answers_is_given_up_in_time() {
    let (mut open, mut opening) = (World::open(limits()), World::new(limits()));
    open.send(CLIENT, 10);
    for world in [&mut open, &mut opening] {
        let mut waited = Duration::ZERO;
        while world.client.closed().is_none() {
            world.transmit(CLIENT, usize::MAX);
            waited += Duration::from_millis(100);
            world.advance(Duration::from_millis(100));
        }
        assert_eq!(waited, Duration::from_secs(10));
        assert_eq!(world.client.closed().unwrap().kind(), ErrorKind::Unavailable);
        let now = world.now;
        assert_eq!((world.client.poll_timeout(), world.client.send(b"x", now)), (None, 0));
        assert!(world.client.transmit(now).is_none());
    }
    // An idle link owes nothing: the session above it looks after the peer.
    let mut idle = World::open(limits());
    for _ in 0..100 {
        idle.advance(Duration::from_secs(1));
    }
    assert!(idle.client.closed().is_none());
}

#[test]
fn a_peer_where_nobody_listens_is_given_up_sooner_unless_it_comes_back() {
    let absent_until = |comes_back: bool| {
        let mut world = World::open(limits());
        world.send(CLIENT, 300);
        world.transmit(CLIENT, usize::MAX);
        let mut asked = 0;
        for _ in 0..19 {
            let now = world.now;
            world.client.on_absent(now);
            world.advance(Duration::from_millis(100));
            while let Some(next) = world.client.transmit(world.now) {
                assert!(next.is_question, "the carrier has to say whether nobody is there");
                asked += 1;
            }
        }
        assert!((5..10).contains(&asked), "{asked} questions in two seconds");
        if comes_back {
            world.on_way[SERVER].clear();
            world.heal();
            assert_eq!(world.got[SERVER], world.sent[CLIENT]);
        }
        world.now += Duration::from_millis(100);
        let now = world.now;
        world.client.on_absent(now);
        world.client.closed()
    };
    assert_eq!(absent_until(false).unwrap().kind(), ErrorKind::Unavailable);
    assert!(absent_until(true).is_none());
}

#[test]
fn a_closed_end_says_so_and_the_word_of_another_link_is_ignored() {
    let mut world = World::open(limits());
    let now = world.now;
    for strange in [
        Datagram::Closed { to: 7, from: 9 },
        Datagram::Closed { to: 7, from: 0 },
        Datagram::Closed { to: 9, from: 8 },
        Datagram::Opened { to: 7, from: 9 },
        Datagram::Ack { to: 7, taken: u64::MAX },
        Datagram::Missing { to: 7, taken: 5 },
        Datagram::Data { to: 9, number: 0, taken: 0, bytes: Bytes::from_static(b"x") },
        Datagram::Data { to: 7, number: u64::MAX, taken: 0, bytes: Bytes::from_static(b"x") },
        Datagram::Data { to: 7, number: 0, taken: 0, bytes: Bytes::new() },
    ] {
        world.client.receive(strange, now);
    }
    assert_eq!((world.client.closed().is_none(), world.client.peer()), (true, Some(8)));
    assert!(world.client.recv(1, now).is_none());
    world.server().close();
    world.settle();
    assert_eq!(world.client.closed().unwrap().kind(), ErrorKind::Unavailable);
    // A refusal ends one that is not open yet, and only that.
    let mut refused = World::new(limits());
    refused.client.receive(Datagram::Closed { to: 7, from: 0 }, now);
    assert!(refused.client.closed().is_some());
}

#[test]
fn a_late_open_makes_a_link_that_carries_nothing_of_before() {
    let mut world = World::open(limits());
    world.send(CLIENT, 50);
    world.transmit(CLIENT, usize::MAX);
    let late = [Datagram::Open { from: 7 }.encode(), world.on_way[SERVER].remove(0)];
    // The process is another one now; what is late reaches it all the same.
    let now = world.now;
    let mut other = Link::accept(9, 7, limits(), now);
    for datagram in late {
        other.receive(Datagram::decode(datagram).unwrap(), now);
    }
    assert!(other.recv(usize::MAX, now).is_none());
    // And the client does not take the other one for its peer.
    let answer = other.transmit(now).unwrap();
    world.deliver(CLIENT, answer.bytes);
    assert_eq!(world.client.peer(), Some(8));
}

#[derive(Debug, Clone)]
enum Step {
    Send(usize, usize),
    Transmit(usize, usize),
    Deliver(usize, usize),
    Repeat(usize, usize),
    Lose(usize, usize),
    Cut,
    Take(usize, usize),
    Advance(u64),
    Reconnect(usize),
    Absent(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let (side, pick) = (0usize..2, 0usize..50);
    prop_oneof![
        8 => (side.clone(), 1usize..300).prop_map(|(side, len)| Step::Send(side, len)),
        12 => (side.clone(), 1usize..10).prop_map(|(side, count)| Step::Transmit(side, count)),
        20 => (side.clone(), pick.clone()).prop_map(|(side, pick)| Step::Deliver(side, pick)),
        3 => (side.clone(), pick.clone()).prop_map(|(side, pick)| Step::Repeat(side, pick)),
        4 => (side.clone(), pick).prop_map(|(side, pick)| Step::Lose(side, pick)),
        1 => Just(Step::Cut),
        12 => (side.clone(), 1usize..200).prop_map(|(side, max)| Step::Take(side, max)),
        6 => (0u64..600).prop_map(Step::Advance),
        1 => side.clone().prop_map(Step::Reconnect),
        1 => side.prop_map(Step::Absent),
    ]
}

impl World {
    fn step(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::Send(side, len) => self.send(side, len),
            Step::Transmit(side, count) => self.transmit(side, count),
            Step::Deliver(to, pick) | Step::Repeat(to, pick) | Step::Lose(to, pick)
                if !self.on_way[to].is_empty() =>
            {
                let at = pick % self.on_way[to].len();
                let datagram = match step {
                    Step::Repeat(..) => self.on_way[to][at].clone(),
                    _ => self.on_way[to].remove(at),
                };
                if !matches!(step, Step::Lose(..)) {
                    self.deliver(to, datagram);
                }
            }
            Step::Deliver(..) | Step::Repeat(..) | Step::Lose(..) => {}
            Step::Cut => self.on_way = Default::default(),
            Step::Take(side, bytes_max) => drop(self.take(side, bytes_max)),
            Step::Advance(ms) => self.advance(Duration::from_millis(ms)),
            Step::Reconnect(side) => {
                if let Some(link) = self.side(side) {
                    link.on_reconnect(now);
                }
            }
            Step::Absent(side) => {
                if let Some(link) = self.side(side) {
                    link.on_absent(now);
                }
            }
        }
        self.check();
    }
}

proptest! {
    #[test]
    fn what_comes_out_is_a_prefix_of_what_went_in_and_all_of_it_once_the_network_heals(
        steps in prop::collection::vec(step(), 0..400),
    ) {
        let mut world = World::new(Limits { absent_after: Duration::MAX, ..never_dead() });
        steps.into_iter().for_each(|step| world.step(step));
        world.heal();
        prop_assert!(world.client.closed().is_none());
        prop_assert_eq!(&world.got[SERVER], &world.sent[CLIENT]);
        prop_assert_eq!(&world.got[CLIENT], &world.sent[SERVER]);
        prop_assert!(world.client.is_flushed() && world.server().is_flushed());
    }

    #[test]
    fn no_datagram_panics_or_is_held_without_a_bound(
        datagrams in prop::collection::vec((0u8..6, 0u64..3, 0u64..2000, 0u64..9, 0usize..99), 0..400),
    ) {
        let mut world = World::open(limits());
        for (kind, to, word, taken, len) in datagrams {
            let (to, bytes) = (to + 6, vec![0; len].into());
            let datagram = match kind {
                0 => Datagram::Open { from: to },
                1 => Datagram::Opened { to, from: word },
                2 => Datagram::Ack { to, taken: word },
                3 => Datagram::Missing { to, taken: word },
                _ => Datagram::Data { to, number: word, taken, bytes },
            };
            let now = world.now;
            world.client.receive(datagram, now);
            prop_assert!(world.client.inbound.held_bytes() <= 1000);
        }
    }
}
