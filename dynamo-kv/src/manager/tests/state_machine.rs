use proptest::prelude::*;

use super::model::{Model, ModelBlock};
use super::*;
use crate::block::MutableBlock;
use crate::evict::{EntryId, Use};

#[derive(Debug, Clone)]
enum Op {
    /// Stores the first blocks of a path and keeps the guards.
    Store {
        path: usize,
        depth: usize,
    },
    /// Registers the last of so many blocks of a path, whatever is there of those before it.
    StoreLast {
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
    /// Makes one guard of two.
    Append {
        index: usize,
    },
    /// Makes a guard for each block of one.
    Divide {
        index: usize,
    },
    Allocate {
        count: usize,
    },
    Free,
    Clear,
}

fn op() -> impl Strategy<Value = Op> {
    let index = || any::<prop::sample::Index>().prop_map(|index| index.index(1 << 16));
    let place = || (0..8usize, 1..=DEPTH);
    prop_oneof![
        4 => place().prop_map(|(path, depth)| Op::Store { path, depth }),
        1 => place().prop_map(|(path, depth)| Op::StoreLast { path, depth }),
        3 => (0..8usize).prop_map(|path| Op::Match { path }),
        6 => index().prop_map(|index| Op::Drop { index }),
        1 => index().prop_map(|index| Op::Clone { index }),
        1 => index().prop_map(|index| Op::Append { index }),
        2 => index().prop_map(|index| Op::Divide { index }),
        1 => (0..4usize).prop_map(|count| Op::Allocate { count }),
        2 => Just(Op::Free),
        1 => Just(Op::Clear),
    ]
}

/// LRU that notes what it is told.
#[derive(Debug, Default)]
struct Noting {
    lru: Lru,
    told: Arc<Mutex<Vec<Use>>>,
}

impl Eviction for Noting {
    fn insert(&mut self, block: EntryId, usage: Use) {
        self.told.lock().unwrap().push(usage);
        self.lru.insert(block, usage);
    }

    fn remove(&mut self, block: EntryId) {
        self.lru.remove(block);
    }

    fn victim(&mut self) -> Option<EntryId> {
        self.lru.victim()
    }

    fn rank(&self) -> Option<u64> {
        self.lru.rank()
    }
}

/// A pool and its model, in step.
struct Both {
    manager: BlockManager,
    events: Arc<Mutex<Vec<KvEvent>>>,
    told: Arc<Mutex<Vec<Use>>>,
    model: Model,
    /// Each with the blocks that it keeps.
    guards: Vec<(BlockRun, Vec<BlockIdentity>)>,
    unshared: Vec<Vec<MutableBlock>>,
}

impl Both {
    fn new() -> Self {
        let told = Arc::new(Mutex::new(Vec::new()));
        let noting = Arc::clone(&told);
        let policy = move || Noting { told: Arc::clone(&noting), ..Noting::default() };
        let (manager, events) = manager_with(CAPACITY, policy);
        let (model, guards, unshared) = (Model::default(), Vec::new(), Vec::new());
        Self { manager, events, told, model, guards, unshared }
    }

    fn keep(&mut self, run: BlockRun, keys: &[BlockKey]) {
        assert_eq!(run.len(), keys.len());
        self.guards.push((run, keys.iter().map(|key| key.identity).collect()));
    }

    fn store(&mut self, path: usize, depth: usize) {
        let keys = sequence(path).keys()[..depth].to_vec();
        let (found, missing) = keys.split_at(self.model.matched(&keys));
        found.iter().for_each(|key| self.model.pin(key));
        let is_possible = self.model.allocate(missing.len());
        let stored = store(&self.manager, &keys);
        assert_eq!(stored.is_ok(), is_possible);
        let Ok(stored) = stored else {
            return found.iter().for_each(|key| self.model.unpin(key.identity));
        };
        self.model.unshared -= missing.len();
        for key in missing {
            // One that stood alone may be there.
            match self.model.blocks.contains_key(&key.identity) {
                true => self.model.pin(key),
                false => self.model.register(key),
            }
        }
        self.keep(stored, &keys);
    }

    fn store_last(&mut self, path: usize, depth: usize) {
        let key = sequence(path).keys()[depth - 1];
        let is_possible = self.model.allocate(1);
        let blocks = self.manager.allocate(1);
        assert_eq!(blocks.is_ok(), is_possible);
        let Ok(mut blocks) = blocks else { return };
        blocks[0].fill(content(&key.identity));
        let complete = blocks.remove(0).complete(key);
        assert_eq!(self.manager.stats().complete, 1);
        let stored = self.manager.register_all(vec![complete]);
        self.model.unshared -= 1;
        match self.model.blocks.contains_key(&key.identity) {
            true => {
                self.model.pin(&key);
                // A use of a block is one of those that it keeps.
                self.model.linked_before(key.identity).into_iter().for_each(|block| {
                    self.model.blocks.get_mut(&block).unwrap().uses += 1;
                });
            }
            false => self.model.register(&key),
        }
        self.keep(stored, &[key]);
    }

