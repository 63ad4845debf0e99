use std::fmt;

use dynamo_core::protocol::WorkerId;

use super::cost::CandidateCost;

/// Why a worker was chosen: its cost beside everyone else's.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteExplain {
    /// Tokens in the prompt.
    pub prompt_tokens: usize,
    /// The worker that was chosen.
    pub chosen: CandidateCost,
    /// The others.
    pub others: Vec<CandidateCost>,
}

impl RouteExplain {
    /// Returns the cost of `worker`, if it was a candidate.
    pub fn candidate(&self, worker: WorkerId) -> Option<&CandidateCost> {
        std::iter::once(&self.chosen).chain(&self.others).find(|cost| cost.worker == worker)
    }
}

impl fmt::Display for RouteExplain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { prompt_tokens, chosen, others } = self;
        let fastest = others.iter().map(|other| other.ttft_s).fold(f64::INFINITY, f64::min);
        let holder = others.iter().max_by_key(|other| other.cached_tokens);
        let most_cached = holder.map_or(0, |holder| holder.cached_tokens);
        if chosen.cached_tokens > most_cached {
            write!(f, "holds {} of {prompt_tokens} tokens", chosen.cached_tokens)?;
        } else if chosen.cached_tokens < most_cached {
            let is_busier = holder.is_some_and(|holder| holder.queue_s > chosen.queue_s);
            let why = if is_busier { "less busy than" } else { "as good as" };
            write!(f, "{why} the holder of {most_cached} tokens")?;
        } else if others.iter().any(|other| other.load.requests > chosen.load.requests) {
            f.write_str("least busy")?;
        } else {
            f.write_str("as good as any")?;
        }
        if others.is_empty() {
            return write!(f, ", ttft {:.3} s, no other", chosen.ttft_s);
        }
        write!(f, ", ttft {:.3} s against {fastest:.3} s", chosen.ttft_s)
    }
}
