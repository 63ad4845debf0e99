mod model;
mod priority;
mod quota;
mod snapshot;
mod state_machine;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use dynamo_core::protocol::{
    BlockSize, CacheNamespace, InstanceId, KvChange, KvEvent, SequenceHash, WorkerId,
};

use super::*;
use crate::evict::{Eviction, Lru, RetentionPriority};
use crate::identity::BlockIdentity;
use crate::layout::BlockLayout;
use crate::layout::DType;
use crate::sequence::TokenSequence;

const CAPACITY: usize = 6;
const DEPTH: usize = 3;

fn manager(blocks: usize) -> (BlockManager, Arc<Mutex<Vec<KvEvent>>>) {
    manager_with(blocks, Lru::default)
}

fn manager_with<E: Eviction>(
    blocks: usize,
    eviction: impl Fn() -> E + Send + Sync + 'static,
) -> (BlockManager, Arc<Mutex<Vec<KvEvent>>>) {
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&events);
    let size = BlockSize::new(1).unwrap();
    let layout = BlockLayout::new(1, 1, 4, size, DType::F32).unwrap();
    let sink = move |event| sink.lock().unwrap().push(event);
    let worker = WorkerId::new(InstanceId(1));
    let config = ManagerConfig::new(layout, blocks).with_eviction(eviction);
    (BlockManager::new(config, worker, Box::new(sink)).unwrap(), events)
}

fn sequence(path: usize) -> TokenSequence {
    sequence_of(0, path)
}

/// One of eight sequences of three blocks: the paths of a binary tree, so that prefixes are shared.
fn sequence_of(tenant: usize, path: usize) -> TokenSequence {
    let namespace = CacheNamespace { tenant: tenant.to_string(), ..CacheNamespace::default() };
    let tokens: Vec<u32> =
        (0..DEPTH).map(|level| u32::from(path >> (DEPTH - 1 - level) & 1 == 1)).collect();
    TokenSequence::new(&namespace, BlockSize::new(1).unwrap(), &tokens)
}

#[test]
fn a_block_of_another_manager_is_refused_before_anything_has_changed() {
    let ((ours, events), (theirs, _)) = (manager(4), manager(4));
    let keys = sequence(0).keys().to_vec();
    let foreign = theirs.allocate(1).unwrap().remove(0).complete(keys[0]);
    let own = ours.allocate(1).unwrap().remove(0).complete(keys[1]);
    let register = || ours.register_all(vec![own, foreign]);
    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(register));
    assert!(refused.is_err());
    assert_eq!((ours.stats().free, theirs.stats().free), (4, 4));
    assert_eq!(events.lock().unwrap().len(), 0);
    assert_eq!(store(&ours, &keys).unwrap().len(), DEPTH);
}

/// What every byte of a block is, derived from what it stands for.
fn content(identity: &BlockIdentity) -> u8 {
    identity.0[0]
}

/// Finds what is there of a sequence, allocates and registers the rest.
fn store(manager: &BlockManager, keys: &[BlockKey]) -> Result<BlockRun, AllocateError> {
    store_as(manager, keys, RetentionPriority::default())
}

fn store_as(
    manager: &BlockManager,
    keys: &[BlockKey],
    priority: RetentionPriority,
) -> Result<BlockRun, AllocateError> {
    let mut held = manager.match_prefix(keys);
    let mut missing = manager.allocate(keys.len() - held.len())?;
    let complete = missing.drain(..).zip(&keys[held.len()..]).map(|(mut block, key)| {
        block.fill(content(&key.identity));
        block.complete(*key).with_priority(priority)
    });
    held.append(manager.register_all(complete.collect()));
    Ok(held)
}

/// Replays events into the set of what is stored, checking that they say nothing twice.
fn replay(events: &[KvEvent]) -> BTreeSet<SequenceHash> {
    let mut stored = BTreeSet::new();
    for (index, event) in events.iter().enumerate() {
        assert_eq!((event.epoch, event.seq), (1, index as u64));
        match &event.change {
            KvChange::BlockStored { parent, blocks, .. } => {
                for (index, block) in blocks.iter().enumerate() {
                    let before = index.checked_sub(1).map_or(*parent, |i| Some(blocks[i].sequence));
                    assert_eq!(block.sequence, SequenceHash::chain(before, block.local));
                    assert!(stored.insert(block.sequence), "stored twice");
                }
            }
            KvChange::BlockRemoved { sequence_hashes, .. } => {
                assert!(sequence_hashes.iter().all(|hash| stored.remove(hash)), "removed twice");
            }
            KvChange::AllBlocksCleared => stored.clear(),
            other => unreachable!("{other:?}"),
        }
    }
    stored
}

