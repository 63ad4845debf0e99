use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::ghosts::Ghosts;
use super::*;

const COST: BlockCost = BlockCost::new(1.0, 1.0);

#[derive(Debug, Clone, Copy)]
enum Step {
    Insert(EntryId, Use),
    Remove(EntryId),
    Victim,
}

/// Thousands of steps on 64 entries, used up to `late` steps before they are offered.
fn steps(late: u64) -> impl Strategy<Value = Vec<Step>> {
    let usage = (0..200u64, 0..20u32, 0..5u32, 0..=late);
    prop::collection::vec((0..8u8, 0..64u32, usage), 2000..3000).prop_map(move |steps| {
        let step = |(now, (step, entry, (hash, depth, uses, late_by)))| match step {
            0..4 => Step::Insert(EntryId(entry), Use::new(hash, depth, uses, now + late - late_by)),
            4 => Step::Remove(EntryId(entry)),
            _ => Step::Victim,
        };
        (1..).zip(steps).map(step).collect()
    })
}

/// What a victim has the smallest of.
#[derive(Clone, Copy)]
struct Order {
    /// The priority of a block, given the largest priority of a victim so far.
    priority: fn(Use, u64) -> u64,
    /// The priority that a rank stands for.
    of_rank: fn(u64) -> u64,
}

/// Takes a policy through the steps beside a map of what is offered: a victim is one of them, and
/// the one with the smallest priority; at the end all come out.
fn drive(mut policy: impl Eviction, steps: &[Step], order: Option<Order>) -> TestCaseResult {
    let mut offered = BTreeMap::new();
    let mut gone = 0;
    let end = std::iter::repeat_n(&Step::Victim, 65);
    for step in steps.iter().chain(end) {
        match *step {
            Step::Insert(block, usage) if !offered.contains_key(&block) => {
                policy.insert(block, usage);
                offered.insert(block, order.map_or(0, |order| (order.priority)(usage, gone)));
            }
            Step::Insert(block, _) | Step::Remove(block) => {
                if offered.remove(&block).is_some() {
                    policy.remove(block);
                }
            }
            Step::Victim => {
                let rank = policy.rank();
                let victim = policy.victim();
                prop_assert_eq!(victim.is_some(), !offered.is_empty());
                prop_assert_eq!(rank.is_some(), victim.is_some());
                let Some(victim) = victim else { continue };
                let smallest = offered.values().min().copied();
                let its = offered.remove(&victim);
                prop_assert!(its.is_some(), "{:?} was not offered", victim);
                if let Some(order) = order {
                    prop_assert_eq!((its, rank.map(order.of_rank)), (smallest, smallest));
                    gone = gone.max(smallest.unwrap_or(0));
                }
            }
        }
    }
    prop_assert!(offered.is_empty(), "left: {:?}", offered);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn every_policy_gives_what_was_offered_once_and_in_the_end_all_of_it(steps in steps(100)) {
        drive(S3Fifo::default(), &steps, None)?;
        drive(CostAware::new(COST), &steps, None)?;
        drive(CostAware::new(COST.with_load(4.0)), &steps, None)?;
    }

    #[test]
    fn lru_gives_the_block_used_longest_ago_however_late_it_is_offered(steps in steps(100)) {
        let order = Order { priority: |usage, _| usage.last_use, of_rank: |rank| rank };
        drive(Lru::default(), &steps, Some(order))?;
    }

    #[test]
    fn cost_aware_gives_what_greedy_dual_gives(steps in steps(0)) {
        // All costs are whole; what time adds is far less than a half.
        let greedy_dual = Order {
            priority: |usage, age| {
                let saved = COST.seconds(usage.depth) * f64::from(usage.uses + 1);
                (f64::from_bits(age) + saved).to_bits()
            },
            of_rank: |rank| f64::from_bits(rank << 2).round().to_bits(),
        };
        drive(CostAware::new(COST), &steps, Some(greedy_dual))?;
    }

    #[test]
    fn s3_fifo_gives_what_three_plain_queues_give(steps in steps(0)) {
        let (mut policy, mut model) = (S3Fifo::default(), PlainS3Fifo::default());
        for step in steps {
            match step {
                Step::Insert(block, usage) if !model.holds(block) => {
                    policy.insert(block, usage);
                    model.insert(block, usage);
                }
                Step::Insert(block, _) | Step::Remove(block) => {
                    policy.remove(block);
                    model.remove(block);
                }
                Step::Victim => prop_assert_eq!(policy.victim(), model.victim()),
            }
        }
    }
}

