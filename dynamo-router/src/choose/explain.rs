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
    /// What there is to say of the others.
    pub rivals: Rivals,
    /// The others one by one, if they were asked for
    /// ([`RouterConfig::explain`](crate::RouterConfig::explain)).
    pub others: Vec<CandidateCost>,
}

/// The workers that could have been chosen as well.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rivals {
    /// How many they are.
    pub count: usize,
    /// The shortest time to a first token among them, in seconds; endless if there are none.
    pub ttft_s: f64,
    /// Prompt tokens that the one has cached that has most of them.
    pub cached_tokens: usize,
    /// The queue of that one, in seconds.
    pub holder_queue_s: f64,
    /// Requests on the one that has most of them, booked by anybody or reported, corrected as in
    /// [`Load`](crate::Load).
    pub requests: usize,
}

impl Default for Rivals {
    fn default() -> Self {
        Self { count: 0, ttft_s: f64::INFINITY, cached_tokens: 0, holder_queue_s: 0.0, requests: 0 }
    }
}

impl RouteExplain {
    /// Returns the cost of `worker`, if it was chosen or is among the others that were asked for.
    pub fn candidate(&self, worker: WorkerId) -> Option<&CandidateCost> {
        std::iter::once(&self.chosen).chain(&self.others).find(|cost| cost.worker == worker)
    }
}

/// Says it in a line; the alternate form (`{:#}`) has a line for each worker behind that, as far as
/// the others were asked for.
impl fmt::Display for RouteExplain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.summarise(f)?;
        if f.alternate() && !self.others.is_empty() {
            std::iter::once(&self.chosen)
                .chain(&self.others)
                .try_for_each(|candidate| write!(f, "\n  {candidate}"))?;
        }
        Ok(())
    }
}

impl fmt::Display for CandidateCost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { worker, cached_tokens, load, queue_s, up_s, ttft_s, harm_s, lacking_s, .. } =
            self;
        write!(f, "{worker}: {cached_tokens} tokens cached, {} waiting, ", load.waiting())?;
        write!(f, "{} decoding, queue {queue_s:.3} s, up {up_s:.3} s, ", load.decoding)?;
        write!(f, "ttft {ttft_s:.3} s, harm {harm_s:.3} s, lacking {lacking_s:.3} s")
    }
}

impl RouteExplain {
    fn summarise(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { prompt_tokens, chosen, rivals, .. } = self;
        let most_cached = rivals.cached_tokens;
        if chosen.cached_tokens > most_cached {
            write!(f, "holds {} of {prompt_tokens} tokens", chosen.cached_tokens)?;
        } else if chosen.cached_tokens < most_cached {
            let is_busier = rivals.holder_queue_s > chosen.queue_s;
            let why = if is_busier { "less busy than" } else { "as good as" };
            write!(f, "{why} the holder of {most_cached} tokens")?;
        } else if rivals.requests > chosen.load.requests {
            f.write_str("least busy")?;
        } else {
            f.write_str("as good as any")?;
        }
        if rivals.count == 0 {
            return write!(f, ", ttft {:.3} s, no other", chosen.ttft_s);
        }
        write!(f, ", ttft {:.3} s against {:.3} s", chosen.ttft_s, rivals.ttft_s)
    }
}