#[test]
fn a_block_is_found_with_its_bytes_by_whoever_has_the_same_tokens() {
    let (manager, _) = manager(4);
    drop(store(&manager, sequence(0).keys()).unwrap());
    let found = Vec::from(manager.match_prefix(sequence(1).keys()));
    assert_eq!(found.len(), 2, "sequences 0 and 1 differ in the last block");
    assert!(found.iter().all(|block| block.iter().all(|&byte| byte == content(block.identity()))));
    let stats = manager.stats();
    assert_eq!((stats.active, stats.cached), (2, 1));
    assert_eq!((stats.hits_total, stats.misses_total), (2, 4));
}

#[test]
fn many_threads_find_what_each_of_them_wrote_and_no_block_is_lost() {
    const BLOCKS: usize = 4096;
    const THREADS: u32 = 4;
    let (manager, events) = manager(BLOCKS);
    let namespace = CacheNamespace::default();
    let size = BlockSize::new(1).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (manager, namespace) = (&manager, &namespace);
            scope.spawn(move || {
                let mut held = Vec::new();
                for round in 0..if cfg!(miri) { 3 } else { 400u32 } {
                    // Some that others store too, and far more than fit.
                    let first =
                        if round % 2 == 0 { round % 16 } else { 100 + round * THREADS + thread };
                    let tokens: Vec<u32> =
                        (0..64 + round % 64).map(|at| first * 1000 + at).collect();
                    let sequence = TokenSequence::new(namespace, size, &tokens);
                    let stored = store(manager, sequence.keys()).unwrap();
                    let names = stored.identities();
                    for ((block, name), key) in stored.iter().zip(names).zip(sequence.keys()) {
                        assert_eq!(name, key.identity);
                        assert!(block.iter().all(|&byte| byte == content(&key.identity)));
                    }
                    held.push(stored);
                    if held.len() > 4 {
                        held.swap_remove((round % 4) as usize);
                    }
                }
            });
        }
    });
    let stats = manager.stats();
    assert_eq!((stats.mutable, stats.complete, stats.active), (0, 0, 0));
    assert_eq!(stats.free + stats.cached, BLOCKS);
    assert!(stats.evicted_total > 0 && stats.hits_total > 0, "{stats:?}");
    assert_eq!(replay(&events.lock().unwrap()).len(), stats.cached);
    manager.clear();
    assert_eq!(manager.stats().free, BLOCKS);
}

#[test]
fn of_two_that_want_more_than_half_at_once_one_has_it() {
    const BLOCKS: usize = 512;
    const WANTED: usize = 400;
    let (manager, _) = manager(BLOCKS);
    let rounds = if cfg!(miri) { 3 } else { 2000 };
    let (begin, end) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
    let is_had = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let allocating = || {
            for round in 1..=rounds {
                begin.wait();
                let blocks = manager.allocate(WANTED);
                is_had.fetch_add(blocks.iter().len(), Ordering::Relaxed);
                end.wait();
                assert_eq!(is_had.load(Ordering::Relaxed), round, "both, or neither");
            }
        };
        scope.spawn(allocating);
        scope.spawn(allocating);
    });
    assert_eq!(manager.stats().free, BLOCKS);
}

#[tokio::test]
async fn what_was_only_asked_for_goes_when_it_would_have_gone() {
    let (manager, _) = manager(4);
    let (first, second) = (sequence(0), sequence(7));
    for sequence in [&first, &second] {
        drop(store(&manager, &sequence.keys()[..2]).unwrap());
    }
    assert_eq!(manager.probe(first.keys()).await, 2);
    drop(manager.allocate(2).unwrap());
    let found = [&first, &second].map(|sequence| manager.match_prefix(sequence.keys()).len());
    assert_eq!(found, [0, 2]);
}

#[test]
fn a_weak_handle_finds_its_block_until_that_is_evicted() {
    let (manager, _) = manager(2);
    let held = store(&manager, &sequence(0).keys()[..2]).unwrap();
    let weak: Vec<_> = held.into_iter().map(|block| block.downgrade()).collect();
    let back = weak[0].upgrade().unwrap();
    assert_eq!(back.identity(), &sequence(0).keys()[0].identity);
    assert_eq!(back[0], content(back.identity()));
    let stats = manager.stats();
    assert_eq!((stats.active, stats.cached), (1, 1));
    drop(store(&manager, &sequence(0).keys()[..1]).unwrap());
    let evicting = manager.allocate(1).unwrap();
    assert!(weak[1].upgrade().is_none() && weak[0].upgrade().is_some());
    drop((evicting, back));
    drop(store(&manager, &sequence(7).keys()[..2]).unwrap());
    assert!(weak.iter().all(|weak| weak.upgrade().is_none()), "others are in their places");
}

