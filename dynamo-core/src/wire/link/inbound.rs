use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

/// What one end has received of the other.
#[derive(Debug)]
pub(super) struct Inbound {
    bytes_max: usize,
    /// In order and not taken yet, a datagram each.
    ready: VecDeque<Bytes>,
    /// How many have arrived in order.
    arrived: u64,
    /// Those that came before an earlier one.
    early: BTreeMap<u64, Bytes>,
    /// Bytes in `ready` and `early`.
    held_bytes: usize,
    /// What the peer was last told that is taken.
    told: u64,
    untold_bytes: usize,
    ack_at: Option<Instant>,
    ack_due: bool,
    missing_due: bool,
    /// The peer was told that this one is missing.
    missed: Option<u64>,
}

impl Inbound {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            ready: VecDeque::new(),
            arrived: 0,
            early: BTreeMap::new(),
            held_bytes: 0,
            told: 0,
            untold_bytes: 0,
            ack_at: None,
            ack_due: false,
            missing_due: false,
            missed: None,
        }
    }

    /// Returns how many datagrams are taken: only these are acknowledged, so that a peer waits for
    /// a reader that is behind.
    pub(super) fn taken(&self) -> u64 {
        self.arrived - self.ready.len() as u64
    }

    /// Takes in one datagram; one that does not fit is as good as lost.
    pub(super) fn on_data(&mut self, number: u64, bytes: Bytes, now: Instant) {
        if number < self.arrived {
            // It is sent again because the word about it was lost.
            self.ack_later(now);
            return;
        }
        let is_far = number - self.taken() >= HELD_MAX;
        if bytes.is_empty() || is_far || self.early.contains_key(&number) {
            return;
        }
        if number > self.arrived {
            if self.held_bytes + bytes.len() <= self.bytes_max {
                self.held_bytes += bytes.len();
                self.early.insert(number, bytes);
            }
            if self.missed.replace(self.arrived) != Some(self.arrived) {
                self.missing_due = true;
            }
            return;
        }
        // What is next goes before what came too early.
        while self.held_bytes + bytes.len() > self.bytes_max {
            let Some((_, early)) = self.early.pop_last() else { return };
            self.held_bytes -= early.len();
        }
        self.held_bytes += bytes.len();
        self.ready.push_back(bytes);
        self.arrived += 1;
        while let Some(bytes) = self.early.remove(&self.arrived) {
            self.ready.push_back(bytes);
            self.arrived += 1;
        }
    }

    /// Takes what is next, at most `bytes_max`.
    pub(super) fn take(&mut self, bytes_max: usize, now: Instant) -> Option<Bytes> {
        let first = self.ready.front_mut()?;
        if first.len() > bytes_max {
            self.held_bytes -= bytes_max;
            return Some(first.split_to(bytes_max));
        }
        let bytes = self.ready.pop_front()?;
        self.held_bytes -= bytes.len();
        self.untold_bytes += bytes.len();
        if self.taken() - self.told >= ACK_EACH || self.untold_bytes >= self.bytes_max / 4 {
            self.ack_due = true;
        } else {
            self.ack_later(now);
        }
        Some(bytes)
    }

    fn ack_later(&mut self, now: Instant) {
        self.ack_at.get_or_insert(now + ACK_AFTER);
    }

    pub(super) fn is_due(&self) -> bool {
        self.ack_due || self.missing_due
    }

    /// Returns what the peer is to be told: whether something is missing, and what is taken.
    pub(super) fn transmit(&mut self) -> Option<(bool, u64)> {
        if !self.is_due() {
            return None;
        }
        let is_missing = std::mem::take(&mut self.missing_due);
        let taken = self.taken();
        self.told(taken);
        Some((is_missing, taken))
    }

    /// Notes that a datagram told the peer that `taken` are taken.
    pub(super) fn on_told(&mut self, taken: u64) {
        if taken == self.taken() {
            self.told(taken);
        }
    }

    fn told(&mut self, taken: u64) {
        self.told = taken;
        (self.untold_bytes, self.ack_due, self.ack_at) = (0, false, None);
    }

    pub(super) fn timeout(&self) -> Option<Instant> {
        self.ack_at
    }

    pub(super) fn on_timeout(&mut self, now: Instant) {
        self.ack_due |= self.ack_at.take_if(|at| now >= *at).is_some();
    }

    /// Tells the peer again: the word may be lost.
    pub(super) fn on_reconnect(&mut self) {
        self.ack_due = self.arrived > 0;
        self.missed = None;
    }

    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        let held = self.ready.iter().chain(self.early.values()).map(Bytes::len).sum();
        assert_eq!(self.held_bytes, held);
        held
    }
}

/// An acknowledgement waits this long for something to travel with.
const ACK_AFTER: Duration = Duration::from_millis(20);

/// It waits no longer once this many datagrams are taken.
const ACK_EACH: u64 = 16;

/// Datagrams that are held at once: more than a peer may have on its way.
const HELD_MAX: u64 = 1024;
