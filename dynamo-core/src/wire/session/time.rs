//! What a session does by the clock: signs of life, and leave of those that are idle.

use std::time::{Duration, Instant};

use super::super::frame::Kind;
use super::Session;
use crate::error::ErrorKind;

impl Session {
    /// Returns when [`on_timeout`](Self::on_timeout) is due; `None` once closed.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let due = match self.pinged_at {
            Some(pinged_at) => pinged_at + self.patience(),
            None => self.last_received + self.limits.ping_after,
        };
        let due = self.idle_until().map_or(due, |idle| idle.min(due));
        self.closed.is_none().then_some(due)
    }

    /// Returns how long a driver may wait before it asks again when that is: what arrives meanwhile
    /// may bring it closer.
    pub fn timeout_max(&self) -> Duration {
        self.limits.ping_after
    }

    /// Returns when a server ends a connection that is idle until then.
    fn idle_until(&self) -> Option<Instant> {
        let is_kept = !self.is_server || !self.is_open();
        if is_kept { None } else { self.idle_since.checked_add(self.limits.idle_after) }
    }

    /// Notes up to when the connection was used, if that is `now`: told when a stream ends, the
    /// session knows better since when it is idle than it does by its timeouts.
    pub fn note_use(&mut self, now: Instant) {
        if self.was_used || !self.streams.is_empty() {
            self.begin_idle(now);
        }
    }

    /// Counts a connection as idle from `now` on, if no stream runs.
    pub fn begin_idle(&mut self, now: Instant) {
        (self.idle_since, self.was_used) = (now, false);
    }

    /// Returns how long an asked peer may be silent.
    fn patience(&self) -> Duration {
        self.limits.dead_after.saturating_sub(self.limits.ping_after)
    }

    /// Asks a silent peer for a sign of life, or gives it up; takes leave of an idle one.
    pub fn on_timeout(&mut self, now: Instant) {
        self.note_use(now);
        if self.idle_until().is_some_and(|idle| now >= idle) {
            self.go_away();
        }
        let silent = now.saturating_duration_since(self.last_received);
        match self.pinged_at {
            // Only who was asked and had time to answer is given up: this side may have been the
            // one that stood still.
            Some(pinged_at) if now >= pinged_at + self.patience() => {
                self.close(ErrorKind::Unavailable, format!("the peer is silent for {silent:?}"));
            }
            None if silent >= self.limits.ping_after => {
                self.pinged_at = Some(now);
                self.put_control(Kind::Ping, 0, &0u64.to_le_bytes());
            }
            _ => {}
        }
    }

    /// Returns since when no stream runs on a connection that could carry some.
    pub fn idle_since(&self) -> Option<Instant> {
        (self.is_open() && self.streams.is_empty()).then_some(self.idle_since)
    }
}
