use std::time::Duration;

/// How long a pass of an engine takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Timing {
    /// The default of NVIDIA's `dynamo-mocker` 1.6: polynomials in the new tokens of a batch and in
    /// the share of the cache that its requests attend to. Which GPU they fit is not known.
    Polynomial,
    /// The same prefill, with steps as `aiconfigurator` validates its formulas by: linear in the
    /// batch and in its mean context.
    Linear,
}

/// The requests that decode in a pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) requests: usize,
    /// Tokens that they attend to, all together.
    pub(super) context_tokens: usize,
}

impl Timing {
    /// Returns the time of a pass that prefills `new_tokens` beside `batch`.
    pub(super) fn pass(self, new_tokens: usize, batch: Batch, cache_tokens: usize) -> Duration {
        Duration::from_secs_f64((prefill_ms(new_tokens) + self.step_ms(batch, cache_tokens)) / 1e3)
    }

    fn step_ms(self, batch: Batch, cache_tokens: usize) -> f64 {
        if batch.requests == 0 {
            return 0.0;
        }
        let (requests, context) = (batch.requests as f64, batch.context_tokens as f64);
        let ms = match self {
            Self::Polynomial => {
                let share = (context / cache_tokens as f64).min(1.0);
                5.74 + 54.01 * share - 25.74 * share * share
            }
            Self::Linear => 3.0 + 0.06 * requests + 0.0011 * context / requests,
        };
        ms.max(1.0)
    }
}

fn prefill_ms(new_tokens: usize) -> f64 {
    if new_tokens == 0 {
        return 0.0;
    }
    let tokens = new_tokens as f64;
    16.50142 + 0.01518344 * tokens + 4.209989e-7 * tokens * tokens
}
