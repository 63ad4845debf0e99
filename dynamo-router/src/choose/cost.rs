use dynamo_core::Priority;
use dynamo_core::protocol::WorkerId;

use super::columns::Asked;
use crate::load::{Load, Paced};

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
    /// Time to fetch the KV of one token from a peer, until hand-offs have shown it (at 128 KiB per token
    /// over 25 GB/s).
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
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Known {
    /// Its load; see [`Load`].
    pub(crate) requests: f32,
    pub(crate) decoding: f32,
    pub(crate) prefill_tokens: f32,
    pub(crate) blocks: f32,
    /// What it has shown of its speed: tokens, and the seconds that they took.
    pub(crate) took_tokens: f32,
    pub(crate) took_s: f32,
    /// How long it has been at the first of those that wait.
    pub(crate) busy_s: f32,
    /// Blocks of the prompt that it has.
    pub(crate) depth: u32,
    /// What it takes to bring up what it has cached below its fastest tier.
    pub(crate) up_s: f32,
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
        self.ttft_s + model.harm_weight * self.harm_s + self.lacking_s
    }
}

/// What the formula says of one worker, in seconds; see [`CandidateCost`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cost {
    pub(crate) queue_s: f32,
    pub(crate) up_s: f32,
    pub(crate) ttft_s: f32,
    pub(crate) harm_s: f32,
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
    pub(crate) fn up_s(&self, tiers: [u32; 4], block_tokens: usize) -> f32 {
        let below = tiers[1..].iter().zip(self.tier_s_per_token);
        let per_token = below.map(|(blocks, s_per_token)| f64::from(*blocks) * s_per_token);
        single(per_token.sum::<f64>() * block_tokens as f64)
    }
}

/// The formula, with what is the same for all workers of a choice:
///
/// ```text
/// queue = queued · prefill, less what has passed of its head
/// ttft  = queue + up + new · prefill                 (or new · fetch)
/// harm  = (decoding + 3 · waiting) · new · prefill    (nothing if fetched)
///       + ½ · output · step · (requests · own + context)      (nothing if another decodes)
/// total = ttft + harm_weight · harm
/// ```
///
/// Prefilling stops those who decode, and will stop those who wait, who get their first tokens before
/// this one. A step takes longer by what the batch attends to: by this request's tokens for all who
/// are there, and by theirs for this one, until the first of the two ends: half an answer.
///
/// It is computed for many workers at once, so it has no branches, and seven digits: more than any
/// of its numbers is known by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Formula {
    prompt_tokens: f32,
    reusable_tokens: f32,
    block_tokens: f32,
    /// What all workers have shown together, and what holds before any has.
    pool_tokens: f32,
    pool_s: f32,
    prior_s_per_token: f32,
    /// 1 if what is not cached is prefilled, 0 if it is fetched.
    prefilled: f32,
    fetch_s_per_token: f32,
    /// What each token attended to adds until half the answer is there.
    half_answer_s: f32,
    waiting_weight: f32,
    harm_weight: f32,
}

impl Formula {
    pub(crate) fn new(model: &CostModel, paced: &Paced, asked: &Asked) -> Self {
        let answer_s = paced.step_s_per_token * paced.output_tokens;
        let (prefilled, fetch_s_per_token, answer_s) = match asked.work {
            Work::Full => (1.0, 0.0, answer_s),
            Work::Prefill => (1.0, 0.0, 0.0),
            Work::Fetch => (0.0, model.fetch_s_per_token, answer_s),
        };
        Self {
            prompt_tokens: asked.prompt_tokens as f32,
            reusable_tokens: asked.reusable_tokens as f32,
            block_tokens: asked.block_tokens as f32,
            pool_tokens: single(paced.prefill.tokens),
            pool_s: single(paced.prefill.seconds),
            prior_s_per_token: single(model.prefill_s_per_token),
            prefilled,
            fetch_s_per_token: single(fetch_s_per_token),
            half_answer_s: single(answer_s / 2.0),
            waiting_weight: single(model.waiting_weight),
            harm_weight: single(model.harm_weight),
        }
    }

    /// Applies it to one worker.
    #[inline(always)]
    pub(crate) fn cost(&self, known: &Known) -> Cost {
        let prefill_s_per_token = self.prefill_s_per_token(known);
        let cached =
            lesser(known.depth.cast_signed() as f32 * self.block_tokens, self.reusable_tokens);
        let new = self.prompt_tokens - cached;
        let prefill_s = new * prefill_s_per_token * self.prefilled;
        let work_s = prefill_s + new * self.fetch_s_per_token;
        let queued_s = known.prefill_tokens * prefill_s_per_token;
        let waiting = greater(known.requests - known.decoding, 0.0);
        // The head is one of those that wait, and takes no longer than they do in the mean.
        let head_s = lesser(known.busy_s, queued_s / greater(waiting, 1.0));
        let queue_s = if waiting > 0.0 { queued_s - head_s } else { queued_s };
        let stalled = known.decoding + self.waiting_weight * waiting;
        let context_tokens = known.blocks * self.block_tokens;
        let attended = known.requests * self.prompt_tokens + context_tokens;
        let harm_s = stalled * prefill_s + attended * self.half_answer_s;
        // What comes up later than it is computed is computed.
        let up_s = lesser(known.up_s, cached * prefill_s_per_token);
        Cost { queue_s, up_s, ttft_s: queue_s + up_s + work_s, harm_s }
    }

    /// Returns what is minimised: never endless, which is for who may not be chosen.
    #[inline(always)]
    pub(crate) fn total_s(&self, cost: &Cost) -> f32 {
        lesser(cost.ttft_s + self.harm_weight * cost.harm_s, DEAREST_S)
    }

    /// What a worker has shown counts for more the more of it there is, and what all have for the
    /// rest; see [`Speed::among`](crate::load::Speed::among).
    #[inline(always)]
    fn prefill_s_per_token(&self, known: &Known) -> f32 {
        let seconds = self.pool_s + known.took_s;
        let shown = seconds / (self.pool_tokens + known.took_tokens);
        if seconds > 0.0 { shown } else { self.prior_s_per_token }
    }
}

#[inline(always)]
pub(super) fn lesser(one: f32, other: f32) -> f32 {
    if other < one { other } else { one }
}

#[inline(always)]
fn greater(one: f32, other: f32) -> f32 {
    if other > one { other } else { one }
}

#[expect(clippy::cast_possible_truncation, reason = "seven digits of an estimate are enough")]
pub(super) fn single(number: f64) -> f32 {
    number as f32
}

/// Far enough below the largest number for what the pick and the labels add to it.
const DEAREST_S: f32 = 1e38;
