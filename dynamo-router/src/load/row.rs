use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError};

use dynamo_core::protocol::LoadReport;

use super::Load;
use super::leases::{Lease, LeaseId, Leases};
use super::report::Reported;
use super::speed::{Speed, Took};
use super::sync::{AtomicU64, Mutex, MutexGuard, Ordering};
use super::table::{Chunk, ROWS};
use crate::workers::Change;

/// One worker's load: a row of the table, which choices read without a lock.
///
/// What a choice goes by is one word: who books says which word it has seen, and has to look again
/// if another choice was faster.
#[derive(Debug)]
pub(crate) struct Row {
    chunk: Arc<Chunk>,
    at: usize,
    leases: Mutex<Leases>,
    /// Whether the worker may have prefilled something else since its last first token of ours: for
    /// other routers, or for who has left.
    is_shared: AtomicBool,
}

/// What is booked on a worker at a moment: prompt tokens (32 bits), requests (16), and of these
/// those that decode (16).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Booked(u64);

/// What a request takes of a worker; without tokens to prefill it decodes from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) prefill_tokens: u32,
    pub(crate) blocks: u32,
}

const TOKEN: u64 = 1 << 32;
const REQUEST: u64 = 1 << 16;
const DECODING: u64 = 1;

impl Booked {
    pub(crate) const NOTHING: Self = Self(0);

    pub(super) fn of(word: u64) -> Self {
        Self(word)
    }

    pub(crate) fn prefill_tokens(self) -> u64 {
        self.0 / TOKEN
    }

    pub(crate) fn requests(self) -> u64 {
        (self.0 / REQUEST) & 0xffff
    }

    pub(crate) fn decoding(self) -> u64 {
        self.0 & 0xffff
    }

    /// Requests that have no token yet.
    pub(crate) fn waiting(self) -> u64 {
        self.requests() - self.decoding()
    }

    /// Returns it with `claim`, if there is room to count it: 65,535 requests, 2^32 tokens.
    pub(crate) fn plus(self, claim: Claim) -> Option<Self> {
        if self.requests() == 0xffff {
            return None;
        }
        self.0.checked_add(word(claim, claim.prefill_tokens == 0)).map(Self)
    }
}

/// What a claim adds to the word.
fn word(claim: Claim, is_decoding: bool) -> u64 {
    match is_decoding {
        true => REQUEST + DECODING,
        false => u64::from(claim.prefill_tokens) * TOKEN + REQUEST,
    }
}

impl Row {
    /// Takes row `at` of `chunk`, which nobody has, and of which nothing is known from then on.
    pub(crate) fn take(chunk: &Arc<Chunk>, at: usize) -> Self {
        let (chunk, leases) = (Arc::clone(chunk), Mutex::new(Leases::default()));
        let this = Self { chunk, at: at % ROWS, leases, is_shared: AtomicBool::new(false) };
        this.chunk.forget(this.at);
        this
    }

    /// Returns where it is.
    pub(crate) fn chunk(&self) -> &Arc<Chunk> {
        &self.chunk
    }

    pub(crate) fn speed(&self) -> &Speed {
        &self.chunk.speeds[self.at]
    }

    /// Takes in that a worker with nothing of ours to prefill has got something.
    pub(crate) fn began(&self, now: u64) {
        self.is_shared.store(self.others().waiting() > 0, Ordering::Relaxed);
        self.speed().began(now);
    }

    /// Learns from a first token behind `tokens` prefilled tokens, and returns what was learned:
    /// nothing if the worker had the prompts of other routers to prefill as well.
    pub(crate) fn first_token(&self, tokens: usize, now: u64) -> Option<Took> {
        let is_shared = self.others().waiting() > 0;
        if self.is_shared.swap(is_shared, Ordering::Relaxed) || is_shared {
            self.speed().resume(now);
            return None;
        }
        self.speed().first_token(tokens, now)
    }

    pub(crate) fn booked(&self) -> Booked {
        self.chunk.booked(self.at)
    }

    /// Books `claim` if the word is still `seen`; else returns what it is by now.
    pub(crate) fn reserve(&self, seen: Booked, claim: Claim) -> Result<(), Booked> {
        let next = seen.plus(claim).ok_or(seen)?;
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        self.word().compare_exchange(seen.0, next.0, success, failure).map_err(Booked)?;
        self.chunk.blocks[self.at].fetch_add(claim.blocks.into(), Ordering::Relaxed);
        Ok(())
    }

    /// Books `claim` whatever else is booked meanwhile; `false` if there is no room to count it.
    pub(crate) fn reserve_anyway(&self, claim: Claim) -> bool {
        let mut seen = self.booked();
        while let Err(now) = self.reserve(seen, claim) {
            if now.plus(claim).is_none() {
                return false;
            }
            seen = now;
        }
        true
    }

