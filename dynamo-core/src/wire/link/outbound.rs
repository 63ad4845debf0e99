use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;

use super::datagram::{HEADER_BYTES, encode_data};
use super::timing::Timing;

/// What one end has sent and the other has not acknowledged.
#[derive(Debug)]
pub(super) struct Outbound {
    /// Room for bytes in a datagram.
    room: usize,
    bytes_max: usize,
    /// Datagrams, and what each says that was taken; the first has number `acked`.
    unacked: VecDeque<(Bytes, u64)>,
    unacked_bytes: usize,
    acked: u64,
    /// Which of them is to be sent next.
    next: usize,
    /// Behind the last number ever sent: what is below it is a repeat.
    sent: u64,
    /// Datagrams that may be on their way: halved by losses.
    window: usize,
    /// What was lost was sent again up to here: a further word about it says nothing new.
    recovering_to: u64,
    timing: Timing,
    resend_at: Option<Instant>,
    /// When something was acknowledged, or there was nothing to acknowledge.
    progress: Instant,
}

impl Outbound {
    pub(super) fn new(room: usize, bytes_max: usize, now: Instant) -> Self {
        Self {
            room,
            bytes_max,
            unacked: VecDeque::new(),
            unacked_bytes: 0,
            acked: 0,
            next: 0,
            sent: 0,
            window: WINDOW_FIRST,
            recovering_to: 0,
            timing: Timing::new(),
            resend_at: None,
            progress: now,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.unacked.is_empty()
    }

    /// Since when the peer owes an acknowledgement.
    pub(super) fn waits_since(&self) -> Option<Instant> {
        (!self.is_empty()).then_some(self.progress)
    }

    /// Queues bytes as datagrams; returns how many there was room for.
    pub(super) fn push(&mut self, to: u64, taken: u64, bytes: &[u8], now: Instant) -> usize {
        if self.is_empty() {
            self.progress = now;
        }
        let mut rest = bytes;
        while !rest.is_empty()
            && self.unacked.len() < self.window
            && self.unacked_bytes < self.bytes_max
        {
            let len = rest.len().min(self.room).min(self.bytes_max - self.unacked_bytes);
            let (chunk, behind) = rest.split_at(len);
            let number = self.acked + self.unacked.len() as u64;
            self.unacked.push_back((encode_data(to, number, taken, chunk), taken));
            self.unacked_bytes += len;
            rest = behind;
        }
        bytes.len() - rest.len()
    }

    pub(super) fn is_due(&self, is_absent: bool) -> bool {
        // One is enough to see whether somebody is there again.
        let window = if is_absent { 1 } else { self.window };
        self.next < self.unacked.len().min(window)
    }

    /// Returns the next datagram, whether it is a repeat, and what it says that was taken.
    pub(super) fn transmit(&mut self, is_absent: bool, now: Instant) -> Option<(Bytes, bool, u64)> {
        if !self.is_due(is_absent) {
            return None;
        }
        let (bytes, taken) = self.unacked.get(self.next)?.clone();
        let number = self.acked + self.next as u64;
        self.next += 1;
        self.resend_at.get_or_insert_with(|| now + self.timing.patience());
        let is_repeat = number < self.sent;
        if !is_repeat {
            self.timing.on_sent(number, now);
            self.sent = number + 1;
        }
        Some((bytes, is_repeat, taken))
    }

    /// Notes that the peer has taken all datagrams below `taken`.
    pub(super) fn on_taken(&mut self, taken: u64, now: Instant) {
        // Nobody takes what was not sent.
        if taken <= self.acked || taken > self.sent {
            return;
        }
        while self.acked < taken {
            let Some((datagram, _)) = self.unacked.pop_front() else { break };
            self.unacked_bytes -= datagram.len() - HEADER_BYTES;
            self.acked += 1;
            self.next = self.next.saturating_sub(1);
            self.window = (self.window + 1).min(WINDOW_MAX);
        }
        self.timing.on_taken(taken, now);
        self.progress = now;
        self.resend_at = (self.next > 0).then(|| now + self.timing.patience());
    }

    /// Notes that the peer lacks datagram `taken` and has later ones.
    pub(super) fn on_missing(&mut self, taken: u64, now: Instant) {
        self.on_taken(taken, now);
        if taken == self.acked && self.acked >= self.recovering_to {
            self.lose(now);
        }
    }

    pub(super) fn timeout(&self) -> Option<Instant> {
        self.resend_at
    }

    pub(super) fn on_timeout(&mut self, now: Instant) {
        if self.resend_at.is_some_and(|at| now >= at) {
            self.timing.back_off();
            self.lose(now);
        }
    }

    /// Sends again all that may be lost.
    fn lose(&mut self, now: Instant) {
        self.window = (self.window / 2).max(WINDOW_MIN);
        self.repeat(now);
    }

    pub(super) fn on_reconnect(&mut self, now: Instant) {
        self.timing.reset();
        if self.next > 0 {
            self.repeat(now);
        }
    }

    fn repeat(&mut self, now: Instant) {
        self.next = 0;
        self.recovering_to = self.sent;
        self.timing.on_lost();
        self.resend_at = Some(now + self.timing.patience());
    }

    /// Looks soon whether the peer is there again.
    pub(super) fn look_again(&mut self, now: Instant) {
        if let Some(at) = &mut self.resend_at {
            *at = (*at).min(now + LOOK_AGAIN);
        }
    }

    pub(super) fn clear(&mut self) {
        self.unacked.clear();
        (self.unacked_bytes, self.next, self.resend_at) = (0, 0, None);
    }

    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        let held = self.unacked.iter().map(|(datagram, _)| datagram.len() - HEADER_BYTES).sum();
        assert_eq!(self.unacked_bytes, held);
        held
    }
}

/// Datagrams on their way: enough for the bytes of a fast network in large ones, few enough that
/// those of many links fit into what a carrier queues for a subscriber.
const WINDOW_MAX: usize = 256;
const WINDOW_FIRST: usize = 64;
const WINDOW_MIN: usize = 8;

/// How soon the carrier is asked again whether nobody is there.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_millis(250);
