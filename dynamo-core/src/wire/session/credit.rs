//! Who may use how much of a connection's credit, and when it is granted again.
//!
//! Answers that nobody reads keep their credit. So that they never hold all of it, the sender of
//! messages gives a stream the less the less there is: what it has outstanding and is about to send
//! may be no more than the credit that this leaves free, a reserve aside. That is the dynamic
//! threshold of Choudhury and Hahne (Dynamic queue length thresholds for shared-memory packet
//! switches, IEEE/ACM Transactions on Networking 6, 1998) with alpha = 1: n streams that nobody
//! reads leave as much as each of them holds, and one with less outstanding always goes before one
//! with more.
//!
//! Streams that stop one after another would still halve what is left each time, since what they
//! hold does not drain. Therefore a quarter of the credit is kept, in equal parts for the streams
//! there may be: a stream may have its part outstanding whatever the others hold (sharing with a
//! minimum allocation: Kamoun and Kleinrock, Analysis of shared finite storage in a computer
//! network node environment under general traffic conditions, IEEE Transactions on Communications
//! 28, 1980).
//!
//! For that to keep moving, whoever receives grants again in large steps only while there is
//! plenty: with less than half of the connection's credit at the peer, all that was taken goes back
//! with the next write, of streams that took theirs long ago as well. With plenty, what a prompt
//! reader is owed (a sixteenth at most), the reserve (a quarter) and two small frames fit into the
//! half that is free, so nothing waits for a grant that does not come.

use super::super::frame::{Hello, Kind};
use super::stream::{CHUNK_COST_MIN, Inbound};
use super::{Limits, Session};

/// How the streams of a sender share the credit of the connection.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sharing {
    stream_window: u32,
    /// What only streams with little outstanding use.
    reserve: u32,
    /// How much that is.
    little: u32,
}

impl Sharing {
    /// Divides what `peer` grants among at most so many streams.
    pub(super) fn new(peer: &Hello, streams_max: u32) -> Self {
        let reserve = peer.connection_window / 4;
        // Less than a chunk would move nothing.
        let little = (reserve / streams_max.max(1)).max(CHUNK_COST_MIN);
        Self { stream_window: peer.stream_window, reserve, little }
    }

    /// Returns what a stream with so much credit may send at once while so much of the
    /// connection's is free.
    pub(super) fn allowed(self, credit: u32, free: u32) -> u32 {
        let outstanding = self.outstanding(credit);
        let shared = free.saturating_sub(self.reserve).saturating_sub(outstanding) / 2;
        let kept = self.little.saturating_sub(outstanding);
        credit.min(free).min(shared.max(kept))
    }

    /// Returns how much has to be free for a stream with so much credit to send what costs `cost`:
    /// [`allowed`](Self::allowed) the other way round.
    pub(super) fn needed(self, credit: u32, cost: u32) -> u32 {
        let outstanding = self.outstanding(credit);
        if outstanding + cost <= self.little {
            return cost;
        }
        outstanding + 2 * cost + self.reserve
    }

    fn outstanding(self, credit: u32) -> u32 {
        self.stream_window.saturating_sub(credit)
    }
}

impl Limits {
    /// What of a stream is granted again in one step.
    fn stream_step(&self) -> u32 {
        (self.stream_window / 2).min(self.connection_window / 16)
    }

    /// What of the connection is granted again in one step.
    fn connection_step(&self) -> u32 {
        self.connection_window / 4
    }
}

impl Session {
    /// Grants credit again that a message held.
    pub(super) fn give_back(&mut self, id: u32, credit: u32) {
        self.owe_connection(credit);
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let inbound = &mut stream.inbound;
        inbound.owed += credit;
        if inbound.owed >= self.limits.stream_step() {
            self.grant(id);
        } else if inbound.is_granted_again() && !inbound.is_owing {
            inbound.is_owing = true;
            self.owing.push(id);
            self.sweep_owing();
        }
    }

    pub(super) fn owe_connection(&mut self, credit: u32) {
        self.owed += credit;
        if self.owed >= self.limits.connection_step() {
            self.grant_connection();
        }
    }

    /// Tells whether something is owed that the peer may be waiting for.
    pub(super) fn owes_now(&self) -> bool {
        self.is_scarce() && (self.owed > 0 || !self.owing.is_empty())
    }

    /// Grants all that is owed, if the peer may be waiting for it.
    pub(super) fn grant_if_scarce(&mut self) {
        if !self.is_scarce() {
            return;
        }
        if self.owed > 0 {
            self.grant_connection();
        }
        for id in std::mem::take(&mut self.owing) {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.inbound.is_owing = false;
                self.grant(id);
            }
        }
    }

    /// Tells whether the peer has less than half of the connection's credit.
    fn is_scarce(&self) -> bool {
        self.credit < self.limits.connection_window / 2
    }

    fn grant(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let inbound = &mut stream.inbound;
        if inbound.is_granted_again() {
            let grant = std::mem::take(&mut inbound.owed);
            inbound.credit += grant;
            self.put_control(Kind::Window, id, &grant.to_le_bytes());
        }
    }

    fn grant_connection(&mut self) {
        let grant = std::mem::take(&mut self.owed);
        self.credit += grant;
        self.put_control(Kind::Window, 0, &grant.to_le_bytes());
    }

    /// Forgets streams that are gone, now and then and not one by one.
    fn sweep_owing(&mut self) {
        if self.owing.len() > 2 * self.streams.len() + OWING_SPARE {
            let streams = &self.streams;
            self.owing.retain(|id| streams.contains_key(id));
        }
    }
}

impl Inbound {
    /// Tells whether the peer has use for credit: it has some to get, and something to send.
    fn is_granted_again(&self) -> bool {
        self.owed > 0 && self.terminal.is_none()
    }
}

const OWING_SPARE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::codec::Codec;

    #[test]
    fn what_is_needed_is_exactly_what_lets_it_go() {
        for (stream_window, connection_window, streams_max) in [
            (4096, 4096, 4096),
            (4096, 16 << 10, 3),
            (1 << 20, 4096, 1),
            (256 << 10, 4 << 20, 4096),
        ] {
            let codec = Codec::default();
            let hello = Hello { stream_window, connection_window, streams_max, codec };
            let sharing = Sharing::new(&hello, streams_max);
            for at in 0..=64 {
                let credit = stream_window / 64 * at;
                for cost in [8, 100, CHUNK_COST_MIN].into_iter().filter(|cost| *cost <= credit) {
                    let needed = sharing.needed(credit, cost);
                    assert!(sharing.allowed(credit, needed) >= cost);
                    assert!(sharing.allowed(credit, needed - 1) < cost);
                }
                for free in (0..=connection_window).step_by(connection_window as usize / 64) {
                    let sent = sharing.allowed(credit, free);
                    let outstanding = stream_window - credit + sent;
                    let left = (free - sent).saturating_sub(connection_window / 4);
                    assert!(sent == 0 || outstanding <= left.max(sharing.little));
                }
            }
        }
    }

    #[test]
    fn each_of_all_streams_has_room_for_a_chunk() {
        let limits = Limits::default();
        let (stream_window, connection_window) = (limits.stream_window, limits.connection_window);
        let streams_max = limits.streams_max;
        let hello =
            Hello { stream_window, connection_window, streams_max, codec: Codec::default() };
        let sharing = Sharing::new(&hello, streams_max);
        assert_eq!(sharing.little, CHUNK_COST_MIN);
        assert!(sharing.little * streams_max <= sharing.reserve);
    }
}
