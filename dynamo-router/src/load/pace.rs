use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::speed::{Pair, Took};
use super::steps::Steps;

/// How fast the workers of a pool are together: learned under a lock, once per request, and read
/// without.
#[derive(Debug)]
pub(crate) struct Pace {
    learned: Mutex<Learned>,
    prefill: Pair,
    /// The bits of two numbers of [`Paced`].
    step_s_per_token: AtomicU64,
    output_tokens: AtomicU64,
}

#[derive(Debug)]
struct Learned {
    /// How many prefills the mean is of, each of which counts for less the older it is.
    prefills: f64,
    steps: Steps,
    prior: Paced,
}

/// What a pool has shown, or the priors stand in for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paced {
    /// What stands in for what a worker has not shown itself.
    pub(crate) prefill: Took,
    /// What one more cached token adds to a step.
    pub(crate) step_s_per_token: f64,
    /// Tokens of an answer.
    pub(crate) output_tokens: f64,
}

impl Pace {
    /// Starts from what is believed of steps and answers before any was seen.
    pub(crate) fn new(step_s_per_token: f64, output_tokens: f64) -> Self {
        let prior = Paced { prefill: Took::default(), step_s_per_token, output_tokens };
        Self {
            learned: Mutex::new(Learned { prefills: 0.0, steps: Steps::default(), prior }),
            prefill: Pair::default(),
            step_s_per_token: AtomicU64::new(step_s_per_token.to_bits()),
            output_tokens: AtomicU64::new(output_tokens.to_bits()),
        }
    }

    /// Returns what is known.
    pub(crate) fn get(&self) -> Paced {
        let number = |bits: &AtomicU64| f64::from_bits(bits.load(Ordering::Relaxed));
        Paced {
            prefill: self.prefill.get(),
            step_s_per_token: number(&self.step_s_per_token),
            output_tokens: number(&self.output_tokens),
        }
    }

    /// Learns from one prefill.
    pub(crate) fn prefilled(&self, took: Took) {
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        learned.prefills = learned.prefills * KEPT + 1.0;
        let share = learned.prefills.recip();
        self.prefill.update(|mean| Took {
            tokens: mean.tokens + (BORROWED * took.tokens - mean.tokens) * share,
            seconds: mean.seconds + (BORROWED * took.seconds - mean.seconds) * share,
        });
    }

    /// Learns from an answer of `tokens` tokens after its first, `seconds` each, beside
    /// `cached_tokens` on the worker.
    pub(super) fn answered(&self, tokens: usize, seconds: f64, cached_tokens: f64) {
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        learned.steps.observe(tokens, seconds, cached_tokens);
        let step = learned.steps.s_per_cached_token(learned.prior.step_s_per_token);
        let output = learned.steps.output_tokens(learned.prior.output_tokens);
        self.step_s_per_token.store(step.to_bits(), Ordering::Relaxed);
        self.output_tokens.store(output.to_bits(), Ordering::Relaxed);
    }
}

/// About the last four hundred prefills count.
const KEPT: f64 = 0.9975;
/// Prefills of its own after which a worker's time is half its own and half the pool's: one
/// request's time has an error of a third, and a choice shall not follow from that.
const BORROWED: f64 = 10.0;
