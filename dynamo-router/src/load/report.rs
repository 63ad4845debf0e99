use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use dynamo_core::protocol::LoadReport;

use super::Load;
use super::counts::Counts;
use super::row::clamp;

/// What a worker said last, as the difference to what was booked on it then: the requests of other
/// routers, and what bookings have too much.
///
/// What was booked then and is not any more cannot be too much; what was booked since counts whole.
/// The difference fades with the report's age, and is nothing once that is too old: silence says
/// neither busy nor idle. Two reports at once may be mixed; each field is still of one of them.
#[derive(Debug, Default)]
#[repr(C)]
pub(super) struct Reported {
    /// When it was said, in nanoseconds; 0 if nothing was.
    at: AtomicU64,
    requests: AtomicI64,
    decoding: AtomicI64,
    prefill_tokens: AtomicI64,
    blocks: AtomicI64,
    blocks_total: AtomicU64,
    /// What is still booked of what was booked then.
    left: Counts,
}

impl Reported {
    /// Tells whether nothing newer is known than what is said at `at`.
    pub(super) fn is_news(&self, at: u64) -> bool {
        self.at.load(Ordering::Acquire) < at.max(1)
    }

    /// Takes in `report`, which is news of `at`, when `booked` was booked.
    pub(super) fn take_in(&self, report: &LoadReport, booked: Load, at: u64) {
        self.left.set(booked);
        let running = u64::from(report.requests_running);
        let requests = running + u64::from(report.requests_waiting);
        let set = |field: &AtomicI64, said: u64, booked: usize| {
            field.store(signed(said).saturating_sub(signed(booked as u64)), Ordering::Relaxed);
        };
        set(&self.requests, requests, booked.requests);
        set(&self.decoding, running, booked.decoding);
        // What is not said corrects nothing.
        let prefill_tokens = report.prefill_tokens.unwrap_or(booked.prefill_tokens as u64);
        set(&self.prefill_tokens, prefill_tokens, booked.prefill_tokens);
        set(&self.blocks, report.blocks_active, booked.blocks);
        self.blocks_total.store(report.blocks_total, Ordering::Relaxed);
        self.at.store(at.max(1), Ordering::Release);
    }

    /// Takes in that of what was booked then, `before` has become `after`.
    pub(super) fn change(&self, before: Load, after: Load) {
        self.left.set(self.left.load().less(before).plus(after));
    }

    /// Corrects what is booked at `now` by what was reported, if that is younger than `max_ns`.
    #[inline(always)]
    pub(super) fn correct(&self, booked: Load, now: u64, max_ns: u64) -> Load {
        let at = self.at.load(Ordering::Acquire);
        let age = now.saturating_sub(at);
        if at == 0 || age >= max_ns { booked } else { self.corrected(booked, age, max_ns) }
    }

    /// Forgets what was said.
    pub(super) fn forget(&self) {
        self.at.store(0, Ordering::Release);
        self.blocks_total.store(0, Ordering::Relaxed);
    }

    fn corrected(&self, booked: Load, age: u64, max_ns: u64) -> Load {
        let weight = 1.0 - age as f64 / max_ns as f64;
        let left = self.left.load();
        let corrected = |booked: usize, left: usize, field: &AtomicI64| {
            let difference = field.load(Ordering::Relaxed) as f64 * weight;
            #[expect(clippy::cast_possible_truncation, reason = "a share of an i64 is one")]
            let difference = (difference as i64).max(-signed(left as u64));
            let count = signed(booked as u64).saturating_add(difference);
            clamp(u64::try_from(count).unwrap_or(0))
        };
        let requests = corrected(booked.requests, left.requests, &self.requests);
        Load {
            requests,
            decoding: corrected(booked.decoding, left.decoding, &self.decoding).min(requests),
            prefill_tokens: corrected(
                booked.prefill_tokens,
                left.prefill_tokens,
                &self.prefill_tokens,
            ),
            blocks: corrected(booked.blocks, left.blocks, &self.blocks),
            blocks_total: clamp(self.blocks_total.load(Ordering::Relaxed)),
        }
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
