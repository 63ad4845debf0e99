use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dynamo_core::protocol::WorkerId;

use super::leases::LeaseId;
use super::row::Claim;
use super::speed::seconds;
use crate::workers::{Change, Seat, as_ns};

/// One request's load on one worker; dropping it releases the load.
///
/// It belongs into the response stream, so that it lives exactly as long as the work. A stream may
/// hang for ever: once there has been no [`progress`](Self::progress) for as long as
/// [`RouterConfig::lease`](crate::RouterConfig::lease) the load is released all the same, and
/// counted. It is booked again if there is progress after that.
#[must_use = "dropping the booking releases the load"]
pub struct Booking {
    seat: Arc<Seat>,
    lease: LeaseId,
    progress_ns: u64,
    is_decoding: bool,
    block_tokens: usize,
    answer: Option<Answer>,
}

/// An answer, as far as it has come.
struct Answer {
    first_ns: u64,
    last_ns: u64,
    /// After those that came first.
    tokens: usize,
    /// On the worker as it began.
    blocks: u64,
}

impl Booking {
    /// Guards a claim that was reserved at `seat`.
    pub(crate) fn new(seat: &Arc<Seat>, claim: Claim, block_tokens: usize, now: u64) -> Self {
        let lease = seat.load.open(claim, now);
        let (seat, is_decoding) = (Arc::clone(seat), claim.prefill_tokens == 0);
        Self { seat, lease, progress_ns: now, is_decoding, block_tokens, answer: None }
    }

    /// Returns the worker that it is booked on.
    pub fn worker(&self) -> WorkerId {
        self.seat.worker()
    }

    /// Records that the first token is there: the prompt no longer waits to be prefilled.
    pub fn prefill_done(&mut self) {
        if !std::mem::replace(&mut self.is_decoding, true) {
            self.renew(self.seat.common().now_ns());
        }
    }

    /// Records `tokens` more tokens of the answer; costs next to nothing, so that it may be said of
    /// each. Those that come first are not timed. Without tokens it says that the request goes on.
    pub fn progress(&mut self, tokens: usize) {
        let common = self.seat.common();
        let now = common.now_ns();
        match &mut self.answer {
            _ if tokens == 0 => {}
            Some(answer) => {
                answer.last_ns = now;
                answer.tokens += tokens;
            }
            None => {
                let blocks = self.seat.load.blocks();
                self.answer = Some(Answer { first_ns: now, last_ns: now, tokens: 0, blocks });
            }
        }
        if now.saturating_sub(self.progress_ns) >= as_ns(common.lease) / 8 {
            self.renew(now);
        }
    }

    /// Lets it live until it is dropped, for a stream whose progress nobody reports.
    pub fn until_dropped(mut self) -> Self {
        self.renew(u64::MAX);
        self
    }

    /// Returns how long it lives without progress.
    pub(crate) fn lease(&self) -> Duration {
        self.seat.common().lease
    }

    fn renew(&mut self, now: u64) {
        self.progress_ns = now;
        let (worker, common) = (self.seat.worker(), self.seat.common());
        match self.seat.load.progress(self.lease, now, self.is_decoding) {
            Some(Change::Less) => common.released(worker),
            Some(Change::More) => common.booked(worker),
            None => {}
        }
    }

    pub(crate) fn seat(&self) -> &Seat {
        &self.seat
    }

    /// Has what the answer's steps took learned from.
    fn observe(&self) {
        let Some(answer) = self.answer.as_ref().filter(|answer| answer.tokens > 0) else { return };
        let took_s = seconds(answer.last_ns.saturating_sub(answer.first_ns));
        let blocks = (answer.blocks + self.seat.load.blocks()) as f64 / 2.0;
        let cached_tokens = blocks * self.block_tokens as f64;
        let pace = &self.seat.common().pace;
        pace.answered(answer.tokens, took_s / answer.tokens as f64, cached_tokens);
    }
}

impl Drop for Booking {
    fn drop(&mut self) {
        self.observe();
        if self.seat.load.close(self.lease) {
            self.seat.common().released(self.seat.worker());
        }
    }
}

/// Releases what has made no progress at `seat` for as long as a lease is.
pub(crate) fn expire(seat: &Seat, now: u64) {
    let common = seat.common();
    let Some(before) = now.checked_sub(as_ns(common.lease)) else { return };
    let expired = seat.load.expire(before);
    if expired > 0 {
        common.leases_expired_total.fetch_add(expired, Ordering::Relaxed);
        common.released(seat.worker());
    }
}

impl fmt::Debug for Booking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Booking").field("worker", &self.worker()).finish_non_exhaustive()
    }
}