#[test]
fn keys_that_do_not_follow_each_other_find_no_more_than_do() {
    let (manager, _) = manager(8);
    let (one, other) = (sequence(0), sequence(7));
    let (held, others) =
        (store(&manager, one.keys()).unwrap(), store(&manager, other.keys()).unwrap());
    let [first, second, third] = [0, 1, 2].map(|at| one.keys()[at]);
    let strange = other.keys()[2];
    for (keys, found) in [
        (vec![first, second, third], 3),
        (vec![second, third], 2),
        (vec![first, second, strange], 2),
        (vec![first, third], 1),
        (vec![third, second, first], 1),
    ] {
        let identities: Vec<_> = keys[..found].iter().map(|key| key.identity).collect();
        assert_eq!(manager.match_prefix(&keys).identities(), identities);
    }
    drop((held, others));
}

#[test]
fn a_run_reads_its_blocks_wherever_they_are_joined_and_outlives_its_manager() {
    let (manager, _) = manager(8);
    let mut run = store(&manager, &sequence(0).keys()[..1]).unwrap();
    run.append(store(&manager, sequence(7).keys()).unwrap());
    run.append(store(&manager, sequence(0).keys()).unwrap());
    let names = run.identities();
    assert_eq!((run.len(), run.iter().count(), run.get(7)), (7, 7, None));
    drop(manager);
    assert!(run.iter().zip(&names).all(|(bytes, name)| bytes[0] == content(name)));
    let blocks = Vec::from(run);
    assert!(blocks.iter().map(RegisteredBlock::identity).eq(&names));
}

#[test]
fn registering_twice_keeps_the_first_and_frees_the_second() {
    let (manager, events) = manager(4);
    let key = sequence(0).keys()[0];
    let mut blocks = manager.allocate(2).unwrap();
    blocks[0].fill(1);
    blocks[1].fill(2);
    let second = blocks.pop().unwrap().complete(key);
    let first = manager.register(blocks.pop().unwrap().complete(key));
    let second = manager.register(second);
    assert_eq!((first[0], second[0]), (1, 1));
    assert_eq!((manager.stats().active, manager.stats().free), (1, 3));
    assert_eq!(events.lock().unwrap().len(), 1);
}

#[test]
fn an_allocation_is_all_or_nothing() {
    let (manager, events) = manager(4);
    let held = store(&manager, &sequence(0).keys()[..2]).unwrap();
    drop(store(&manager, &sequence(7).keys()[..1]).unwrap());
    let error = manager.allocate(3).unwrap_err();
    assert_eq!(
        error,
        AllocateError { requested: 3, available: 2, capacity: 4, limit: Limit::Pool }
    );
    assert_eq!(manager.stats().cached, 1, "a refused allocation evicts nothing");
    assert_eq!(manager.allocate(2).unwrap().len(), 2);
    assert_eq!(replay(&events.lock().unwrap()).len(), 2);
    drop(held);
}

#[test]
fn old_bytes_are_wiped_where_that_is_asked_for() {
    let layout = BlockLayout::new(1, 1, 4, BlockSize::DEFAULT, DType::F32).unwrap();
    for (zero, expected) in [(true, 0), (false, 9)] {
        let config = ManagerConfig::new(layout, 1).with_zero_on_allocate(zero);
        let worker = WorkerId::new(InstanceId(1));
        let manager = BlockManager::new(config, worker, Box::new(|_| {})).unwrap();
        manager.allocate(1).unwrap()[0].fill(9);
        assert_eq!(manager.allocate(1).unwrap()[0][0], expected);
    }
}

#[test]
fn a_snapshot_says_what_the_events_said() {
    let (manager, events) = manager(CAPACITY);
    for path in [0, 1, 6] {
        let _ = store(&manager, sequence(path).keys());
    }
    let snapshot = manager.snapshot();
    assert_eq!((snapshot.epoch, snapshot.seq), (1, events.lock().unwrap().len() as u64));
    let as_events: Vec<_> = snapshot
        .stored
        .into_iter()
        .enumerate()
        .map(|(seq, change)| KvEvent {
            worker: WorkerId::new(InstanceId(1)),
            epoch: 1,
            seq: seq as u64,
            change,
        })
        .collect();
    assert_eq!(replay(&as_events), replay(&events.lock().unwrap()));
}

#[test]
fn a_pool_without_blocks_is_refused() {
    let layout = BlockLayout::new(1, 1, 4, BlockSize::DEFAULT, DType::F32).unwrap();
    let worker = WorkerId::new(InstanceId(1));
    let error = BlockManager::new(ManagerConfig::new(layout, 0), worker, Box::new(|_| {}));
    assert_eq!(error.unwrap_err().kind(), dynamo_core::ErrorKind::InvalidArgument);
}
