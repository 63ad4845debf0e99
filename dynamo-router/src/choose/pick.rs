use dynamo_core::random::Random;

use super::columns::Columns;
use super::cost::CostModel;

/// Chooses a position: the cheapest, at random among those that cost almost the same.
///
/// Workers whose queue is far longer than the shortest one are left out first, whatever they
/// have cached: affinity never builds a queue without bound. `random` is only drawn from if there
/// is more than one to choose among.
pub(crate) fn pick(
    model: &CostModel,
    columns: &Columns,
    random: impl FnOnce() -> Random,
) -> Option<usize> {
    let Columns { queue_s, total_s, .. } = columns;
    let queue_max = least(queue_s.iter().copied()) + model.queue_excess_max_s;
    let among = |(queue, total): (&f64, &f64)| if *queue <= queue_max { *total } else { ENDLESS };
    let totals = || queue_s.iter().zip(total_s).map(among);
    let best = least(totals());
    let limit = best * NEAR + NEAR_S;
    let is_near = |total: &f64| *total <= limit && *total < ENDLESS;
    let nth = match totals().filter(is_near).count() {
        0 => return None,
        1 => 0,
        count => random().below(count)?,
    };
    totals().enumerate().filter(|(_, total)| is_near(total)).map(|(position, _)| position).nth(nth)
}

fn least(times: impl Iterator<Item = f64>) -> f64 {
    times.fold(ENDLESS, |least, time| if time < least { time } else { least })
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
    use crate::choose::cost::cost;
    use crate::load::Load;

    /// A worker's queue, requests that decode there, and tokens that are new to it.
    type Worker = (usize, usize, usize);

    fn columns(model: &CostModel, workers: &[Worker]) -> Columns {
        let mut columns = Columns::default();
        columns.reset(workers.len());
        for (position, (queued, decoding, new)) in workers.iter().copied().enumerate() {
            let load =
                Load { prefill_tokens: queued, decoding, requests: decoding, ..Load::default() };
            let cost = cost(model, model.prefill_s_per_token, &load, new, Work::Prefill);
            columns.queue_s[position] = cost.queue_s;
            columns.total_s[position] = cost.total_s(model);
        }
        columns
    }

    fn picks(model: &CostModel, workers: &[Worker]) -> BTreeSet<Option<usize>> {
        let columns = columns(model, workers);
        (0..64).map(|seed| pick(model, &columns, || Random::new(seed))).collect()
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
        assert_eq!(picks(&CostModel::default(), &[(0, 32, 1000), (0, 0, 1000)]), [Some(1)].into());
    }

    #[test]
    fn no_cached_prefix_is_worth_a_queue_without_bound() {
        let model = CostModel { queue_excess_max_s: 1.0, ..CostModel::default() };
        // The holder would be faster, yet it is behind the shortest queue by more than a second.
        let workers = [(20_000, 0, 0), (0, 0, 100_000)];
        let columns = columns(&model, &workers);
        assert!(columns.total_s[0] < columns.total_s[1]);
        assert_eq!(picks(&model, &workers), [Some(1)].into());
    }

    #[test]
    fn who_may_not_be_chosen_is_not_even_if_there_is_nobody_else() {
        let model = CostModel::default();
        let mut columns = columns(&model, &[(0, 0, 0)]);
        (columns.queue_s[0], columns.total_s[0]) = (ENDLESS, ENDLESS);
        assert_eq!(pick(&model, &columns, || Random::new(1)), None);
    }
}
