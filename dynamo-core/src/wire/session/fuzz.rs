//! A session whose peer says anything at all, in pieces of any size.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::super::codec::Codec;
use super::super::frame::{self, Hello, Kind};
use super::super::head::Head;
use super::{CONTROL_BYTES_MAX, Event, Limits, Recv, Session};
use crate::error::Error;
use crate::time::{Clock, SystemClock};

/// Lets a server take in bytes, and answer what it takes for requests.
pub(in super::super) fn server(data: &[u8]) {
    let mut peer = Peer::new(data, Session::server);
    peer.run(|session, choice| {
        while let Some(event) = session.poll_event() {
            let Event::Opened { stream, .. } = event else { continue };
            session.accept(stream);
            match choice.next() % 4 {
                0 => session.finish(stream),
                1 => session.fail(stream, Error::internal("by chance")),
                2 => drop(session.send(stream, Bytes::from(vec![7; choice.next() * 64]))),
                _ => {
                    let _ = session.send(stream, Bytes::from_static(b"whole"));
                    session.finish(stream);
                }
            }
        }
        if choice.next() == 0 {
            session.go_away();
        }
    });
}

/// Lets a client take in bytes, while it asks, reads, stops and kills.
pub(in super::super) fn client(data: &[u8]) {
    let mut peer = Peer::new(data, |limits, now| Session::client(limits, Codec::default(), now));
    let head = Head {
        instance: 1,
        incarnation: 0,
        endpoint: "n/c/e".to_owned(),
        request: "r".to_owned(),
        priority: 4,
        is_probe: false,
        trace: None,
        rank: None,
        remaining: None,
        metadata: Vec::new(),
    };
    let mut open = Vec::new();
    peer.run(|session, choice| {
        while session.poll_event().is_some() {}
        if open.len() < STREAMS_MAX as usize
            && let Ok(id) = session.open(&head, Bytes::from(vec![1; choice.next() * 8]))
        {
            open.push(id);
        }
        let picked = choice.next();
        let Some(id) = open.get(picked % open.len().max(1)).copied() else { return };
        let is_over = match choice.next() % 8 {
            0 => {
                session.kill(id);
                true
            }
            1 => {
                session.stop(id);
                false
            }
            _ => is_read_to_its_end(session, id),
        };
        if is_over {
            open.retain(|one| *one != id);
        }
    });
}

fn is_read_to_its_end(session: &mut Session, id: u32) -> bool {
    loop {
        match session.recv(id) {
            Recv::Message(_) => {}
            Recv::Pending => return false,
            Recv::Complete | Recv::Failed(_) => return true,
        }
    }
}

/// A session and what is said to it.
struct Peer<'a> {
    session: Session,
    now: Instant,
    choice: Choice,
    said: &'a [u8],
}

impl<'a> Peer<'a> {
    /// Takes the first bytes as the seed of all choices, and the rest as what the peer says.
    fn new(data: &'a [u8], make: impl Fn(Limits, Instant) -> Session) -> Self {
        let (seed, said) = data.split_first_chunk::<2>().unwrap_or((&[0; 2], &[]));
        let limits = Limits {
            stream_window: 8 << 10,
            connection_window: 16 << 10,
            streams_max: STREAMS_MAX,
            assembly_bytes_max: 24 << 10,
            ..Limits::default()
        };
        let now = SystemClock.now();
        let choice = Choice(u64::from(u16::from_le_bytes(*seed)) | 1 << 32);
        Self { session: make(limits, now), now, choice, said }
    }

    /// Hands over what is said piece by piece, and lets `act` go on after each.
    fn run(&mut self, mut act: impl FnMut(&mut Session, &mut Choice)) {
        let mut incoming = BytesMut::new();
        // Half of the seeds come past the hello without having to guess it.
        if self.choice.next().is_multiple_of(2) {
            let hello = Hello {
                stream_window: 8 << 10,
                connection_window: 16 << 10,
                streams_max: 4,
                codec: Codec::default(),
            };
            frame::put(&mut incoming, Kind::Hello, 0, 0, &hello.encode());
        }
        while !self.said.is_empty() && !self.session.is_closed() {
            let size = self.choice.next() * (1 + self.choice.next() % 32) + 1;
            let (piece, rest) = self.said.split_at(size.min(self.said.len()));
            self.said = rest;
            incoming.extend_from_slice(piece);
            let outcome = self.session.receive(&mut incoming, self.now);
            assert_eq!(outcome.is_err(), outcome.is_err() && self.session.is_closed());
            act(&mut self.session, &mut self.choice);
            let mut out = BytesMut::new();
            self.session.transmit(&mut out, 64 << 10);
            if self.choice.next() == 1 {
                self.now += Duration::from_secs(1);
                self.session.on_timeout(self.now);
            }
            check(&self.session);
        }
        self.session.close(crate::error::ErrorKind::Closed, "over");
        act(&mut self.session, &mut self.choice);
    }
}

/// What holds after each step, whatever the peer says.
pub(super) fn check(session: &Session) {
    if session.is_closed() {
        let has_streams = session.is_server && !session.streams.is_empty();
        assert!(session.control.is_empty() && session.pong.is_none() && !has_streams);
        return;
    }
    let held: u32 = session.streams.values().map(|stream| stream.inbound.held()).sum();
    assert_eq!(session.credit + session.owed + held, session.limits.connection_window);
    let arriving: usize = session.streams.values().map(|stream| stream.inbound.partial.len()).sum();
    assert_eq!(session.assembling, arriving);
    assert!(session.assembling <= session.limits.assembly_bytes_max);
    assert!(session.control.len() <= CONTROL_BYTES_MAX);
    assert!(session.streams.len() <= session.limits.streams_max as usize);
    let unread = session.streams.values().map(|stream| stream.inbound.held());
    assert!(unread.max().unwrap_or(0) <= session.limits.stream_window);
}

/// Numbers below 256 by chance, the same for the same seed (xorshift, Marsaglia 2003).
struct Choice(u64);

impl Choice {
    fn next(&mut self) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 24) as usize & 0xff
    }
}

const STREAMS_MAX: u32 = 8;
