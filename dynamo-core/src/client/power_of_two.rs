use std::sync::{Arc, Mutex, PoisonError};

use super::counts::Counts;
use super::{Pick, Picker};
use crate::discovery::Instance;
use crate::engine::Context;
use crate::error::Result;
use crate::protocol::InstanceId;
use crate::random::Random;

/// Picks the less loaded of two instances drawn at random.
///
/// Many clients that each know only their own streams do not all run to the same instance so
/// (Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 2001).
#[derive(Debug, Clone)]
pub struct PowerOfTwo {
    counts: Counts,
    random: Arc<Mutex<Random>>,
}

impl PowerOfTwo {
    /// Draws by `seed`.
    pub fn new(seed: u64) -> Self {
        let random = Arc::new(Mutex::new(Random::new(seed)));
        Self { counts: Counts::default(), random }
    }

    /// Returns how many streams are running on `instance`.
    pub fn streams(&self, instance: InstanceId) -> usize {
        self.counts.streams(instance)
    }
}

impl<Req> Picker<Req> for PowerOfTwo {
    fn pick(&self, _: &Context, _: &Req, candidates: &[Instance]) -> Result<Pick> {
        let two = {
            let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
            // Two different ones, if there are two.
            let first = random.below(candidates.len());
            let other = random.below(candidates.len().saturating_sub(1));
            let second = first.zip(other).map(
                |(first, other)| {
                    if other >= first { other + 1 } else { other }
                },
            );
            [first, second]
        };
        self.counts.pick(candidates, |load| {
            let drawn = two.into_iter().flatten().map(|index| candidates[index].id);
            drawn.min_by_key(|id| load(*id))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::client::{LeastLoaded, RandomPicker};
    use crate::discovery::Address;
    use crate::name::{EndpointPath, Name};

    fn fleet(count: u64) -> Vec<Instance> {
        let name = |name| Name::new(name).unwrap();
        let endpoint =
            EndpointPath { namespace: name("n"), component: name("c"), endpoint: name("e") };
        let instance = |id| Instance {
            id: InstanceId(id),
            incarnation: 0,
            endpoint: endpoint.clone(),
            address: Address(String::new()),
            labels: BTreeMap::new(),
        };
        (0..count).map(instance).collect()
    }

    /// Returns the streams per instance after `picks` that all go on.
    fn spread(picker: &dyn Picker<()>, count: u64, picks: usize) -> Vec<usize> {
        let (fleet, ctx) = (fleet(count), Context::new());
        let mut streams = vec![0; fleet.len()];
        let held: Vec<_> = (0..picks).map(|_| picker.pick(&ctx, &(), &fleet).unwrap()).collect();
        for pick in &held {
            streams[usize::try_from(pick.instance().0).unwrap()] += 1;
        }
        streams
    }

    #[test]
    fn two_choices_spread_far_better_than_one_and_all_choices_perfectly() {
        let widest =
            |streams: Vec<usize>| streams.iter().max().unwrap() - streams.iter().min().unwrap();
        let random = widest(spread(&RandomPicker::new(7), 100, 10_000));
        let two = widest(spread(&PowerOfTwo::new(7), 100, 10_000));
        let all = widest(spread(&LeastLoaded::default(), 100, 10_000));
        assert_eq!(all, 0);
        assert!(two <= 8 && random > 30, "{two} against {random}");
    }

    #[test]
    fn one_candidate_is_picked_and_none_is_an_error() {
        assert_eq!(spread(&PowerOfTwo::new(1), 1, 3), [3]);
        assert_eq!(spread(&RandomPicker::new(1), 1, 3), [3]);
        for picker in [&PowerOfTwo::new(1) as &dyn Picker<()>, &RandomPicker::new(1)] {
            assert!(picker.pick(&Context::new(), &(), &[]).is_err());
        }
    }

    #[test]
    fn a_stream_counts_until_its_pick_is_dropped() {
        let (picker, fleet) = (PowerOfTwo::new(3), fleet(2));
        let ctx = Context::new();
        let held: [Pick; 2] = std::array::from_fn(|_| picker.pick(&ctx, &(), &fleet).unwrap());
        assert_eq!([0, 1].map(|id| picker.streams(InstanceId(id))), [1, 1]);
        drop(held);
        assert_eq!([0, 1].map(|id| picker.streams(InstanceId(id))), [0, 0]);
    }
}
