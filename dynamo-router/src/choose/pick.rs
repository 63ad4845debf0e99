use dynamo_core::random::Random;

use super::cost::{CandidateCost, CostModel};

/// Chooses among candidates: the cheapest, at random among those that cost almost the same.
///
/// Candidates whose queue is far longer than the shortest one are left out first, whatever they
/// have cached: affinity never builds a queue without bound.
pub(crate) fn pick(
    model: &CostModel,
    candidates: &[CandidateCost],
    random: &mut Random,
) -> Option<usize> {
    let shortest = candidates.iter().map(|c| c.queue_s).fold(f64::INFINITY, f64::min);
    let eligible = |c: &CandidateCost| c.queue_s <= shortest + model.queue_excess_max_s;
    let total = |c: &CandidateCost| c.total_s(model);
    let best = candidates.iter().filter(|c| eligible(c)).map(total).fold(f64::INFINITY, f64::min);
    let limit = best * NEAR + NEAR_S;
    let near = |c: &CandidateCost| eligible(c) && total(c) <= limit;
    let count = candidates.iter().filter(|c| near(c)).count();
    let nth = random.below(count)?;
    candidates.iter().enumerate().filter(|(_, c)| near(c)).map(|(index, _)| index).nth(nth)
}

/// Costs that differ by less than the estimate's error are the same.
const NEAR: f64 = 1.05;
/// A microsecond: separates nothing, and makes zero costs equal.
const NEAR_S: f64 = 1e-6;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use dynamo_core::protocol::{InstanceId, WorkerId};

    use super::*;
    use crate::choose::{Rates, Work, cost};
    use crate::load::Load;

    fn candidate(id: u64, queued: usize, decoding: usize, new_tokens: usize) -> CandidateCost {
        let load = Load { prefill_tokens: queued, decoding, requests: decoding, ..Load::default() };
        let worker = WorkerId::new(InstanceId(id));
        let model = CostModel::default();
        cost(&model, Rates::default(), worker, load, (0, new_tokens), Work::Prefill)
    }

    fn picks(model: &CostModel, candidates: &[CandidateCost]) -> BTreeSet<Option<usize>> {
        let mut random = Random::new(1);
        (0..64).map(|_| pick(model, candidates, &mut random)).collect()
    }

    #[test]
    fn near_ties_spread_and_a_clear_difference_does_not() {
        let model = CostModel::default();
        let near = [candidate(1, 0, 0, 1000), candidate(2, 0, 0, 1040)];
        assert_eq!(picks(&model, &near), [Some(0), Some(1)].into());
        let clear = [candidate(1, 0, 0, 1000), candidate(2, 0, 0, 1100)];
        assert_eq!(picks(&model, &clear), [Some(0)].into());
        assert_eq!(picks(&model, &[]), [None].into());
    }

    #[test]
    fn harm_to_requests_that_decode_there_counts() {
        let model = CostModel::default();
        let candidates = [candidate(1, 0, 32, 1000), candidate(2, 0, 0, 1000)];
        assert_eq!(picks(&model, &candidates), [Some(1)].into());
    }

    #[test]
    fn no_cached_prefix_is_worth_a_queue_without_bound() {
        let model = CostModel { queue_excess_max_s: 1.0, ..CostModel::default() };
        // The holder would be faster, yet it is behind the shortest queue by more than a second.
        let candidates = [candidate(1, 20_000, 0, 0), candidate(2, 0, 0, 100_000)];
        assert!(candidates[0].ttft_s < candidates[1].ttft_s);
        assert_eq!(picks(&model, &candidates), [Some(1)].into());
    }

    #[test]
    fn the_same_seed_gives_the_same_picks() {
        let candidates: Vec<_> = (0..8).map(|id| candidate(id, 0, 0, 100)).collect();
        let run = |seed| {
            let mut random = Random::new(seed);
            let model = CostModel::default();
            (0..16).map(|_| pick(&model, &candidates, &mut random)).collect::<Vec<_>>()
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }
}
