use super::*;
use crate::evict::RetentionPriority::{High, Low, Normal};
use crate::evict::{BlockCost, CostAware, S3Fifo};

/// A sequence of one block.
fn key(number: u32) -> BlockKey {
    let size = BlockSize::new(1).unwrap();
    TokenSequence::new(&CacheNamespace::default(), size, &[number]).keys()[0]
}

/// Returns how many of the keys there are, which is no use of them.
fn stored(manager: &BlockManager, keys: &[BlockKey]) -> usize {
    let stored = manager.snapshot().stored;
    let is_of = |change: &KvChange, key: &BlockKey| matches!(change, KvChange::BlockStored { blocks, .. } if blocks[0].sequence == key.sequence);
    keys.iter().filter(|key| stored.iter().any(|change| is_of(change, key))).count()
}

fn numbers(manager: &BlockManager, all: std::ops::Range<u32>) -> Vec<u32> {
    all.filter(|number| stored(manager, &[key(*number)]) == 1).collect()
}

fn what_is_low_goes_first<E: Eviction>(policy: impl Fn() -> E + Send + Sync + 'static) {
    // So many that the pool is in two shards.
    const BLOCKS: u32 = 600;
    let (manager, _) = manager_with(BLOCKS as usize, policy);
    let priority = |number: u32| [High, Low, Normal][number as usize % 3];
    for number in 0..BLOCKS {
        drop(store_as(&manager, &[key(number)], priority(number)).unwrap());
    }
    let mut taken = Vec::new();
    for count in (50..=BLOCKS as usize).step_by(50) {
        taken.extend(manager.allocate(50).unwrap());
        let left = numbers(&manager, 0..BLOCKS);
        let of = |wanted| left.iter().filter(|number| priority(**number) == wanted).count();
        let expected = [200, 400, 600].map(|all: usize| all.saturating_sub(count).min(200));
        assert_eq!([Low, Normal, High].map(of), expected);
    }
}

#[test]
fn under_every_policy_and_in_all_shards_what_is_low_goes_first() {
    what_is_low_goes_first(Lru::default);
    what_is_low_goes_first(S3Fifo::default);
    what_is_low_goes_first(|| CostAware::new(BlockCost::new(4.0, 1.0)));
}

#[test]
fn of_one_priority_what_was_used_longest_ago_goes_first() {
    let (manager, _) = manager(4);
    for (number, priority) in [(0, High), (1, High), (2, Normal), (3, Normal)] {
        drop(store_as(&manager, &[key(number)], priority).unwrap());
    }
    drop(manager.match_prefix(&[key(0)]));
    drop(manager.match_prefix(&[key(2)]));
    let mut taken = Vec::new();
    for left in [[0, 1, 2].as_slice(), &[0, 1], &[0], &[]] {
        taken.extend(manager.allocate(1).unwrap());
        assert_eq!(numbers(&manager, 0..4), left);
    }
}

#[test]
fn whatever_its_priority_a_block_stays_while_one_that_follows_it_does() {
    let (manager, _) = manager(6);
    let (rising, falling) = (sequence(0), sequence(7));
    for (sequence, priorities) in [(&rising, [Low, Normal, High]), (&falling, [High, Normal, Low])]
    {
        let blocks = manager.allocate(DEPTH).unwrap().into_iter().zip(sequence.keys());
        let complete = blocks.zip(priorities);
        let complete =
            complete.map(|((block, key), priority)| block.complete(*key).with_priority(priority));
        drop(manager.register_all(complete.collect()));
    }
    let mut taken = Vec::new();
    for left in [(3, 2), (3, 1), (2, 1), (1, 1), (0, 1), (0, 0)] {
        taken.extend(manager.allocate(1).unwrap());
        let there = [&rising, &falling].map(|sequence| stored(&manager, sequence.keys()));
        assert_eq!(there, <[usize; 2]>::from(left));
    }
}

#[test]
fn who_registers_a_block_again_may_raise_its_priority_and_who_holds_it_may_set_it() {
    let (manager, _) = manager(3);
    let evicted = |expected: u32| {
        drop(manager.allocate(1).unwrap());
        let left: Vec<_> = (0..3).filter(|number| *number != expected).collect();
        assert_eq!(numbers(&manager, 0..3), left);
        drop(store(&manager, &[key(expected)]).unwrap());
    };
    let again = |number: u32, priority| {
        let block = manager.allocate(1).unwrap().remove(0).complete(key(number));
        let at = key(number).identity;
        assert_eq!(*manager.register(block.with_priority(priority)).identity(), at);
    };
    // There is room for a block that is registered again.
    (0..2).for_each(|number| drop(store(&manager, &[key(number)]).unwrap()));
    again(0, High);
    again(0, Low);
    again(1, Low);
    drop(store(&manager, &[key(2)]).unwrap());
    // Neither 0, whose use is the oldest, nor 1 has been lowered.
    evicted(1);
    let held = manager.match_prefix(&[key(0)]);
    held.set_priority(Low);
    drop(held);
    evicted(0);
    // Held again, it may have any.
    manager.match_prefix(&[key(2)]).set_priority(High);
    drop(manager.match_prefix(&[key(1)]));
    drop(manager.match_prefix(&[key(0)]));
    evicted(1);
    manager.match_prefix(&[key(2)]).set_priority(Normal);
    evicted(0);
}

#[test]
fn a_run_that_is_given_a_priority_has_it_in_all_blocks() {
    let (manager, _) = manager(6);
    let (kept, other) = (sequence(0), sequence(7));
    let run = store(&manager, kept.keys()).unwrap();
    run.set_priority(High);
    drop(run);
    drop(store(&manager, other.keys()).unwrap());
    // All but its leaf, which leaves the others by themselves.
    let leaf = Vec::from(manager.match_prefix(kept.keys())).pop().unwrap();
    BlockRun::from(leaf).set_priority(Low);
    let _taken = manager.allocate(4).unwrap();
    assert_eq!([&kept, &other].map(|sequence| stored(&manager, sequence.keys())), [2, 0]);
}

#[test]
fn a_priority_counts_under_whatever_quota() {
    let (manager, _) = manager(4);
    let quota = manager.with_quota(2).unwrap();
    drop(store_as(&quota, &sequence_of(1, 0).keys()[..2], High).unwrap());
    drop(store_as(&manager, &[key(0)], Normal).unwrap());
    drop(store_as(&manager, &[key(1)], Low).unwrap());
    let _two = manager.allocate(2).unwrap();
    assert_eq!((quota.stats().cached, numbers(&manager, 0..2).len()), (2, 0));
    // Its own room it makes of its own blocks, however dear.
    drop(quota.allocate(1).unwrap());
    assert_eq!(quota.stats().cached, 1);
}

#[test]
fn a_policy_is_made_for_each_priority_that_is_used_and_no_other() {
    let made = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&made);
    let policy = move || {
        counted.fetch_add(1, Ordering::Relaxed);
        Lru::default()
    };
    let (manager, _) = manager_with(4, policy);
    drop(store(&manager, sequence(0).keys()).unwrap());
    assert_eq!(made.load(Ordering::Relaxed), 1);
    drop(store_as(&manager, &[key(0)], Low).unwrap());
    assert_eq!(made.load(Ordering::Relaxed), 2);
}
