use dynamo_core::Priority;
use dynamo_core::protocol::WorkerId;

use crate::load::Load;

/// The coefficients of the cost, in seconds.
///
/// Those that say how fast workers are hold until answers have shown it: the priors are those of a
/// small fleet of data-centre GPUs, and need no tuning. A router takes what is negative as 0, what is
/// above 10^9 as that, and what is no number as the default.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct CostModel {
    /// Time to prefill one token, until a worker has shown it.
    pub prefill_s_per_token: f64,
    /// Time to fetch the KV of one token from a peer (at 128 KiB per token over 25 GB/s).
    pub fetch_s_per_token: f64,
    /// Time to bring the KV of one token up from host memory, from a disk, and from further away (at
    /// 128 KiB per token over 25, 6 and 2.5 GB/s). What is computed sooner is not waited for.
    pub tier_s_per_token: [f64; 3],
    /// What one more token in the cache adds to the time of a step, until answers have shown it
    /// (at 128 KiB per token from memory of 3.35 TB/s).
    pub step_s_per_token: f64,
    /// Tokens that an answer is expected to have, until answers have shown it.
    pub output_tokens: f64,
    /// How much a second of delay for those who decode weighs against a second of our own first
    /// token, for a request of [normal priority](Self::for_priority).
    pub harm_weight: f64,
    /// How many times as much it weighs for those who wait for their first token. A stall that comes
    /// right behind it is long beside an answer that is short, and many are.
    pub waiting_weight: f64,
    /// No busy worker is chosen whose first token would come later than the soonest by more than this
    /// share of it, and by `ttft_excess_s`.
    pub ttft_excess_ratio: f64,
    /// The time that goes with `ttft_excess_ratio`.
    pub ttft_excess_s: f64,
}

impl Default for CostModel {
    fn default() -> Self {
        Self {
            prefill_s_per_token: 1.0 / 10_000.0,
            fetch_s_per_token: 131_072.0 / 25e9,
            tier_s_per_token: [131_072.0 / 25e9, 131_072.0 / 6e9, 131_072.0 / 2.5e9],
            step_s_per_token: 131_072.0 / 3.35e12,
            output_tokens: 256.0,
            harm_weight: 0.1,
            waiting_weight: 3.0,
            ttft_excess_ratio: 0.02,
            ttft_excess_s: 0.02,
        }
    }
}

/// What a worker would do for the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Prefill what is not cached, and decode.
    Full,
    /// Prefill what is not cached; another worker decodes.
    Prefill,
    /// Fetch what is not cached from the prefill worker, and decode.
    Fetch,
}

/// What is known of a worker at the moment of a choice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    pub(crate) load: Load,
    /// Tokens in the cache that its requests attend to.
    pub(crate) context_tokens: usize,
    pub(crate) prefill_s_per_token: f64,
    /// How long it has been at the first of those that wait.
    pub(crate) busy_s: f64,
    pub(crate) step_s_per_token: f64,
    pub(crate) output_tokens: f64,
    /// What it takes to bring up what it has cached below its fastest tier.
    pub(crate) up_s: f64,
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
    /// Time to bring up what it holds below its fastest tier, in seconds.
    pub up_s: f64,
    /// Time until the request's first token there, all of that included, in seconds.
    pub ttft_s: f64,
    /// Delay that the requests there and this one would cause each other after their first tokens,
    /// all together, in seconds.
    pub harm_s: f64,
    /// What the labels cost that it lacks and the request would rather have, in seconds.
    pub lacking_s: f64,
}

impl CandidateCost {
    /// Returns what is minimised, in seconds, where `model` is that
    /// [for the request's priority](CostModel::for_priority).
    pub fn total_s(&self, model: &CostModel) -> f64 {
        let Self { queue_s, up_s, ttft_s, harm_s, .. } = *self;
        Cost { queue_s, up_s, ttft_s, harm_s }.total_s(model) + self.lacking_s
    }
}

/// What the formula says of one worker, in seconds; see [`CandidateCost`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cost {
    pub(crate) queue_s: f64,
    pub(crate) up_s: f64,
    pub(crate) ttft_s: f64,
    pub(crate) harm_s: f64,
}

impl CostModel {
    /// Returns the model by which a request of `priority` is weighed: each level above
    /// [`NORMAL`](Priority::NORMAL) halves what the delay of others weighs, each below doubles it.
    #[must_use]
    pub fn for_priority(mut self, priority: Priority) -> Self {
        let above = i32::from(priority.level()) - i32::from(Priority::NORMAL.level());
        self.harm_weight *= 2f64.powi(-above);
        self
    }

    /// Returns what it takes to bring up blocks of so many tokens each, which are in these tiers, the
    /// fastest first, in seconds.
    pub(crate) fn up_s(&self, tiers: [u32; 4], block_tokens: usize) -> f64 {
        let below = tiers[1..].iter().zip(self.tier_s_per_token);
        below.map(|(blocks, s_per_token)| f64::from(*blocks) * s_per_token).sum::<f64>()
            * block_tokens as f64
    }
}

impl Cost {
    pub(crate) fn total_s(&self, model: &CostModel) -> f64 {
        self.ttft_s + model.harm_weight * self.harm_s
    }
}

/// The formula:
///
/// ```text
/// queue = queued · prefill, less what has passed of its head
/// ttft  = queue + up + new · prefill                 (or new · fetch)
/// harm  = (decoding + 3 · waiting) · new · prefill    (nothing if fetched)
///       + ½ · output · step · (requests · own + context)      (nothing if another decodes)
/// ```
///
/// Prefilling stops those who decode, and will stop those who wait, who get their first tokens before
/// this one. A step takes longer by what the batch attends to: by this request's tokens for all who
/// are there, and by theirs for this one, until the first of the two ends: half an answer.
#[inline(always)]
pub(crate) fn cost(
    model: &CostModel,
    known: &Known,
    (cached_tokens, new_tokens): (usize, usize),
    work: Work,
) -> Cost {
    let Known { load, prefill_s_per_token, .. } = *known;
    let new = new_tokens as f64;
    let prefill_s = new * prefill_s_per_token;
    let (work_s, stop_s, output_tokens) = match work {
        Work::Full => (prefill_s, prefill_s, known.output_tokens),
        Work::Prefill => (prefill_s, prefill_s, 0.0),
        Work::Fetch => (new * model.fetch_s_per_token, 0.0, known.output_tokens),
    };
    let queued_s = load.prefill_tokens as f64 * prefill_s_per_token;
    // The head is one of those that wait, and takes no longer than they do in the mean.
    let queue_s = match load.waiting() {
        0 => queued_s,
        waiting => queued_s - known.busy_s.min(queued_s / waiting as f64),
    };
    let stalled = load.decoding as f64 + model.waiting_weight * load.waiting() as f64;
    let own = (cached_tokens + new_tokens) as f64;
    let attended = load.requests as f64 * own + known.context_tokens as f64;
    let slower_s = known.step_s_per_token * output_tokens / 2.0;
    let harm_s = stalled * stop_s + attended * slower_s;
    // What comes up later than it is computed is computed.
    let up_s = known.up_s.min(cached_tokens as f64 * prefill_s_per_token);
    Cost { queue_s, up_s, ttft_s: queue_s + up_s + work_s, harm_s }
}