    fn step(&mut self, op: Op) {
        let some = |index: usize, guards: &Vec<_>| index % guards.len().max(1);
        match op {
            Op::Store { path, depth } => self.store(path, depth),
            Op::StoreLast { path, depth } => self.store_last(path, depth),
            Op::Match { path } => {
                let keys = sequence(path).keys().to_vec();
                let found = self.manager.match_prefix(&keys);
                let keys = &keys[..self.model.matched(&keys)];
                keys.iter().for_each(|key| self.model.pin(key));
                self.keep(found, keys);
            }
            Op::Allocate { count } => {
                let is_possible = self.model.allocate(count);
                let blocks = self.manager.allocate(count);
                assert_eq!(blocks.is_ok(), is_possible);
                self.unshared.extend(blocks);
            }
            Op::Free => {
                self.model.unshared -= self.unshared.pop().map_or(0, |blocks| blocks.len());
            }
            Op::Clear => {
                self.manager.clear();
                let active = self.model.active();
                self.model.blocks.retain(|identity, _| active.contains(identity));
            }
            _ if self.guards.is_empty() => {}
            Op::Drop { index } => {
                let (run, names) = self.guards.swap_remove(some(index, &self.guards));
                drop(run);
                names.into_iter().for_each(|name| self.model.unpin(name));
            }
            Op::Clone { index } => {
                let both = self.guards[some(index, &self.guards)].clone();
                both.1.iter().for_each(|name| self.model.hold(*name));
                self.guards.push(both);
            }
            Op::Append { index } => {
                let (run, names) = self.guards.swap_remove(some(index, &self.guards));
                match self.guards.last_mut() {
                    Some((first, all)) => {
                        first.append(run);
                        all.extend(names);
                    }
                    None => self.guards.push((run, names)),
                }
            }
            Op::Divide { index } => {
                let (run, names) = self.guards.swap_remove(some(index, &self.guards));
                let blocks = run.into_iter().zip(names);
                self.guards.extend(blocks.map(|(block, name)| (block.into(), vec![name])));
            }
        }
    }

    /// Compares what the policy was told of blocks that can be evicted from now on.
    fn check_uses(&self) {
        for told in self.told.lock().unwrap().drain(..) {
            let is_it = |block: &&ModelBlock| block.key.identity.0[24..] == told.hash.to_le_bytes();
            let uses = self.model.blocks.values().find(is_it).map(|block| block.uses);
            assert!(uses.is_none_or(|uses| uses == told.uses), "{uses:?} {told:?}");
        }
    }

    fn check(&self) {
        let stats = self.manager.stats();
        let states = stats.free + stats.mutable + stats.complete + stats.active + stats.cached;
        assert_eq!(states, CAPACITY);
        assert_eq!((stats.free, stats.cached), (self.model.free(), self.model.cached()));
        assert_eq!((stats.mutable, stats.complete), (self.model.unshared, 0));
        for (run, names) in &self.guards {
            assert_eq!(run.identities(), *names);
            assert!(
                run.iter()
                    .zip(names)
                    .all(|(bytes, name)| bytes.iter().all(|&byte| byte == content(name)))
            );
        }
        let blocks = self.model.blocks.values();
        let stored: BTreeSet<_> = blocks.map(|block| block.key.sequence).collect();
        assert_eq!(replay(&self.events.lock().unwrap()), stored);
    }
}

proptest! {
    // Together more than 100,000 operations.
    #![proptest_config(ProptestConfig::with_cases(800))]

    #[test]
    fn the_pool_does_what_the_naive_model_does(ops in prop::collection::vec(op(), 130..200)) {
        let mut both = Both::new();
        for op in ops {
            // What is evicted and stored again in one step has been told of as it was.
            let is_new = matches!(op, Op::Store { .. } | Op::StoreLast { .. });
            both.step(op);
            if is_new {
                both.told.lock().unwrap().clear();
            }
            both.check_uses();
            both.check();
        }
        // Where nothing is held, all is cached or free, and can be had.
        both.guards.clear();
        both.unshared.clear();
        prop_assert_eq!(both.manager.stats().active, 0);
        prop_assert_eq!(both.manager.allocate(CAPACITY).unwrap().len(), CAPACITY);
    }
}
