//! Sharing what is full.

use std::sync::Arc;

use dynamo_core::protocol::{SequenceHash, StoredBlock};
use dynamo_transfer::{SharedSlot, Slot};

use super::shard::Locked;
use super::{Home, Place, Pool};
use crate::block::{BlockRun, CompleteBlock};
use crate::evict::{EntryId, RetentionPriority};
use crate::identity::{BlockIdentity, BlockKey};

impl Pool {
    /// Shares the blocks, each held once; a block that is there already frees the new slot.
    pub(crate) fn register(self: &Arc<Self>, mut blocks: Vec<CompleteBlock>) -> BlockRun {
        // Before any lock: what is another's would leave a state behind that is not whole.
        let number = self.number();
        let is_ours = |block: &CompleteBlock| Home::is_of(block.slot(), &self.common, number);
        assert!(blocks.iter().all(is_ours), "a block is registered by the manager that it is of");
        self.tick(blocks.len());
        let mut registered = BlockRun::default();
        for blocks in blocks.chunk_by_mut(|one, next| one.key().chain == next.key().chain) {
            let shard = self.shard_of(blocks[0].key());
            let mut registering = Registering {
                pool: self,
                shard,
                locked: self.partition.shards[shard as usize].lock(),
                registered: &mut registered,
                linked: None,
                stored: Vec::new(),
                keys: Vec::new(),
                is_watched: self.common.publisher.is_watched(number),
                parent: None,
                last_stored: None,
                unneeded: Vec::new(),
            };
            let count = blocks.len();
            registering.locked.registry.reserve(count);
            for (at, block) in blocks.iter_mut().enumerate() {
                let slot = block.take_slot();
                registering.add(block.key(), block.priority(), slot, count - 1 - at);
            }
            let unneeded = registering.end();
            self.partition.count_down(unneeded.len());
            unneeded.into_iter().for_each(|slot| self.common.free(slot));
        }
        registered
    }
}

/// Blocks that are registered in one shard, under its lock.
struct Registering<'a> {
    pool: &'a Arc<Pool>,
    shard: u32,
    locked: Locked<'a>,
    registered: &'a mut BlockRun,
    /// Those that are not in `registered` yet.
    linked: Option<Linked>,
    /// Those that were not said to be stored yet, and what stands before them.
    stored: Vec<StoredBlock>,
    /// Theirs, if anybody wants them.
    keys: Vec<BlockKey>,
    is_watched: bool,
    parent: Option<SequenceHash>,
    last_stored: Option<BlockIdentity>,
    /// Slots of blocks that were there already, for the shards that they are of.
    unneeded: Vec<Slot<Home>>,
}

/// Blocks of which each follows the one before.
struct Linked {
    last: EntryId,
    identity: BlockIdentity,
    count: usize,
    /// The last was there already.
    is_found: bool,
    /// Of the last, if it is new and nothing was added behind it.
    hold: Option<SharedSlot<Home>>,
}

impl Registering<'_> {
    /// Adds a block, of which `behind` more may come.
    fn add(
        &mut self,
        key: &BlockKey,
        priority: RetentionPriority,
        slot: Slot<Home>,
        behind: usize,
    ) {
        let follows = |linked: &&mut Linked| Some(linked.identity) == key.parent;
        let linked = self.linked.as_mut().filter(follows);
        let before = linked.map(|linked| (linked.last, linked.hold.take()));
        let (last, hold) = match self.locked.registry.insert(key, priority, slot, before) {
            Ok((entry, hold)) => {
                self.say_stored(key, behind);
                (entry, Some(hold))
            }
            Err((entry, slot)) => {
                self.locked.registry.raise(entry, priority);
                self.unneeded.push(slot);
                (entry, None)
            }
        };
        let before = self.locked.registry.before(last);
        let linked = self.linked.take_if(|linked| before == Some(linked.last));
        let count = linked.as_ref().map_or(0, |linked| linked.count) + 1;
        match linked {
            // What follows it was there too: a use of that is one of this.
            Some(linked) if linked.is_found && hold.is_some() => {
                self.locked.registry.found(linked.last);
            }
            Some(_) => {}
            None => self.hold(),
        }
        let (identity, is_found) = (key.identity, hold.is_none());
        self.linked = Some(Linked { last, identity, count, is_found, hold });
    }

    /// Holds the blocks that are linked to the last one.
    fn hold(&mut self) {
        let Some(Linked { last, count, is_found, hold, .. }) = self.linked.take() else { return };
        if is_found {
            self.locked.registry.found(last);
        }
        let slots = match hold {
            Some(hold) => hold.into_run(count),
            None => self.locked.registry.run(last, count),
        };
        self.registered.push(self.pool, Place { shard: self.shard, entry: last }, slots);
    }

    fn say_stored(&mut self, key: &BlockKey, behind: usize) {
        if self.last_stored != key.parent || self.stored.is_empty() {
            self.publish();
            self.parent = key.parent_sequence;
            self.stored.reserve_exact(1 + behind);
        }
        self.stored.push(StoredBlock { sequence: key.sequence, local: key.local });
        if self.is_watched {
            self.keys.push(*key);
        }
        self.last_stored = Some(key.identity);
    }

    fn publish(&mut self) {
        let (stored, common) = (std::mem::take(&mut self.stored), &self.pool.common);
        common.publisher.stored(self.parent, stored, common.tier, &self.keys);
        self.keys.clear();
    }

    /// Returns the slots that are not needed.
    fn end(mut self) -> Vec<Slot<Home>> {
        self.hold();
        self.publish();
        self.unneeded
    }
}
