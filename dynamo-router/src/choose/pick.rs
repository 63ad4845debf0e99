use dynamo_core::random::Random;

use super::columns::{Columns, Sheet, least};
use super::cost::{CostModel, single};
use crate::load::ROWS;

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
    let Columns { sheets, near, .. } = columns;
    let reach = |sheet: &Sheet, at: usize| sheet.ttft_s[at] + sheet.lacking_s[at];
    let soonest = least(sheets, reach);
    let latest = soonest * single(1.0 + model.ttft_excess_ratio) + single(model.ttft_excess_s);
    let is_soon = |sheet: &Sheet, at| sheet.is_idle(at) | (reach(sheet, at) <= latest);
    let total = |sheet: &Sheet, at| if is_soon(sheet, at) { sheet.total_s[at] } else { ENDLESS };
    let best = least(sheets, total);
    if best == ENDLESS {
        return None;
    }
    let limit = best * NEAR + NEAR_S;
    near.clear();
    for (nth, sheet) in sheets.iter().enumerate() {
        let is_near = |at: &usize| (sheet.total_s[*at] <= limit) & is_soon(sheet, *at);
        // Few sheets have any, which is found out without a branch for each.
        let places = 0..sheet.end();
        if places.clone().map(|at| u32::from(is_near(&at))).sum::<u32>() > 0 {
            near.extend(places.filter(is_near).map(|at| nth * ROWS + at));
        }
    }
    match near.len() {
        0 | 1 => near.first().copied(),
        count => near.get(random().below(count)?).copied(),
    }
}

const ENDLESS: f32 = f32::INFINITY;
/// Costs that differ by less than the estimate's error are the same.
const NEAR: f32 = 1.05;
/// A microsecond: separates nothing, and makes zero costs equal.
const NEAR_S: f32 = 1e-6;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::choose::Work;
    use crate::choose::columns::Asked;
    use crate::choose::cost::Formula;
    use crate::load::{Load, Pace};

    /// A worker's queue, requests that decode there, and tokens that are new to it.
    type Worker = (usize, usize, usize);

    fn columns(model: &CostModel, workers: &[Worker]) -> Columns {
        let prompt_tokens = workers.iter().map(|(_, _, new)| *new).max().unwrap_or(0);
        let (reusable_tokens, blocks) = (prompt_tokens, 0);
        let work = Work::Full;
        let asked = Asked { work, prompt_tokens, reusable_tokens, blocks, block_tokens: 1 };
        let paced = Pace::new(model.step_s_per_token, model.output_tokens).get();
        let mut sheet = Sheet::default();
        for (at, (queued, decoding, new)) in workers.iter().copied().enumerate() {
            let load =
                Load { prefill_tokens: queued, decoding, requests: decoding, ..Load::default() };
            sheet.seen.set_load(at, &load);
            sheet.depths[at] = u32::try_from(prompt_tokens - new).unwrap();
            sheet.set(at, &Formula::new(model, &paced, &asked));
        }
        Columns { sheets: vec![sheet], ..Columns::default() }
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
        let total_s = columns.sheets[0].total_s;
        assert!(total_s[0] > 2.0 * total_s[1]);
        assert_eq!(picks(&model, &workers), [Some(0)].into());
    }

    #[test]
    fn who_may_not_be_chosen_is_not_even_if_there_is_nobody_else() {
        let model = CostModel::default();
        let mut columns = columns(&model, &[(0, 0, 0)]);
        columns.sheets[0].leave_out(1, ROWS);
        assert_eq!(pick(&model, &mut columns, || Random::new(1)), None);
    }
}
