use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use dynamo_core::protocol::{
    BlockSize, CacheNamespace, InstanceId, KvChange, KvEvent, SequenceHash, WorkerId,
};
use proptest::prelude::*;

use super::*;
use crate::identity::BlockIdentity;
use crate::layout::DType;
use crate::sequence::TokenSequence;

const CAPACITY: usize = 6;
const DEPTH: usize = 3;

fn manager(blocks: usize) -> (BlockManager, Arc<Mutex<Vec<KvEvent>>>) {
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&events);
    let size = BlockSize::new(1).unwrap();
    let layout = BlockLayout::new(1, 1, 4, size, DType::F32).unwrap();
    let sink = move |event| sink.lock().unwrap().push(event);
    let worker = WorkerId::new(InstanceId(1));
    let manager = BlockManager::new(ManagerConfig::new(layout, blocks), worker, Box::new(sink));
    (manager.unwrap(), events)
}

/// One of eight sequences of three blocks: the paths of a binary tree, so that prefixes are shared.
fn sequence(path: usize) -> TokenSequence {
    let tokens: Vec<u32> =
        (0..DEPTH).map(|level| u32::from(path >> (DEPTH - 1 - level) & 1 == 1)).collect();
    TokenSequence::new(&CacheNamespace::default(), BlockSize::new(1).unwrap(), &tokens)
}

/// What every byte of a block is, derived from what it stands for.
fn content(identity: &BlockIdentity) -> u8 {
    identity.0[0]
}

/// Finds what is there of a sequence, allocates and registers the rest; the guards in order.
fn store(manager: &BlockManager, keys: &[BlockKey]) -> Result<Vec<RegisteredBlock>, AllocateError> {
    let mut held = manager.match_prefix(keys);
    let mut missing = manager.allocate(keys.len() - held.len())?;
    let complete = missing.drain(..).zip(&keys[held.len()..]).map(|(mut block, key)| {
        block.fill(content(&key.identity));
        block.complete(*key)
    });
    held.extend(manager.register_all(complete.collect()));
    Ok(held)
}

#[derive(Debug, Clone)]
enum Op {
    /// Stores the first blocks of a path and keeps the guards.
    Store {
        path: usize,
        depth: usize,
    },
    Match {
        path: usize,
    },
    Drop {
        index: usize,
    },
    Clone {
        index: usize,
    },
    Allocate {
        count: usize,
    },
    Free,
    Clear,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..8usize, 1..=DEPTH).prop_map(|(path, depth)| Op::Store { path, depth }),
        2 => (0..8usize).prop_map(|path| Op::Match { path }),
        6 => any::<prop::sample::Index>().prop_map(|i| Op::Drop { index: i.index(1 << 16) }),
        1 => any::<prop::sample::Index>().prop_map(|i| Op::Clone { index: i.index(1 << 16) }),
        1 => (0..4usize).prop_map(|count| Op::Allocate { count }),
        2 => Just(Op::Free),
        1 => Just(Op::Clear),
    ]
}

/// The pool as its contract says it, computed the slow way.
#[derive(Default)]
struct Model {
    blocks: BTreeMap<BlockIdentity, ModelBlock>,
    unshared: usize,
    clock: u64,
}

struct ModelBlock {
    key: BlockKey,
    guards: usize,
    last_use: u64,
}

impl Model {
    fn is_active(&self, identity: BlockIdentity) -> bool {
        self.blocks[&identity].guards > 0
            || self.followers(identity).any(|follower| self.is_active(follower))
    }

    fn followers(&self, identity: BlockIdentity) -> impl Iterator<Item = BlockIdentity> + '_ {
        let follows = move |block: &&ModelBlock| block.key.parent == Some(identity);
        self.blocks.values().filter(follows).map(|block| block.key.identity)
    }

    fn active(&self) -> BTreeSet<BlockIdentity> {
        self.blocks.keys().copied().filter(|&identity| self.is_active(identity)).collect()
    }

    fn cached(&self) -> usize {
        self.blocks.len() - self.active().len()
    }

    fn free(&self) -> usize {
        CAPACITY - self.blocks.len() - self.unshared
    }

    fn matched(&self, keys: &[BlockKey]) -> usize {
        keys.iter().take_while(|key| self.blocks.contains_key(&key.identity)).count()
    }

    fn pin(&mut self, key: &BlockKey) {
        let key = *key;
        let block = ModelBlock { key, guards: 0, last_use: 0 };
        self.blocks.entry(key.identity).or_insert(block).guards += 1;
    }

    fn unpin(&mut self, identity: BlockIdentity) {
        self.blocks.get_mut(&identity).unwrap().guards -= 1;
        // What is released by this, leaf first: the block and then what it was alone in keeping.
        let mut next = Some(identity);
        while let Some(identity) = next {
            if !self.blocks.contains_key(&identity) || self.is_active(identity) {
                return;
            }
            self.clock += 1;
            let block = self.blocks.get_mut(&identity).unwrap();
            block.last_use = self.clock;
            next = block.key.parent;
        }
    }

    /// Makes room for `count` blocks; false if that is impossible.
    fn allocate(&mut self, count: usize) -> bool {
        if count > self.free() + self.cached() {
            return false;
        }
        while self.free() < count {
            let active = self.active();
            let victim = self
                .blocks
                .values()
                .filter(|block| !active.contains(&block.key.identity))
                .filter(|block| self.followers(block.key.identity).next().is_none())
                .min_by_key(|block| block.last_use)
                .map(|block| block.key.identity)
                .unwrap();
            self.blocks.remove(&victim);
        }
        self.unshared += count;
        true
    }
}

