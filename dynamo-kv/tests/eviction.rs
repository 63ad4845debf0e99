//! What choosing a victim costs, counted: allocations.
//!
//! What is counted is the whole process's, so there is no harness, whose threads allocate too.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::alloc::System;

use dynamo_kv::evict::{BlockCost, CostAware, EntryId, Eviction, Lru, S3Fifo, Use};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const BLOCKS: u32 = 1000;

/// No policy allocates once it has seen its blocks.
fn main() {
    let cost = BlockCost::new(1.0, 0.1);
    let policies: [Box<dyn Eviction>; 3] =
        [Box::new(Lru::default()), Box::new(S3Fifo::default()), Box::new(CostAware::new(cost))];
    for mut policy in policies {
        let mut now = 0;
        turn(&mut *policy, &mut now, 10);
        let region = Region::new(ALLOCATOR);
        turn(&mut *policy, &mut now, 100);
        let change = region.change();
        assert_eq!((change.allocations, change.reallocations), (0, 0), "{change:?}");
    }
}

/// Offers all blocks, half of them late, takes some back, and evicts the rest.
fn turn(policy: &mut dyn Eviction, now: &mut u64, turns: u32) {
    for turn in 0..turns {
        for number in 0..BLOCKS {
            *now += 1;
            let late = u64::from(number % 2 * 500);
            let hash = u64::from(number * 7 + turn % 3);
            let usage = Use::new(hash, number % 50, number % 4, now.saturating_sub(late));
            policy.insert(EntryId::new(number), usage);
        }
        (0..BLOCKS).step_by(3).for_each(|number| policy.remove(EntryId::new(number)));
        let left = std::iter::from_fn(|| policy.victim()).count();
        assert_eq!(left, usize::try_from(BLOCKS - BLOCKS.div_ceil(3)).unwrap());
    }
}
