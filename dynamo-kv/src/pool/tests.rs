//! Every order in which threads find, hold, let go and evict, up to two times that one is stopped.

use dynamo_core::protocol::{BlockSize, CacheNamespace, InstanceId, KvEvent, WorkerId};
use loom::model::Builder;
use loom::thread;

use crate::block::{BlockRun, CompleteBlock};
use crate::{BlockKey, BlockLayout, BlockManager, DType, ManagerConfig, TokenSequence};

/// A pool of two blocks in two shards, and a sequence of two that is stored in one of them, held.
fn pool() -> (BlockManager, TokenSequence, BlockRun) {
    let sequence = sequence_of(&[1, 2]);
    let layout = BlockLayout::new(1, 1, 1, sequence.block_size(), DType::Byte).unwrap();
    let sink = Box::new(|_: KvEvent| {});
    let worker = WorkerId::new(InstanceId(1));
    let manager = BlockManager::new(ManagerConfig::new(layout, 2), worker, sink).unwrap();
    let held = manager.register_all(written(&manager, &sequence).unwrap());
    (manager, sequence, held)
}

/// A sequence of blocks of a token.
fn sequence_of(tokens: &[u32]) -> TokenSequence {
    TokenSequence::new(&CacheNamespace::default(), BlockSize::new(1).unwrap(), tokens)
}

/// Another sequence of two, of the same shard: chains go to shards by turns.
fn beside(sequence: &TokenSequence) -> TokenSequence {
    let parity = |sequence: &TokenSequence| sequence.keys()[0].chain % 2;
    let mut others = (3..).map(|token| sequence_of(&[token, token]));
    others.find(|other| parity(other) == parity(sequence)).unwrap()
}

/// Writes the blocks of a sequence, if there is room.
fn written(manager: &BlockManager, sequence: &TokenSequence) -> Option<Vec<CompleteBlock>> {
    let blocks = manager.allocate(sequence.keys().len()).ok()?.into_iter();
    let complete = blocks.zip(sequence.keys()).map(|(mut block, key)| {
        block.fill(key.identity.0[0]);
        block.complete(*key)
    });
    Some(complete.collect())
}

/// Reads the blocks twice, and lets others go on between.
fn read(run: &BlockRun) {
    for _ in 0..2 {
        for (bytes, identity) in run.iter().zip(run.identities()) {
            assert!(bytes.iter().all(|byte| *byte == identity.0[0]));
        }
    }
}

fn tried(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(model);
}

fn at_rest(manager: &BlockManager) {
    let stats = manager.stats();
    assert_eq!((stats.mutable, stats.complete, stats.active), (0, 0, 0));
    assert_eq!(stats.free + stats.cached, stats.capacity);
    // Nothing is lost: all can be had.
    assert_eq!(manager.allocate(2).unwrap().len(), 2);
}

#[test]
fn what_is_found_stays_as_it_is_while_others_take_room() {
    tried(|| {
        let (manager, sequence, held) = pool();
        drop(held);
        let reader = thread::spawn({
            let manager = manager.clone();
            move || read(&manager.match_prefix(sequence.keys()))
        });
        if let Ok(mut blocks) = manager.allocate(1) {
            blocks[0].fill(0xff);
        }
        reader.join().unwrap();
        at_rest(&manager);
    });
}

#[test]
fn who_lets_go_last_makes_a_block_evictable_and_nobody_before() {
    tried(|| {
        let (manager, sequence, held) = pool();
        let dropper = thread::spawn({
            let mut blocks = Vec::from(held.clone());
            move || {
                // The first by itself, the last by another guard.
                let last = blocks.pop().unwrap();
                drop(blocks);
                read(&last.clone().into());
            }
        });
        drop(held);
        if let Ok(mut blocks) = manager.allocate(2) {
            blocks.iter_mut().for_each(|block| block.fill(0xff));
        } else {
            read(&manager.match_prefix(sequence.keys()));
        }
        dropper.join().unwrap();
        at_rest(&manager);
    });
}

