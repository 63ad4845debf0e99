use futures::FutureExt as _;
use proptest::prelude::*;

use super::model::{Model, ModelBlock};
use super::*;
use crate::block::MutableBlock;
use crate::evict::{EntryId, RetentionPriority, Use};

/// Of each tenant; the first is the manager itself.
const QUOTAS: [Option<usize>; 3] = [None, Some(3), Some(4)];

#[derive(Debug, Clone)]
enum Op {
    /// Stores the first blocks of a path and keeps the guards.
    Store {
        at: Blocks,
        priority: RetentionPriority,
    },
    /// Registers the last of so many blocks of a path, whatever is there of those before it.
    StoreLast {
        at: Blocks,
        priority: RetentionPriority,
    },
    Match {
        at: Blocks,
    },
    Probe {
        at: Blocks,
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
    SetPriority {
        index: usize,
        priority: RetentionPriority,
    },
    Allocate {
        tenant: usize,
        count: usize,
    },
    Free,
    Clear {
        tenant: usize,
    },
    /// Drops the manager of a tenant, whatever is held of its blocks, and takes another.
    Renew {
        tenant: usize,
    },
}

/// Blocks of a tenant: the first ones of a path.
#[derive(Debug, Clone, Copy)]
struct Blocks {
    tenant: usize,
    path: usize,
    depth: usize,
}

fn op() -> impl Strategy<Value = Op> {
    let index = || any::<prop::sample::Index>().prop_map(|index| index.index(1 << 16));
    let place = || {
        let parts = (0..QUOTAS.len(), 0..8usize, 1..=DEPTH);
        parts.prop_map(|(tenant, path, depth)| Blocks { tenant, path, depth })
    };
    let priority = || {
        use RetentionPriority::{High, Low, Normal};
        prop_oneof![1 => Just(Low), 3 => Just(Normal), 1 => Just(High)]
    };
    let tenant = || 0..QUOTAS.len();
    prop_oneof![
        8 => (place(), priority()).prop_map(|(at, priority)| Op::Store { at, priority }),
        2 => (place(), priority()).prop_map(|(at, priority)| Op::StoreLast { at, priority }),
        6 => place().prop_map(|at| Op::Match { at }),
        4 => place().prop_map(|at| Op::Probe { at }),
        12 => index().prop_map(|index| Op::Drop { index }),
        2 => index().prop_map(|index| Op::Clone { index }),
        2 => index().prop_map(|index| Op::Append { index }),
        4 => index().prop_map(|index| Op::Divide { index }),
        2 => (index(), priority()).prop_map(|(index, priority)| Op::SetPriority { index, priority }),
        2 => (tenant(), 0..5usize).prop_map(|(tenant, count)| Op::Allocate { tenant, count }),
        4 => Just(Op::Free),
        2 => tenant().prop_map(|tenant| Op::Clear { tenant }),
        1 => (1..QUOTAS.len()).prop_map(|tenant| Op::Renew { tenant }),
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
    /// The manager, and those of all quotas that were; `None` for one that was dropped.
    managers: Vec<Option<BlockManager>>,
    /// Which of those a tenant has.
    tenants: [usize; QUOTAS.len()],
    events: Arc<Mutex<Vec<KvEvent>>>,
    told: Arc<Mutex<Vec<Use>>>,
    model: Model,
    /// Each with the blocks that it keeps.
    guards: Vec<(BlockRun, Vec<BlockIdentity>)>,
    unshared: Vec<(usize, Vec<MutableBlock>)>,
}

impl Both {
    fn new() -> Self {
        let told = Arc::new(Mutex::new(Vec::new()));
        let noting = Arc::clone(&told);
        let policy = move || Noting { told: Arc::clone(&noting), ..Noting::default() };
        let (manager, events) = manager_with(CAPACITY, policy);
        let (model, guards, unshared) = (Model::new(), Vec::new(), Vec::new());
        let (managers, tenants) = (vec![Some(manager)], [0; QUOTAS.len()]);
        let mut this = Self { managers, tenants, events, told, model, guards, unshared };
        (1..QUOTAS.len()).for_each(|tenant| this.renew(tenant));
        this
    }

    fn renew(&mut self, tenant: usize) {
        let quota = QUOTAS[tenant].unwrap();
        let old = std::mem::replace(&mut self.tenants[tenant], self.model.add_tenant(Some(quota)));
        let new = self.manager(0).with_quota(quota).unwrap();
        self.managers.push(Some(new));
        if old != 0 {
            self.managers[old] = None;
        }
    }

    /// Returns the manager of a number.
    fn manager(&self, number: usize) -> &BlockManager {
        self.managers[number].as_ref().unwrap()
    }

    fn keys(&self, Blocks { tenant, path, depth }: Blocks) -> (usize, Vec<BlockKey>) {
        let number = self.tenants[tenant];
        (number, sequence_of(number, path).keys()[..depth].to_vec())
    }

    fn keep(&mut self, run: BlockRun, keys: &[BlockKey]) {
        assert_eq!(run.len(), keys.len());
        self.guards.push((run, keys.iter().map(|key| key.identity).collect()));
    }

    fn store(&mut self, at: Blocks, priority: RetentionPriority) {
        let (number, keys) = self.keys(at);
        let (found, missing) = keys.split_at(self.model.matched(&keys));
        self.model.tick(keys.len());
        found.iter().for_each(|key| self.model.pin(key));
        let expected = self.model.allocate(number, missing.len());
        let stored = store_as(self.manager(number), &keys, priority);
        assert_eq!(stored.as_ref().map(|_| ()).map_err(|error| *error), expected);
        let Ok(stored) = stored else {
            return found.iter().for_each(|key| self.model.unpin(key.identity));
        };
        self.model.tick(missing.len());
        self.model.tenants[number].unshared -= missing.len();
        // One that stood alone may be there.
        missing.iter().for_each(|key| self.model.register(key, number, priority));
        self.keep(stored, &keys);
    }

    fn store_last(&mut self, at: Blocks, priority: RetentionPriority) {
        let (number, keys) = self.keys(at);
        let key = keys[keys.len() - 1];
        let expected = self.model.allocate(number, 1);
        let blocks = self.manager(number).allocate(1);
        assert_eq!(blocks.as_ref().map(|_| ()).map_err(|error| *error), expected);
        let Ok(mut blocks) = blocks else { return };
        blocks[0].fill(content(&key.identity));
        let complete = blocks.remove(0).complete(key).with_priority(priority);
        assert_eq!(self.manager(number).stats().complete, 1);
        assert_eq!(self.manager(0).stats().complete, 1);
        let stored = self.manager(number).register_all(vec![complete]);
        self.model.tick(1);
        self.model.tenants[number].unshared -= 1;
        if self.model.blocks.contains_key(&key.identity) {
            // A use of a block is one of those that it keeps.
            self.model.linked_before(key.identity).into_iter().for_each(|block| {
                self.model.blocks.get_mut(&block).unwrap().uses += 1;
            });
        }
        self.model.register(&key, number, priority);
        self.keep(stored, &[key]);
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Store { at, priority } => self.store(at, priority),
            Op::StoreLast { at, priority } => self.store_last(at, priority),
            Op::Match { at } => {
                let (number, keys) = self.keys(at);
                let found = self.manager(number).match_prefix(&keys);
                self.model.tick(keys.len());
                let keys = &keys[..self.model.matched(&keys)];
                keys.iter().for_each(|key| self.model.pin(key));
                self.keep(found, keys);
            }
            // The model changes in nothing: in no order either.
            Op::Probe { at } => {
                let (number, keys) = self.keys(at);
                let found = self.manager(number).probe(&keys).now_or_never();
                assert_eq!(found, Some(self.model.matched(&keys)));
            }
            Op::Allocate { tenant, count } => {
                let number = self.tenants[tenant];
                let expected = self.model.allocate(number, count);
                let blocks = self.manager(number).allocate(count);
                assert_eq!(blocks.as_ref().map(|_| ()).map_err(|error| *error), expected);
                self.unshared.extend(blocks.map(|blocks| (number, blocks)));
            }
            Op::Free => {
                let Some((number, blocks)) = self.unshared.pop() else { return };
                self.model.tenants[number].unshared -= blocks.len();
            }
            Op::Clear { tenant } => {
                let number = self.tenants[tenant];
                self.manager(number).clear();
                let active = self.model.active();
                let stays = |identity: &BlockIdentity, block: &mut ModelBlock| {
                    active.contains(identity) || number != 0 && block.tenant != number
                };
                self.model.blocks.retain(stays);
            }
            Op::Renew { tenant } => self.renew(tenant),
            _ if self.guards.is_empty() => {}
            _ => self.step_guard(op),
        }
    }

    fn step_guard(&mut self, op: Op) {
        let some = |index: usize, guards: &Vec<_>| index % guards.len().max(1);
        match op {
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
            Op::SetPriority { index, priority } => {
                let (run, names) = &self.guards[some(index, &self.guards)];
                run.set_priority(priority);
                for name in names {
                    self.model.blocks.get_mut(name).unwrap().priority = priority;
                }
            }
            other => unreachable!("{other:?}"),
        }
    }

    /// Takes note of what goes with the last handle and the last guard of a quota.
    fn drop_gone(&mut self) {
        let blocks = &self.model.blocks;
        let held: BTreeSet<_> = self.guards.iter().flat_map(|(_, names)| names).collect();
        let is_kept = |number: usize| {
            self.managers[number].is_some() || held.iter().any(|name| blocks[name].tenant == number)
        };
        let kept: Vec<_> = (0..self.managers.len()).map(is_kept).collect();
        self.model.blocks.retain(|_, block| kept[block.tenant]);
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
        for (number, manager) in self.managers.iter().enumerate() {
            let Some(manager) = manager else { continue };
            let (stats, tenant) = (manager.stats(), Some(number).filter(|number| *number != 0));
            let capacity = self.model.tenants[number].quota.unwrap_or(CAPACITY);
            let states = stats.free + stats.mutable + stats.complete + stats.active + stats.cached;
            assert_eq!((stats.capacity, states), (capacity, capacity));
            assert_eq!((stats.active, stats.cached), self.model.registered(tenant));
            let unshared = tenant.map(|tenant| self.model.tenants[tenant].unshared);
            let unshared = unshared.unwrap_or_else(|| self.model.unshared());
            assert_eq!((stats.mutable, stats.complete), (unshared, 0));
        }
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
            both.drop_gone();
            if is_new {
                both.told.lock().unwrap().clear();
            }
            both.check_uses();
            both.check();
        }
        // Where nothing is held, all is cached or free, and can be had.
        both.guards.clear();
        both.unshared.clear();
        for (tenant, number) in both.tenants.into_iter().enumerate() {
            let (manager, all) = (both.manager(number), QUOTAS[tenant].unwrap_or(CAPACITY));
            prop_assert_eq!((manager.stats().active, manager.stats().mutable), (0, 0));
            prop_assert_eq!(manager.allocate(all).unwrap().len(), all);
        }
        // Of those that were, nothing is left.
        both.managers.truncate(1);
        prop_assert_eq!(both.manager(0).stats().free, CAPACITY);
    }
}
