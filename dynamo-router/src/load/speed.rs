use std::sync::atomic::{AtomicU64, Ordering};

/// How fast one worker prefills, learned from the times between its first tokens.
///
/// A worker prefills one request after another, so the time since its last first token, or since it
/// had nothing to prefill, is what the next one took: no other request's share is in it, however
/// long the queue was. Where there was nothing to prefill for long, what was shown before counts for
/// less: a worker that was slow by chance is not avoided for ever. Read and taught without a lock.
#[derive(Debug, Default)]
pub(crate) struct Speed {
    /// Sums over the last prefills, each of which counts for less the older it is.
    shown: Pair,
    /// Since when the request at the head of its queue is being prefilled, in nanoseconds; 0 if it
    /// never had one.
    busy_since: AtomicU64,
}

/// Tokens, and the seconds that they took, of which one is never newer than the other.
#[derive(Debug, Default)]
pub(super) struct Pair(AtomicU64);

/// Tokens, and the seconds that they took.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Took {
    pub(crate) tokens: f64,
    pub(crate) seconds: f64,
}

impl Speed {
    /// Takes in that a worker with nothing to prefill has got something.
    pub(crate) fn began(&self, now: u64) {
        let kept = fade(self.since_ns(now) as f32 * 1e-9);
        if kept < 1.0 {
            let kept = f64::from(kept);
            self.shown
                .update(|sums| Took { tokens: sums.tokens * kept, seconds: sums.seconds * kept });
        }
        self.resume(now);
    }

    /// Takes in that a request is at the head of its queue from now on, whatever was before.
    pub(crate) fn resume(&self, now: u64) {
        self.busy_since.store(now.max(1), Ordering::Relaxed);
    }

    /// Learns from a first token behind `tokens` prefilled tokens, and returns what was learned.
    pub(crate) fn first_token(&self, tokens: usize, now: u64) -> Option<Took> {
        let since = self.busy_since.swap(now.max(1), Ordering::Relaxed);
        let took = Took { tokens: tokens as f64, seconds: seconds(now.saturating_sub(since)) };
        // Fewer measure the overhead, not the rate. One that took no time came with the one before.
        if since == 0 || tokens < OBSERVED_TOKENS_MIN {
            return None;
        }
        self.shown.update(|sums| Took {
            tokens: sums.tokens * KEPT + took.tokens,
            seconds: sums.seconds * KEPT + took.seconds,
        });
        Some(took)
    }

    /// Returns the time per token in seconds, if it has shown any.
    pub(crate) fn shown(&self) -> Option<f64> {
        self.among(Took::default())
    }

    /// Returns the time per token in seconds: what it has shown counts for more the more of it
    /// there is, and what all of the pool have shown for the rest. `None` if nobody has.
    pub(crate) fn among(&self, pool: Took) -> Option<f64> {
        let own = self.shown.get();
        let (tokens, seconds) = (pool.tokens + own.tokens, pool.seconds + own.seconds);
        (seconds > 0.0).then(|| seconds / tokens)
    }

    /// Returns the tokens that it has shown its speed by, and the seconds that they took, in
    /// [`halves`].
    #[inline(always)]
    pub(super) fn took(&self) -> u64 {
        self.shown.0.load(Ordering::Relaxed)
    }

    /// Returns how long it has been at the request at the head of its queue, or without one, in
    /// nanoseconds.
    #[inline(always)]
    pub(super) fn since_ns(&self, now: u64) -> u64 {
        let since = self.busy_since.load(Ordering::Relaxed);
        if since == 0 { 0 } else { now.saturating_sub(since) }
    }

    pub(crate) fn forget(&self) {
        self.shown.update(|_| Took::default());
        self.busy_since.store(0, Ordering::Relaxed);
    }
}

impl Pair {
    pub(super) fn get(&self) -> Took {
        Self::unpacked(self.0.load(Ordering::Relaxed))
    }

    pub(super) fn update(&self, change: impl Fn(Took) -> Took) {
        let packed = |bits| Some(Self::packed(change(Self::unpacked(bits))));
        // There is always something to set.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, packed);
    }

    fn unpacked(bits: u64) -> Took {
        let (tokens, seconds) = halves(bits);
        Took { tokens: tokens.into(), seconds: seconds.into() }
    }

    #[expect(clippy::cast_possible_truncation, reason = "seven digits of an estimate are enough")]
    fn packed(took: Took) -> u64 {
        let half = |number: f64| u64::from((number as f32).to_bits());
        half(took.tokens) << 32 | half(took.seconds)
    }
}

/// Returns the two numbers that are packed into a word.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the half that is meant")]
pub(super) fn halves(bits: u64) -> (f32, f32) {
    (f32::from_bits((bits >> 32) as u32), f32::from_bits(bits as u32))
}

/// Returns how much still counts of what a worker has shown that has had nothing to prefill for so
/// long.
#[inline(always)]
pub(super) fn fade(idle_s: f32) -> f32 {
    let near = IDLE_S / idle_s;
    if near < 1.0 { near * near } else { 1.0 }
}

pub(super) fn seconds(ns: u64) -> f64 {
    ns as f64 * 1e-9
}

/// What busy workers are without a prompt now and then; ten times as long, and a hundredth counts.
const IDLE_S: f32 = 10.0;
const OBSERVED_TOKENS_MIN: usize = 16;
/// About the last fifty count.
const KEPT: f64 = 0.98;