#[test]
fn one_block_is_stored_by_two_at_once() {
    tried(|| {
        let (manager, sequence, held) = pool();
        drop(held);
        manager.clear();
        let key = sequence.keys()[0];
        let store = move |manager: &BlockManager| {
            let mut block = manager.allocate(1).unwrap().remove(0);
            block.fill(key.identity.0[0]);
            let held = BlockRun::from(manager.register(block.complete(key)));
            read(&held);
            assert_eq!(held.identities(), [key.identity]);
        };
        let other = thread::spawn({
            let manager = manager.clone();
            move || store(&manager)
        });
        store(&manager);
        other.join().unwrap();
        assert_eq!(manager.stats().cached, 1);
        at_rest(&manager);
    });
}

#[test]
fn a_weak_block_is_the_one_that_it_was_or_none() {
    tried(|| {
        let (manager, sequence, held) = pool();
        let weak = Vec::from(held).pop().unwrap().downgrade();
        let reader = thread::spawn(move || {
            let Some(block) = weak.upgrade() else { return };
            assert!(block.iter().all(|byte| *byte == weak.identity().0[0]));
        });
        if let Some(blocks) = written(&manager, &beside(&sequence)) {
            drop(manager.register_all(blocks));
        }
        reader.join().unwrap();
        at_rest(&manager);
    });
}

/// Writes a block under a quota and lets go of it, if there is room.
fn store_one(quota: &BlockManager, key: BlockKey) -> bool {
    let Ok(mut blocks) = quota.allocate(1) else { return false };
    let mut block = blocks.remove(0);
    block.fill(key.identity.0[0]);
    read(&quota.register(block.complete(key)).into());
    true
}

#[test]
fn two_quotas_that_want_the_last_blocks_take_what_the_other_has_cached() {
    tried(|| {
        let (manager, sequence, held) = pool();
        drop(held);
        manager.clear();
        let [one, other] = [1, 2].map(|blocks| manager.with_quota(blocks).unwrap());
        let [first, second] = [0, 1].map(|at| sequence.keys()[at].alone());
        assert!(store_one(&one, first) && store_one(&other, second));
        let thread = thread::spawn({
            let one = one.clone();
            // Of its own: it may have no more than one.
            move || store_one(&one, second)
        });
        // One of the other's, and its own: whichever are cached at that moment.
        let taken = other.allocate(2).map_or(0, |blocks| blocks.len());
        let is_stored = thread.join().unwrap();
        assert!(is_stored || taken == 2, "somebody was first");
        for (quota, blocks) in [(&one, 1), (&other, 2)] {
            let stats = quota.stats();
            assert_eq!((stats.mutable, stats.complete, stats.active), (0, 0, 0));
            assert_eq!(stats.free + stats.cached, blocks);
        }
        drop((one, other));
        assert_eq!(manager.stats().free, 2);
        at_rest(&manager);
    });
}

#[test]
fn of_two_that_want_all_at_once_one_has_it() {
    tried(|| {
        let (manager, _, held) = pool();
        drop(held);
        // Free, each in a shard of its own: one could take both at once else.
        drop(manager.allocate(2));
        let thread = thread::spawn({
            let manager = manager.clone();
            move || manager.allocate(2)
        });
        let one = manager.allocate(2);
        let other = thread.join().unwrap();
        assert!(one.is_ok() != other.is_ok(), "both, or neither");
        drop((one, other));
        at_rest(&manager);
    });
}

#[test]
fn a_quota_that_goes_while_another_takes_its_blocks_gives_each_back_once() {
    tried(|| {
        let (manager, sequence, held) = pool();
        drop(held);
        manager.clear();
        let quota = manager.with_quota(2).unwrap();
        drop(quota.register_all(written(&quota, &sequence).unwrap()));
        let thread = thread::spawn(move || drop(quota));
        drop(manager.allocate(1));
        thread.join().unwrap();
        assert_eq!(manager.stats().free, 2);
        at_rest(&manager);
    });
}

#[test]
fn a_shard_that_somebody_looks_into_is_waited_for() {
    tried(|| {
        let (manager, sequence, held) = pool();
        drop(held);
        let other = beside(&sequence);
        let reader = thread::spawn({
            let manager = manager.clone();
            move || assert!(manager.match_prefix(other.keys()).is_empty())
        });
        assert_eq!(manager.allocate(2).unwrap().len(), 2, "all could be evicted all the time");
        reader.join().unwrap();
        at_rest(&manager);
    });
}