/// Replays events into the set of what is stored, checking that they say nothing twice.
fn replay(events: &[KvEvent]) -> BTreeSet<SequenceHash> {
    let mut stored = BTreeSet::new();
    for (index, event) in events.iter().enumerate() {
        assert_eq!((event.epoch, event.seq), (1, index as u64));
        match &event.change {
            KvChange::BlockStored { parent, blocks, .. } => {
                assert!(parent.is_none_or(|parent| stored.contains(&parent)), "parents come first");
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_pool_does_what_the_naive_model_does(ops in prop::collection::vec(op(), 1..250)) {
        let (manager, events) = manager(CAPACITY);
        let mut model = Model::default();
        let mut guards: Vec<RegisteredBlock> = Vec::new();
        let mut unshared: Vec<Vec<MutableBlock>> = Vec::new();
        for op in ops {
            match op {
                Op::Store { path, depth } => {
                    let keys = sequence(path).keys()[..depth].to_vec();
                    let found = model.matched(&keys);
                    keys[..found].iter().for_each(|key| model.pin(key));
                    let possible = model.allocate(depth - found);
                    let stored = store(&manager, &keys);
                    prop_assert_eq!(stored.is_ok(), possible);
                    match stored {
                        Ok(stored) => {
                            model.unshared -= depth - found;
                            keys[found..].iter().for_each(|key| model.pin(key));
                            guards.extend(stored);
                        }
                        // The guards of what was found went in the order of a vector.
                        Err(_) => keys[..found].iter().for_each(|key| model.unpin(key.identity)),
                    }
                }
                Op::Match { path } => {
                    let keys = sequence(path).keys().to_vec();
                    let found = manager.match_prefix(&keys);
                    prop_assert_eq!(found.len(), model.matched(&keys));
                    keys[..found.len()].iter().for_each(|key| model.pin(key));
                    guards.extend(found);
                }
                Op::Drop { index } if !guards.is_empty() => {
                    let index = index % guards.len();
                    let guard = guards.swap_remove(index);
                    let identity = *guard.identity();
                    drop(guard);
                    model.unpin(identity);
                }
                Op::Clone { index } if !guards.is_empty() => {
                    let guard = guards[index % guards.len()].clone();
                    model.blocks.get_mut(guard.identity()).unwrap().guards += 1;
                    guards.push(guard);
                }
                Op::Allocate { count } => {
                    let possible = model.allocate(count);
                    let blocks = manager.allocate(count);
                    prop_assert_eq!(blocks.is_ok(), possible);
                    unshared.extend(blocks);
                }
                Op::Free => {
                    model.unshared -= unshared.pop().map_or(0, |blocks| blocks.len());
                }
                Op::Clear => {
                    manager.clear();
                    let active = model.active();
                    model.blocks.retain(|identity, _| active.contains(identity));
                }
                Op::Drop { .. } | Op::Clone { .. } => {}
            }
            let stats = manager.stats();
            let states = stats.free + stats.mutable + stats.complete + stats.active + stats.cached;
            prop_assert_eq!(states, CAPACITY);
            prop_assert_eq!(stats.free, model.free());
            prop_assert_eq!((stats.mutable, stats.complete), (model.unshared, 0));
            prop_assert_eq!(stats.cached, model.cached());
            for guard in &guards {
                prop_assert!(guard.iter().all(|&byte| byte == content(guard.identity())));
            }
            let stored: BTreeSet<_> = model.blocks.values().map(|block| block.key.sequence).collect();
            prop_assert_eq!(replay(&events.lock().unwrap()), stored);
        }
    }
}

#[test]
fn a_block_is_found_with_its_bytes_by_whoever_has_the_same_tokens() {
    let (manager, _) = manager(4);
    drop(store(&manager, sequence(0).keys()).unwrap());
    let found = manager.match_prefix(sequence(1).keys());
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
                    for (block, key) in stored.iter().zip(sequence.keys()) {
                        assert_eq!(*block.identity(), key.identity);
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
fn a_weak_handle_finds_its_block_until_that_is_evicted() {
    let (manager, _) = manager(2);
    let held = store(&manager, &sequence(0).keys()[..2]).unwrap();
    let weak: Vec<_> = held.iter().map(RegisteredBlock::downgrade).collect();
    drop(held);
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
    assert_eq!(error, AllocateError { requested: 3, available: 2, capacity: 4 });
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