    /// Opens the lease of a claim that was reserved.
    pub(crate) fn open(&self, claim: Claim, now: u64) -> LeaseId {
        let is_decoding = claim.prefill_tokens == 0;
        let (is_expired, is_reported, progress) = (false, false, now);
        self.leases().insert(Lease { claim, is_decoding, is_expired, is_reported, progress })
    }

    /// Records progress at `now`, and that the prompt is prefilled if `is_decoding`; what has
    /// expired is booked again. Returns how the load has changed by it.
    pub(crate) fn progress(&self, id: LeaseId, now: u64, is_decoding: bool) -> Option<Change> {
        let mut leases = self.leases();
        let lease = leases.get(id);
        lease.progress = lease.progress.max(now);
        let before = *lease;
        lease.is_decoding |= is_decoding;
        if lease.is_expired {
            let tokens = if lease.is_decoding { 0 } else { lease.claim.prefill_tokens };
            lease.is_expired =
                !self.reserve_anyway(Claim { prefill_tokens: tokens, ..lease.claim });
            return (!lease.is_expired).then_some(Change::More);
        }
        if lease.is_decoding == before.is_decoding {
            return None;
        }
        if lease.is_reported {
            self.reported().change(before.load(), lease.load());
        }
        // Each part of the word is the sum of what leases add to it, so none runs into the next.
        let change = word(lease.claim, true).wrapping_sub(word(lease.claim, false));
        self.word().fetch_add(change, Ordering::AcqRel);
        Some(Change::Less)
    }

    /// Closes a lease, and tells whether anything was released by it.
    pub(crate) fn close(&self, id: LeaseId) -> bool {
        let mut leases = self.leases();
        let lease = leases.remove(id);
        if !lease.is_decoding {
            // What was prefilled of it would count as the next one's time.
            self.is_shared.store(true, Ordering::Relaxed);
        }
        if !lease.is_expired {
            self.release(&lease);
        }
        !lease.is_expired
    }

    /// Releases what has made no progress since `before`, and returns how many requests that are.
    pub(crate) fn expire(&self, before: u64) -> u64 {
        let mut leases = self.leases();
        let mut expired = 0;
        for lease in leases.iter_mut() {
            if !lease.is_expired && lease.progress <= before {
                self.release(lease);
                (lease.is_expired, lease.is_reported) = (true, false);
                expired += 1;
            }
        }
        expired
    }

    fn release(&self, lease: &Lease) {
        if lease.is_reported {
            self.reported().change(lease.load(), Load::default());
        }
        self.word().fetch_sub(word(lease.claim, lease.is_decoding), Ordering::AcqRel);
        self.chunk.blocks[self.at].fetch_sub(lease.claim.blocks.into(), Ordering::Relaxed);
    }

    /// Takes in what the worker said at `at`; `false` if something newer is known.
    pub(crate) fn report(&self, report: &LoadReport, at: u64) -> bool {
        let mut leases = self.leases();
        if !self.reported().is_news(at) {
            return false;
        }
        leases.others_reported = self.others();
        let booked = leases.report().plus(leases.others_reported);
        self.reported().take_in(report, booked, at);
        self.chunk.set_corrected(self.at, true);
        true
    }

    /// Returns the load, of which `booked` is the word seen, at `now`.
    pub(crate) fn load(&self, booked: Booked, now: u64, report_max_ns: u64) -> Load {
        self.chunk.load(self.at, booked, now, report_max_ns)
    }

    /// Returns the KV blocks booked.
    pub(crate) fn blocks(&self) -> u64 {
        self.chunk.blocks(self.at)
    }

    /// Returns what this router has booked.
    pub(crate) fn own(&self) -> Load {
        self.chunk.own(self.at, self.booked())
    }

    /// Takes in what other routers have booked; tells whether that is another than it was.
    pub(crate) fn set_others(&self, load: Load) -> bool {
        let mut leases = self.leases();
        let before = leases.others_reported;
        leases.others_reported = before.shared(load);
        self.reported().change(before, leases.others_reported);
        if load.waiting() > 0 {
            self.is_shared.store(true, Ordering::Relaxed);
        }
        let is_news = self.chunk.others[self.at].set(load);
        self.chunk.set_corrected(self.at, true);
        is_news
    }

    fn others(&self) -> Load {
        self.chunk.others[self.at].load()
    }

    fn reported(&self) -> &Reported {
        &self.chunk.reported[self.at]
    }

    fn word(&self) -> &AtomicU64 {
        &self.chunk.booked[self.at]
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl Default for Row {
    fn default() -> Self {
        Self::take(&Arc::default(), 0)
    }
}

pub(super) fn clamp(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
