use std::time::{Duration, Instant};

/// How long an acknowledgement takes (RFC 6298, with an upper bound for a peer that is away).
#[derive(Debug)]
pub(super) struct Timing {
    /// Smoothed time and its variation, once measured.
    measured: Option<(Duration, Duration)>,
    /// The datagram that is being timed.
    timed: Option<(u64, Instant)>,
    doublings: u32,
}

impl Timing {
    pub(super) const fn new() -> Self {
        Self { measured: None, timed: None, doublings: 0 }
    }

    /// Times datagram `number`, sent for the first time, if no other one is timed.
    pub(super) fn on_sent(&mut self, number: u64, now: Instant) {
        self.timed.get_or_insert((number, now));
    }

    /// Notes that the peer has taken all below `taken`.
    pub(super) fn on_taken(&mut self, taken: u64, now: Instant) {
        self.doublings = 0;
        if let Some((_, sent)) = self.timed.take_if(|(number, _)| *number < taken) {
            let time = now.saturating_duration_since(sent);
            self.measured = Some(match self.measured {
                None => (time, time / 2),
                Some((smoothed, variation)) => {
                    (smoothed * 7 / 8 + time / 8, variation * 3 / 4 + smoothed.abs_diff(time) / 4)
                }
            });
        }
    }

    /// Notes that things are sent again: whose acknowledgement comes cannot be told apart.
    pub(super) fn on_lost(&mut self) {
        self.timed = None;
    }

    /// Waits twice as long next time.
    pub(super) fn back_off(&mut self) {
        self.doublings = (self.doublings + 1).min(8);
    }

    /// Forgets that it waited longer.
    pub(super) fn reset(&mut self) {
        self.doublings = 0;
    }

    /// Returns how long to wait for an acknowledgement.
    pub(super) fn patience(&self) -> Duration {
        let usual = match self.measured {
            None => FIRST,
            Some((smoothed, variation)) => (smoothed + variation * 4).max(MIN),
        };
        (usual * (1 << self.doublings)).min(MAX.max(usual))
    }
}

const FIRST: Duration = Duration::from_millis(250);
/// Well above the time for which a peer may hold an acknowledgement back, or be kept from running.
const MIN: Duration = Duration::from_millis(200);
/// Short, so that whoever comes back soon hears soon.
const MAX: Duration = Duration::from_secs(1);
