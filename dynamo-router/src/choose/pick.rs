use dynamo_core::random::Random;

use super::columns::{Columns, Score};
use super::cost::CostModel;

/// Chooses a position: the cheapest, at random among those that cost almost the same.
///
/// Those whose first token would come much later than the soonest are left out first, however little
/// they harm: kindness to others is never paid for with a wait without bound. An idle worker is not: it
/// waits for nobody, and one that never gets a request never has a prefix to get one for. `random` is
/// only drawn from if there is more than one to choose among.
pub(crate) fn pick(
    model: &CostModel,
    columns: &mut Columns,
    random: impl FnOnce() -> Random,
) -> Option<usize> {
    let Columns { scores, near, .. } = columns;
    let soonest = least(scores, |score| score.reach_s);
    let latest = soonest * (1.0 + model.ttft_excess_ratio) + model.ttft_excess_s;
    let is_eligible = |score: &Score| score.is_idle || score.reach_s <= latest;
    let total = |score: &Score| if is_eligible(score) { score.total_s } else { ENDLESS };
    let best = least(scores, total);
    if best == ENDLESS {
        return None;
    }
    let limit = best * NEAR + NEAR_S;
    near.clear();
    let is_near = |(_, score): &(usize, &Score)| total(score) <= limit;
    near.extend(scores.iter().enumerate().filter(is_near).map(|(position, _)| position));
    match near.len() {
        0 | 1 => near.first().copied(),
        count => near.get(random().below(count)?).copied(),
    }
}

/// Returns the least of the times `of` scores: four at once, for each comparison waits for the one
/// before it.
fn least(scores: &[Score], of: impl Fn(&Score) -> f64) -> f64 {
    let mut lanes = [ENDLESS; 4];
    let (fours, rest) = scores.as_chunks::<4>();
    for four in fours {
        lanes.iter_mut().zip(four).for_each(|(lane, score)| *lane = lesser(*lane, of(score)));
    }
    let rest = rest.iter().map(&of);
    lanes.into_iter().chain(rest).fold(ENDLESS, lesser)
}

fn lesser(one: f64, other: f64) -> f64 {
    if other < one { other } else { one }
}

const ENDLESS: f64 = f64::INFINITY;
/// Costs that differ by less than the estimate's error are the same.
const NEAR: f64 = 1.05;
/// A microsecond: separates nothing, and makes zero costs equal.
const NEAR_S: f64 = 1e-6;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::choose::Work;
    use crate::choose::cost::{Cost, Known, cost};
    use crate::load::{Booked, Load};

    /// A worker's queue, requests that decode there, and tokens that are new to it.
    type Worker = (usize, usize, usize);

    fn columns(model: &CostModel, workers: &[Worker]) -> Columns {
        let mut columns = Columns::default();
        columns.reset(workers.len());
        for (queued, decoding, new) in workers.iter().copied() {
            let load =
                Load { prefill_tokens: queued, decoding, requests: decoding, ..Load::default() };
            let known = Known {
                load,
                context_tokens: 0,
                prefill_s_per_token: model.prefill_s_per_token,
                busy_s: 0.0,
                step_s_per_token: model.step_s_per_token,
                output_tokens: model.output_tokens,
                up_s: 0.0,
            };
            let cost = cost(model, &known, (0, new), Work::Full);
            let (Cost { queue_s, ttft_s, .. }, total_s) = (cost, cost.total_s(model));
            let (reach_s, is_idle, booked) = (ttft_s, decoding == 0, Booked::NOTHING);
            columns.scores.push(Score { total_s, queue_s, ttft_s, reach_s, is_idle, booked });
        }
        columns
    }

    fn picks(model: &CostModel, workers: &[Worker]) -> BTreeSet<Option<usize>> {
        let mut columns = columns(model, workers);
        (0..64).map(|seed| pick(model, &mut columns, || Random::new(seed))).collect()
    }

    #[test]
    fn near_ties_spread_and_a_clear_difference_does_not() {
        let model = CostModel::default();
        assert_eq!(picks(&model, &[(0, 0, 1000), (0, 0, 1040)]), [Some(0), Some(1)].into());
        assert_eq!(picks(&model, &[(0, 0, 1000), (0, 0, 1100)]), [Some(0)].into());
        assert_eq!(picks(&model, &[]), [None].into());
    }

    #[test]
    fn harm_to_requests_that_decode_there_counts() {
        let model = CostModel::default();
        assert_eq!(picks(&model, &[(0, 32, 1000), (0, 0, 1000)]), [Some(1)].into());
        // Even for a first token that comes a little later.
        assert_eq!(picks(&model, &[(0, 32, 1000), (100, 1, 1000)]), [Some(1)].into());
    }

    #[test]
    fn a_cold_idle_worker_relieves_the_holders_of_a_hot_prefix() {
        let model = CostModel::default();
        assert_eq!(picks(&model, &[(0, 24, 1000), (0, 0, 3000)]), [Some(1)].into());
        assert_eq!(picks(&model, &[(0, 24, 1000), (0, 1, 3000)]), [Some(0)].into());
    }

    #[test]
    fn no_kindness_to_others_is_worth_a_wait_without_bound() {
        let model = CostModel::default();
        let workers = [(0, 200, 10_000), (1_000, 1, 10_000)];
        let columns = columns(&model, &workers);
        assert!(columns.scores[0].total_s > 2.0 * columns.scores[1].total_s);
        assert_eq!(picks(&model, &workers), [Some(0)].into());
    }

    #[test]
    fn who_may_not_be_chosen_is_not_even_if_there_is_nobody_else() {
        let model = CostModel::default();
        let mut columns = columns(&model, &[(0, 0, 0)]);
        columns.scores[0] = Score::NONE;
        assert_eq!(pick(&model, &mut columns, || Random::new(1)), None);
    }
}
