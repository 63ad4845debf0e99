/// What steps take, learned from the answers that have ended.
///
/// A worker attends in each step to all tokens that its requests have in the cache, so the time per
/// token is a line over their number; its slope is what a further request costs those it joins.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Steps {
    count: f64,
    cached: f64,
    seconds: f64,
    /// Sums of squares and of products around the means.
    cached_squares: f64,
    products: f64,
    output_tokens: f64,
}

impl Steps {
    /// Learns from an answer of `tokens` tokens after its first, `seconds` each, beside
    /// `cached_tokens` on the worker.
    pub(crate) fn observe(&mut self, tokens: usize, seconds: f64, cached_tokens: f64) {
        for sum in [&mut self.count, &mut self.cached_squares, &mut self.products] {
            *sum *= KEPT;
        }
        self.count += 1.0;
        let share = self.count.recip();
        let off = cached_tokens - self.cached;
        self.cached += off * share;
        self.cached_squares += off * (cached_tokens - self.cached);
        self.products += off * (seconds - self.seconds) * (1.0 - share);
        self.seconds += (seconds - self.seconds) * share;
        self.output_tokens += (tokens as f64 - self.output_tokens) * share;
    }

    /// Returns what one more cached token adds to a step in seconds, at first about `prior`.
    pub(crate) fn s_per_cached_token(&self, prior: f64) -> f64 {
        let slope = self.products + prior * PRIOR_SQUARES;
        (slope / (self.cached_squares + PRIOR_SQUARES)).max(0.0)
    }

    /// Returns the tokens of an answer in the mean, at first about `prior`.
    pub(crate) fn output_tokens(&self, prior: f64) -> f64 {
        (self.output_tokens * self.count + prior * PRIOR_COUNT) / (self.count + PRIOR_COUNT)
    }
}

/// About the last thousand answers count.
const KEPT: f64 = 0.999;
/// Answers that the prior counts for.
const PRIOR_COUNT: f64 = 10.0;
/// The spread in cached tokens that the prior counts for: ten answers that are 32,768 apart.
const PRIOR_SQUARES: f64 = PRIOR_COUNT * 32_768.0 * 32_768.0;
