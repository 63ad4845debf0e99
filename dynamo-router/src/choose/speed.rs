use std::sync::atomic::{AtomicU64, Ordering};

/// How fast a worker was seen to be; read and taught without a lock.
#[derive(Debug, Default)]
pub(crate) struct Speed {
    /// The bits of the time to prefill one token in seconds; 0 if it was not seen yet.
    prefill_s_per_token: AtomicU64,
}

impl Speed {
    /// Learns from `tokens` prefilled in `seconds`: an average that forgets.
    pub(crate) fn observe(&self, tokens: usize, seconds: f64) {
        if tokens < OBSERVED_TOKENS_MIN || !seconds.is_finite() || seconds <= 0.0 {
            return;
        }
        let seen = seconds / tokens as f64;
        let learned = |known| {
            let rate = rate(known).map_or(seen, |rate| rate + (seen - rate) * FORGETTING);
            Some(rate.to_bits())
        };
        // It always has a value to set.
        let _ =
            self.prefill_s_per_token.fetch_update(Ordering::Relaxed, Ordering::Relaxed, learned);
    }

    /// Returns the time to prefill one token in seconds, if it was seen.
    pub(crate) fn prefill_s_per_token(&self) -> Option<f64> {
        rate(self.prefill_s_per_token.load(Ordering::Relaxed))
    }

    pub(crate) fn forget(&self) {
        self.prefill_s_per_token.store(0, Ordering::Relaxed);
    }
}

fn rate(bits: u64) -> Option<f64> {
    (bits != 0).then(|| f64::from_bits(bits))
}

/// Fewer tokens measure the overhead, not the rate.
const OBSERVED_TOKENS_MIN: usize = 16;
const FORGETTING: f64 = 0.2;
