//! Every order in which threads find, hold, let go and evict, up to two times that one is stopped.

use dynamo_core::protocol::{BlockSize, CacheNamespace, InstanceId, KvEvent, WorkerId};
use loom::model::Builder;
use loom::thread;

use crate::block::{BlockRun, CompleteBlock};
use crate::{BlockKey, BlockLayout, BlockManager, DType, ManagerConfig, TokenSequence};

/// A pool of two blocks, and a sequence of two that is stored there, held.
fn pool() -> (BlockManager, TokenSequence, BlockRun) {
    let size = BlockSize::new(1).unwrap();
    let layout = BlockLayout::new(1, 1, 1, size, DType::Byte).unwrap();
    let sink = Box::new(|_: KvEvent| {});
    let worker = WorkerId::new(InstanceId(1));
    let manager = BlockManager::new(ManagerConfig::new(layout, 2), worker, sink).unwrap();
    let sequence = TokenSequence::new(&CacheNamespace::default(), size, &[1, 2]);
    let held = manager.register_all(written(&manager, &sequence).unwrap());
    (manager, sequence, held)
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
