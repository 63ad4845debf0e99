//! A byte stream over datagrams that may be lost, repeated or late, as a state machine.
//!
//! A [`Session`](super::session::Session) needs bytes in their order, and a carrier such as NATS
//! promises at most once. A link numbers what it sends, keeps it until it is acknowledged, sends it
//! again when time runs out, when the peer misses something, or when the carrier is back, and hands
//! out what arrives exactly once and in order.
//!
//! ```text
//! client  OPEN{from: c} ──►                  each side chooses a number for its end;
//!                  ◄── OPENED{to: c, from: s}     what is addressed to an end that is gone,
//!         DATA{to: s, 0} ──►                      as of an earlier start, is refused: CLOSED
//!                  ◄── DATA{to: c, 0, taken: 1}
//! ```
//!
//! Nothing is carried before both ends know each other, so that a late or repeated OPEN starts
//! nothing. Like a session it does no IO, has no clock and spawns nothing.
//!
//! Bounds: [`Limits::unacked_bytes_max`] on their way, beyond which it takes no bytes, and as much
//! that has arrived and is not taken.

mod datagram;
mod inbound;
mod outbound;
mod timing;

use std::time::{Duration, Instant};

use bytes::Bytes;

pub use datagram::{Datagram, HEADER_BYTES};

use crate::error::{Error, ErrorKind};
use inbound::Inbound;
use outbound::Outbound;

/// One end of a link.
#[derive(Debug)]
pub struct Link {
    own: u64,
    /// The peer's end, once known.
    peer: Option<u64>,
    is_client: bool,
    outbound: Outbound,
    inbound: Inbound,
    /// An OPEN or OPENED is due.
    greeting_due: bool,
    /// When a client asks again, until it is answered.
    open_again: Option<Instant>,
    started: Instant,
    /// Since when the carrier says that nobody listens where the peer was.
    absent_since: Option<Instant>,
    limits: Limits,
    /// The word to the peer that this end is gone.
    closed_due: bool,
    closed: Option<(ErrorKind, String)>,
}

/// What a link holds, and how long it waits.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Limits {
    /// Length of a datagram.
    pub datagram_bytes_max: usize,
    /// Bytes sent and not acknowledged; the same goes for bytes arrived and not taken.
    pub unacked_bytes_max: usize,
    /// How long nothing may be acknowledged before the link is given up.
    pub dead_after: Duration,
    /// How long the carrier may say that nobody listens at the peer before the link is given up.
    pub absent_after: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            datagram_bytes_max: 64 << 10,
            unacked_bytes_max: 1 << 20,
            // A broker that restarts takes a few seconds.
            dead_after: Duration::from_secs(10),
            // After a restart of the broker the peer comes back within half a second.
            absent_after: Duration::from_secs(2),
        }
    }
}

/// A datagram that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Transmit {
    /// What to send.
    pub bytes: Bytes,
    /// It asks for an answer: the carrier should say if nobody is there, and the peer if it knows
    /// no such link.
    pub is_question: bool,
    /// It was sent before.
    pub is_repeat: bool,
}

impl Link {
    /// Creates the end that asks for the link, with a random number.
    pub fn connect(own: u64, limits: Limits, now: Instant) -> Self {
        Self { greeting_due: true, ..Self::new(own, None, limits, now) }
    }

    /// Creates the end that answers an OPEN of `peer`, with a random number.
    pub fn accept(own: u64, peer: u64, limits: Limits, now: Instant) -> Self {
        Self { greeting_due: true, ..Self::new(own, Some(peer), limits, now) }
    }

    fn new(own: u64, peer: Option<u64>, limits: Limits, now: Instant) -> Self {
        let room = limits.datagram_bytes_max.saturating_sub(HEADER_BYTES).max(1);
        Self {
            own,
            peer,
            is_client: peer.is_none(),
            outbound: Outbound::new(room, limits.unacked_bytes_max, now),
            inbound: Inbound::new(limits.unacked_bytes_max),
            greeting_due: false,
            open_again: None,
            started: now,
            absent_since: None,
            limits,
            closed_due: false,
            closed: None,
        }
    }

    /// Returns the peer's end, once known.
    pub fn peer(&self) -> Option<u64> {
        self.peer
    }

    /// Tells why the link is of no use any more.
    pub fn closed(&self) -> Option<Error> {
        self.closed.as_ref().map(|(kind, message)| Error::new(*kind, message.clone()))
    }

    /// Tells whether all that was sent is acknowledged.
    pub fn is_flushed(&self) -> bool {
        self.outbound.is_empty()
    }

    /// Takes as many of `bytes` as there is room for; returns how many.
    pub fn send(&mut self, bytes: &[u8], now: Instant) -> usize {
        match self.peer.filter(|_| self.closed.is_none()) {
            Some(peer) => self.outbound.push(peer, self.inbound.taken(), bytes, now),
            None => 0,
        }
    }

    /// Returns the next bytes that have arrived, at most `bytes_max`.
    pub fn recv(&mut self, bytes_max: usize, now: Instant) -> Option<Bytes> {
        self.inbound.take(bytes_max, now)
    }

