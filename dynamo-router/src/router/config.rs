use std::time::Duration;

use crate::choose::{AffinityConfig, CostModel};
use crate::index::IndexConfig;

/// How a router chooses.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RouterConfig {
    /// The coefficients of the cost.
    pub cost: CostModel,
    /// Decides among workers that cost the same; the same seed gives the same choices.
    pub seed: u64,
    /// Whether each decision tells what all the others would have cost, which takes room for them.
    pub explain: bool,
    /// How long a booking stays without progress; it ends at most a quarter of that later.
    pub lease: Duration,
    /// How old a worker's report may be; what it says counts less and less until then.
    pub report_max: Duration,
    /// How long a worker is expected to have, or get, the blocks of a prompt that was sent to it and
    /// that it has not said it has: so that a burst of one prefix does not scatter before the first
    /// event. `None` where nothing is expected.
    pub provisional_ttl: Option<Duration>,
    /// How requests of one session stay together.
    pub affinity: AffinityConfig,
    /// How much memory the index may take.
    pub index: IndexConfig,
    /// How the router knows what workers have cached.
    pub source: PrefixSource,
}

/// How a router knows which prefixes workers have cached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PrefixSource {
    /// Workers say it, by KV events; what was just sent to one is expected there for
    /// [`RouterConfig::provisional_ttl`].
    #[default]
    Events,
    /// Workers do not say it: one is taken to have what was sent to it, also if it has evicted that.
    ///
    /// Kept in memory of [`RouterConfig::index`], as blocks of events are, and forgotten when the
    /// worker is gone or begins anew. Seen of 16,384 workers at a time at most.
    Decisions {
        /// How long after it was sent there last a prompt is taken to be cached: about what an
        /// engine's cache takes to be filled once.
        ttl: Duration,
    },
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self {
            cost: CostModel::default(),
            seed: 0x5eed,
            explain: false,
            // A booking that ended too early is there again with the next token.
            lease: Duration::from_secs(60),
            // Several of the intervals at which engines report, which are a second or so.
            report_max: Duration::from_secs(5),
            // A long prompt is prefilled by then, behind others.
            provisional_ttl: Some(Duration::from_secs(10)),
            affinity: AffinityConfig::default(),
            index: IndexConfig::default(),
            source: PrefixSource::default(),
        }
    }
}

impl RouterConfig {
    /// Bounds the coefficients of the cost: whatever they are, what a choice computes of them is a
    /// number.
    pub(super) fn bound(&mut self) {
        let (cost, default) = (&mut self.cost, CostModel::default());
        let bound = |value: &mut f64, default| {
            *value = if value.is_nan() { default } else { value.clamp(0.0, SECONDS_MAX) };
        };
        bound(&mut cost.prefill_s_per_token, default.prefill_s_per_token);
        bound(&mut cost.fetch_s_per_token, default.fetch_s_per_token);
        let tiers = cost.tier_s_per_token.iter_mut().zip(default.tier_s_per_token);
        tiers.for_each(|(value, default)| bound(value, default));
        bound(&mut cost.step_s_per_token, default.step_s_per_token);
        bound(&mut cost.output_tokens, default.output_tokens);
        bound(&mut cost.harm_weight, default.harm_weight);
        bound(&mut cost.waiting_weight, default.waiting_weight);
        bound(&mut cost.ttft_excess_ratio, default.ttft_excess_ratio);
        bound(&mut cost.ttft_excess_s, default.ttft_excess_s);
    }

    /// Weighs costs by `cost`.
    #[must_use]
    pub fn with_cost(mut self, cost: CostModel) -> Self {
        self.cost = cost;
        self
    }

    /// Decides ties by `seed`.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Has each decision tell what all the others would have cost, or not.
    #[must_use]
    pub fn with_explain(mut self, explain: bool) -> Self {
        self.explain = explain;
        self
    }

    /// Releases bookings after `lease` without progress.
    #[must_use]
    pub fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Believes reports for at most `report_max`.
    #[must_use]
    pub fn with_report_max(mut self, report_max: Duration) -> Self {
        self.report_max = report_max;
        self
    }

    /// Expects blocks for `ttl` where their prompt was sent, or not at all.
    #[must_use]
    pub fn with_provisional_ttl(mut self, ttl: impl Into<Option<Duration>>) -> Self {
        self.provisional_ttl = ttl.into();
        self
    }

    /// Keeps the requests of a session together by `affinity`.
    #[must_use]
    pub fn with_affinity(mut self, affinity: AffinityConfig) -> Self {
        self.affinity = affinity;
        self
    }

    /// Sets up the index by `index`.
    #[must_use]
    pub fn with_index(mut self, index: IndexConfig) -> Self {
        self.index = index;
        self
    }

    /// Goes by `source` for what workers have cached.
    #[must_use]
    pub fn with_source(mut self, source: PrefixSource) -> Self {
        self.source = source;
        self
    }
}

/// Longer than any wait that is told from another, and short enough to add up.
pub(super) const SECONDS_MAX: f64 = 1e9;
