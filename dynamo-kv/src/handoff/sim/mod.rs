//! Hand-offs among owners and pullers that are killed and frozen, over a network that loses, repeats,
//! delays and reorders: seeded, on virtual time, with the machines and messages that the real ones use.

mod owner;
mod puller;
mod world;

use world::{Tally, World};

/// To run one seed alone: put it here and run `a_seed_alone`.
const ALONE: u64 = 0;

fn run(seed: u64) -> Tally {
    World::new(seed).run().unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"))
}

#[test]
fn whatever_is_lost_or_dies_each_hand_off_has_one_outcome_and_no_wrong_byte() {
    let mut sum = Tally::default();
    for seed in 0..10_000 {
        for (what, count) in run(seed) {
            *sum.entry(what).or_default() += count;
        }
    }
    // What never happens is not tested.
    let all = ["pulled", "expired", "dropped", "killed owner"].into_iter();
    let all =
        all.chain(["shared", "taken", "over", "failed read", "late", "declined", "killed puller"]);
    let all = all.chain(["no room", "prepared longer than a claim lasts", "needed not all"]);
    for what in all {
        assert!(sum.get(what).is_some_and(|count| *count >= 200), "{what}: {sum:?}");
    }
}

#[test]
fn a_seed_alone() {
    run(ALONE);
}

#[test]
fn where_nothing_is_lost_everything_is_pulled_at_once() {
    for seed in 0..200 {
        let world = World::in_calm(seed);
        let (jobs, stages) = world.counts();
        let tally = world.run().unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        let expected = Tally::from([("pulled", stages), ("shared", jobs)]);
        assert_eq!(tally, expected, "seed {seed}");
    }
}