    /// Takes in a datagram; one that is not meant for this link is ignored.
    pub fn receive(&mut self, datagram: Datagram, now: Instant) {
        if self.closed.is_some() || datagram.to().is_some_and(|to| to != self.own) {
            return;
        }
        match datagram {
            // The answer was lost.
            Datagram::Open { from } => self.greeting_due |= self.peer == Some(from),
            Datagram::Opened { from, .. } => {
                if self.peer.is_none() {
                    self.peer = Some(from);
                    (self.greeting_due, self.open_again) = (false, None);
                }
            }
            Datagram::Closed { from, .. } => {
                if from == self.peer.unwrap_or(0) {
                    self.end(ErrorKind::Unavailable, "the peer has closed the link");
                }
                return;
            }
            // The client's word that the link is open was overtaken: it comes again.
            _ if self.peer.is_none() => return,
            Datagram::Data { number, taken, bytes, .. } => {
                self.outbound.on_taken(taken, now);
                self.inbound.on_data(number, bytes, now);
            }
            Datagram::Ack { taken, .. } => self.outbound.on_taken(taken, now),
            Datagram::Missing { taken, .. } => self.outbound.on_missing(taken, now),
        }
        self.absent_since = None;
    }

    /// Tells whether [`transmit`](Self::transmit) has something.
    pub fn is_due(&self) -> bool {
        if self.closed.is_some() {
            return self.closed_due;
        }
        self.greeting_due
            || self.peer.is_some()
                && (self.outbound.is_due(self.absent_since.is_some()) || self.inbound.is_due())
    }

    /// Returns the next datagram to send.
    pub fn transmit(&mut self, now: Instant) -> Option<Transmit> {
        let answer = |datagram: Datagram| Transmit {
            bytes: datagram.encode(),
            is_question: false,
            is_repeat: false,
        };
        let peer = self.peer.unwrap_or(0);
        if self.closed.is_some() {
            let from = self.own;
            let is_due = std::mem::take(&mut self.closed_due);
            return is_due.then(|| answer(Datagram::Closed { to: peer, from }));
        }
        if std::mem::take(&mut self.greeting_due) {
            let from = self.own;
            if !self.is_client {
                return Some(answer(Datagram::Opened { to: peer, from }));
            }
            let is_repeat = self.open_again.replace(now + OPEN_AGAIN).is_some();
            let bytes = Datagram::Open { from }.encode();
            return Some(Transmit { bytes, is_question: true, is_repeat });
        }
        self.peer?;
        if let Some((bytes, is_repeat, taken)) =
            self.outbound.transmit(self.absent_since.is_some(), now)
        {
            self.inbound.on_told(taken);
            return Some(Transmit { bytes, is_question: is_repeat, is_repeat });
        }
        let (is_missing, taken) = self.inbound.transmit()?;
        Some(answer(if is_missing {
            Datagram::Missing { to: peer, taken }
        } else {
            Datagram::Ack { to: peer, taken }
        }))
    }

    /// Returns when [`on_timeout`](Self::on_timeout) is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.closed.is_some() {
            return None;
        }
        let times = [self.open_again, self.outbound.timeout(), self.inbound.timeout()];
        [times.into_iter().flatten().min(), self.dead_at()].into_iter().flatten().min()
    }

    /// Sends again what is not acknowledged in time, acknowledges, or gives up.
    pub fn on_timeout(&mut self, now: Instant) {
        if self.dead_at().is_some_and(|at| now >= at) {
            let message = format!("nothing is acknowledged for {:?}", self.limits.dead_after);
            self.end(ErrorKind::Unavailable, message);
            return;
        }
        if let Some(at) = self.open_again.as_mut().filter(|at| now >= **at) {
            *at = now + OPEN_AGAIN;
            self.greeting_due = true;
        }
        self.outbound.on_timeout(now);
        self.inbound.on_timeout(now);
    }

    /// Sends again at once what is not acknowledged: the carrier lost what it had.
    pub fn on_reconnect(&mut self, now: Instant) {
        self.absent_since = None;
        self.greeting_due |= self.peer.is_none();
        self.outbound.on_reconnect(now);
        self.inbound.on_reconnect();
    }

    /// Notes that the carrier says that nobody listens where the peer was; gives up if that stays.
    pub fn on_absent(&mut self, now: Instant) {
        let since = *self.absent_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= self.limits.absent_after {
            self.end(ErrorKind::Unavailable, "nobody listens where the peer was");
        }
        self.outbound.look_again(now);
    }

    /// Ends the link, and says so to the peer.
    pub fn close(&mut self) {
        self.end(ErrorKind::Closed, "the link was closed");
        self.closed_due = self.peer.is_some();
    }

    fn end(&mut self, kind: ErrorKind, message: impl Into<String>) {
        if self.closed.is_none() {
            self.closed = Some((kind, message.into()));
            self.outbound.clear();
        }
    }

    /// Returns when the link is given up if nothing is acknowledged until then.
    fn dead_at(&self) -> Option<Instant> {
        let since = if self.peer.is_some() { self.outbound.waits_since()? } else { self.started };
        Some(since + self.limits.dead_after)
    }
}

/// How often a client asks until it is answered.
const OPEN_AGAIN: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests;