/// The algorithm of the paper over plain queues.
#[derive(Default)]
struct PlainS3Fifo {
    small: VecDeque<(EntryId, u64)>,
    main: VecDeque<(EntryId, u32)>,
    ghosts: Ghosts,
    reached: usize,
}

impl PlainS3Fifo {
    fn holds(&self, block: EntryId) -> bool {
        self.small.iter().any(|(other, _)| *other == block)
            || self.main.iter().any(|(other, _)| *other == block)
    }

    fn insert(&mut self, block: EntryId, usage: Use) {
        self.reached = self.reached.max(block.index() + 1);
        self.ghosts.reach(self.reached);
        let is_back = self.ghosts.take(u32::try_from(usage.hash).unwrap());
        if is_back || usage.uses > 1 {
            self.main.push_back((block, usage.uses.min(3)));
        } else {
            self.small.push_back((block, usage.hash));
        }
    }

    fn remove(&mut self, block: EntryId) {
        self.small.retain(|(other, _)| *other != block);
        self.main.retain(|(other, _)| *other != block);
    }

    fn victim(&mut self) -> Option<EntryId> {
        let count = self.small.len() + self.main.len();
        if self.main.is_empty() || 10 * self.small.len() >= count {
            let (block, hash) = self.small.pop_front()?;
            self.ghosts.add(u32::try_from(hash).unwrap());
            return Some(block);
        }
        loop {
            let (block, chances) = self.main.pop_front()?;
            if chances == 0 {
                return Some(block);
            }
            self.main.push_back((block, chances - 1));
        }
    }
}

/// Blocks that follow nothing, in a cache of that many.
struct Cache<E> {
    policy: E,
    capacity: usize,
    found: BTreeMap<u64, (EntryId, u32)>,
    names: Vec<u64>,
    clock: u64,
}

impl<E: Eviction> Cache<E> {
    fn new(policy: E, capacity: usize) -> Self {
        Self { policy, capacity, found: BTreeMap::new(), names: Vec::new(), clock: 0 }
    }

    /// Uses each block, and tells how many were there.
    fn use_all(&mut self, names: impl IntoIterator<Item = u64>) -> usize {
        names.into_iter().filter(|name| self.find(*name)).count()
    }

    fn find(&mut self, name: u64) -> bool {
        self.clock += 1;
        let found = self.found.get(&name).copied();
        let (block, uses) = if let Some((block, uses)) = found {
            self.policy.remove(block);
            (block, uses + 1)
        } else if self.names.len() < self.capacity {
            self.names.push(name);
            (EntryId::new(u32::try_from(self.names.len() - 1).unwrap()), 0)
        } else {
            let block = self.policy.victim().unwrap();
            self.found.remove(&std::mem::replace(&mut self.names[block.index()], name));
            (block, 0)
        };
        self.found.insert(name, (block, uses));
        self.policy.insert(block, Use::new(name, 0, uses, self.clock));
        found.is_some()
    }
}

/// 40 blocks are used thrice, then 20 times after 200 blocks that are used once, in a cache of 100.
fn hits_between_scans(policy: impl Eviction) -> usize {
    let mut cache = Cache::new(policy, 100);
    for _ in 0..3 {
        cache.use_all(0..40);
    }
    let rounds = (1..=20).map(|round| {
        cache.use_all(round * 1000..round * 1000 + 200);
        cache.use_all(0..40)
    });
    rounds.sum()
}

#[test]
fn a_scan_drives_out_what_is_shared_under_lru_and_not_under_s3_fifo() {
    assert_eq!(hits_between_scans(Lru::default()), 0);
    assert_eq!(hits_between_scans(S3Fifo::default()), 20 * 40);
}

