use dynamo_core::protocol::WorkerId;

use crate::load::Load;

/// The coefficients of the cost, in seconds.
///
/// The priors are those of a small fleet of data-centre GPUs; what matters is learned per worker
/// from first-token times, so that they need no tuning.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct CostModel {
    /// Time to prefill one token, until a worker's own rate is known.
    pub prefill_s_per_token: f64,
    /// Time to fetch the KV of one token from a peer (at 128 KiB per token over 25 GB/s).
    pub fetch_s_per_token: f64,
    /// What one more request adds to the time of a decode step.
    pub step_s_per_request: f64,
    /// Tokens that an answer is expected to have.
    pub output_tokens: f64,
    /// How much a second of delay for others weighs against a second of our own first token.
    pub harm_weight: f64,
    /// No worker is chosen whose queue is longer than the shortest one by more than this.
    pub queue_excess_max_s: f64,
}

impl Default for CostModel {
    fn default() -> Self {
        Self {
            prefill_s_per_token: 1.0 / 10_000.0,
            fetch_s_per_token: 131_072.0 / 25e9,
            step_s_per_request: 60e-6,
            output_tokens: 256.0,
            harm_weight: 0.1,
            queue_excess_max_s: 30.0,
        }
    }
}

/// What a worker would do for the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Prefill what is not cached.
    Prefill,
    /// Fetch what is not cached from the prefill worker.
    Fetch,
}

/// What choosing one worker would cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CandidateCost {
    /// The worker.
    pub worker: WorkerId,
    /// Prompt tokens it holds already.
    pub cached_tokens: usize,
    /// Prompt tokens it would have to prefill or fetch.
    pub new_tokens: usize,
    /// What is booked on it.
    pub load: Load,
    /// Time until its queue is empty, in seconds.
    pub queue_s: f64,
    /// Time until the request's first token there, its queue included, in seconds.
    pub ttft_s: f64,
    /// Delay that all requests decoding there would suffer together, in seconds.
    pub harm_s: f64,
    /// What the labels cost that it lacks and the request would rather have, in seconds.
    pub lacking_s: f64,
}

impl CandidateCost {
    /// Returns what is minimised, in seconds.
    pub fn total_s(&self, model: &CostModel) -> f64 {
        let Self { queue_s, ttft_s, harm_s, .. } = *self;
        Cost { queue_s, ttft_s, harm_s }.total_s(model) + self.lacking_s
    }
}

/// What the formula says of one worker, in seconds; see [`CandidateCost`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cost {
    pub(crate) queue_s: f64,
    pub(crate) ttft_s: f64,
    pub(crate) harm_s: f64,
}

impl Cost {
    pub(crate) fn total_s(&self, model: &CostModel) -> f64 {
        self.ttft_s + model.harm_weight * self.harm_s
    }
}

/// The formula:
///
/// ```text
/// ttft = (queued + new) · prefill   (or queued · prefill + new · fetch)   + requests · step
/// harm = decoding · (new · prefill + step · output)
/// ```
///
/// The harm is what prefilling stops, and what one more request in the batch slows down.
pub(crate) fn cost(
    model: &CostModel,
    prefill_s_per_token: f64,
    load: &Load,
    new_tokens: usize,
    work: Work,
) -> Cost {
    let new = new_tokens as f64;
    let (work_s, stop_s) = match work {
        Work::Prefill => (new * prefill_s_per_token, new * prefill_s_per_token),
        Work::Fetch => (new * model.fetch_s_per_token, 0.0),
    };
    let queue_s = load.prefill_tokens as f64 * prefill_s_per_token;
    let ttft_s = queue_s + work_s + load.requests as f64 * model.step_s_per_request;
    let slow_s = model.step_s_per_request * model.output_tokens;
    let harm_s = load.decoding as f64 * (stop_s + slow_s);
    Cost { queue_s, ttft_s, harm_s }
}