#[test]
fn s3_fifo_keeps_what_comes_back_soon_after_it_was_evicted() {
    let mut cache = Cache::new(S3Fifo::default(), 64);
    cache.use_all(0..128);
    // 40 to 63 went last of those that are gone.
    assert_eq!(cache.use_all(40..64), 0);
    cache.use_all(1000..1200);
    assert_eq!(cache.use_all(40..64), 24);
}

#[test]
fn s3_fifo_gives_up_what_is_not_used_any_more() {
    let mut cache = Cache::new(S3Fifo::default(), 64);
    for _ in 0..4 {
        cache.use_all(0..64);
    }
    // All is in the main queue now.
    for _ in 0..40 {
        cache.use_all(100..164);
    }
    assert_eq!(cache.use_all(100..164), 64);
}

#[test]
fn cost_aware_keeps_what_costs_more_and_what_was_found_more() {
    let mut policy = CostAware::new(COST);
    for (entry, (depth, uses)) in [(5, 0), (0, 0), (2, 3), (3, 0)].into_iter().enumerate() {
        let block = EntryId::new(u32::try_from(entry).unwrap());
        policy.insert(block, Use::new(0, depth, uses, 1));
    }
    let victims: Vec<_> = std::iter::from_fn(|| policy.victim().map(EntryId::index)).collect();
    assert_eq!(victims, [1, 3, 0, 2]);
}

#[test]
fn cost_aware_tells_no_blocks_apart_that_are_loaded_in_the_same_time() {
    let loaded = COST.with_load(3.0);
    assert_eq!([0, 1, 2, 9].map(|depth| loaded.seconds(depth)), [1.0, 2.0, 3.0, 3.0]);
    for nonsense in [f64::NAN, -1.0, f64::INFINITY] {
        let seconds = BlockCost::new(nonsense, 0.0).seconds(7);
        assert!((0.0..=1e6).contains(&seconds), "{nonsense}: {seconds}");
    }
}

#[test]
fn cost_aware_gives_up_a_dear_block_that_is_not_used() {
    // It saves that many times as much as those that come and go beside it.
    for (uses, times) in [(0, 10), (1_000_000, 80)] {
        let mut policy = CostAware::new(COST);
        policy.insert(EntryId(0), Use::new(0, 9, uses, 1));
        policy.insert(EntryId(1), Use::new(0, 0, 0, 1));
        for time in 2..=times {
            assert_eq!(policy.victim(), Some(EntryId(1)), "{time}");
            policy.insert(EntryId(1), Use::new(0, 0, 0, time));
        }
        assert_eq!(policy.victim(), Some(EntryId(0)));
    }
}

#[test]
fn what_becomes_a_leaf_late_is_as_old_as_its_last_use_under_every_policy() {
    let policies: [Box<dyn Eviction>; 3] = [
        Box::new(Lru::default()),
        Box::new(S3Fifo::default()),
        Box::new(CostAware::new(BlockCost::new(1.0, 0.0))),
    ];
    for mut policy in policies {
        // Ten chains of two blocks: the leaf is offered first, its parent once the leaf is gone.
        let usage = |chain: u32| Use::new(0, 0, 0, u64::from(chain));
        (0..10).for_each(|chain| policy.insert(EntryId(chain), usage(chain)));
        let mut order = Vec::new();
        while let Some(block) = policy.victim() {
            order.push(block.0);
            if block.0 < 10 {
                policy.insert(EntryId(block.0 + 10), usage(block.0));
            }
        }
        let chains: Vec<_> = (0..10).flat_map(|chain| [chain, chain + 10]).collect();
        assert_eq!(order, chains, "{policy:?}");
    }
}

#[test]
fn a_model_costs_more_per_token_the_more_stands_before_it() {
    // 8 B parameters, 32 layers of 4096: as much again for what stands before from 30,518 tokens on.
    let model = ModelSize { parameters: 8e9, layers: 32.0, width: 4096.0 };
    let cost = BlockCost::of_model(model, 16, 1e15);
    let first = cost.seconds(0);
    assert!((first / 16.0 / 1.6e-5 - 1.0).abs() < 1e-3, "{first}");
    let far = cost.seconds(30_518 / 16);
    assert!((far / first - 2.0).abs() < 1e-3, "{far}");
}
