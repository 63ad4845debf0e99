//! Identity → block within one shard, with what keeps each one; pure but for the slots' counts.

use dynamo_core::protocol::{LocalHash, SequenceHash};
use dynamo_transfer::{SharedSlot, Slot};
use hashbrown::HashTable;

use crate::evict::{EntryId, Eviction, Use};
use crate::identity::{BlockIdentity, BlockKey};

/// The blocks of one shard.
///
/// A block is *active* while guards hold it or a block that follows it is active, so that whatever
/// is not active can be evicted, leaf after leaf. Guards are counted by the slot itself, which the
/// registry holds once: what they leave is seen when [`settle`](Self::settle) looks.
pub(super) struct Registry {
    /// Which entry has an identity.
    table: HashTable<u32>,
    entries: Vec<Entry>,
    /// The first entry that names no block; each names the next.
    vacant: u32,
    eviction: Box<dyn Eviction>,
    active: usize,
    /// The time of the use that was last.
    last_use: u64,
}

/// A block, or nothing.
struct Entry {
    identity: BlockIdentity,
    sequence: SequenceHash,
    local: LocalHash,
    /// Of the block before it; means nothing for the first of a sequence.
    parent_sequence: SequenceHash,
    /// `None` if the entry is vacant.
    slot: Option<SharedSlot>,
    /// The entry of the block before it, if that was registered when this one was; of a vacant entry,
    /// the next one.
    parent: u32,
    /// Registered blocks behind it, and how many of those are active.
    followers: u32,
    active_followers: u32,
    chain: u64,
    position: u32,
    uses: u32,
    last_use: u64,
    is_active: bool,
}

impl Registry {
    pub(super) fn new(eviction: Box<dyn Eviction>) -> Self {
        Self {
            table: HashTable::new(),
            entries: Vec::new(),
            vacant: NONE,
            eviction,
            active: 0,
            last_use: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn active(&self) -> usize {
        self.active
    }

    /// Returns how many blocks may be evicted.
    pub(super) fn cached(&self) -> usize {
        self.len() - self.active
    }

    /// Returns what compares the next victim with those of other shards.
    pub(super) fn rank(&self) -> Option<u64> {
        self.eviction.rank()
    }

    pub(super) fn find(&self, identity: &BlockIdentity) -> Option<EntryId> {
        let is_it = |&entry: &u32| self.entries[entry as usize].identity == *identity;
        self.table.find(hash(identity), is_it).map(|&entry| EntryId::new(entry))
    }

    /// Tells whether an entry names that block.
    pub(super) fn names(&self, entry: EntryId, identity: &BlockIdentity) -> bool {
        let entry = self.entries.get(entry.index());
        entry.is_some_and(|entry| entry.slot.is_some() && entry.identity == *identity)
    }

    /// Takes a hold of a block.
    pub(super) fn hold(&mut self, entry: EntryId) -> SharedSlot {
        self.activate(entry.index());
        let entry = &mut self.entries[entry.index()];
        entry.uses = entry.uses.saturating_add(1);
        entry.slot.clone().expect("a block that was found has a slot")
    }

    /// Adds a block that is held once; it must not be there. `before` is the entry of the block before
    /// it, as far as whoever adds a run knows it.
    pub(super) fn insert(
        &mut self,
        key: &BlockKey,
        slot: SharedSlot,
        before: Option<EntryId>,
    ) -> EntryId {
        let before = before.or_else(|| key.parent.as_ref().and_then(|parent| self.find(parent)));
        let parent = before.map_or(NONE, |before| before.0);
        if let Some(before) = before {
            // Active before it gains a follower: whatever is offered for eviction is a leaf.
            self.activate(before.index());
            let before = &mut self.entries[before.index()];
            before.followers += 1;
            before.active_followers += 1;
        }
        let entry = self.place(Entry {
            identity: key.identity,
            sequence: key.sequence,
            local: key.local,
            parent_sequence: key.parent_sequence.unwrap_or(key.sequence),
            slot: Some(slot),
            parent,
            followers: 0,
            active_followers: 0,
            chain: key.chain,
            position: key.position,
            uses: 0,
            last_use: 0,
            is_active: true,
        });
        self.active += 1;
        let (table, entries) = (&mut self.table, &self.entries);
        let hash_of = |&entry: &u32| hash(&entries[entry as usize].identity);
        table.insert_unique(hash(&key.identity), entry.0, hash_of);
        entry
    }

    fn place(&mut self, entry: Entry) -> EntryId {
        if self.vacant != NONE {
            let at = self.vacant;
            self.vacant = self.entries[at as usize].parent;
            self.entries[at as usize] = entry;
            return EntryId::new(at);
        }
        if self.entries.len() == self.entries.capacity() {
            // Not twice as many: shards fill up evenly.
            self.entries.reserve_exact((self.entries.len() / 8).max(64));
        }
        self.entries.push(entry);
        id(self.entries.len() - 1)
    }

    /// Makes a block active, and those before it.
    fn activate(&mut self, mut at: usize) {
        loop {
            let entry = &mut self.entries[at];
            if entry.is_active {
                return;
            }
            entry.is_active = true;
            self.active += 1;
            let (is_leaf, parent) = (entry.followers == 0, entry.parent);
            if is_leaf {
                self.eviction.remove(id(at));
            }
            if parent == NONE {
                return;
            }
            at = parent as usize;
            self.entries[at].active_followers += 1;
        }
    }

    /// Looks whether anything keeps a block active still; what it alone kept ends with it. `now` is the
    /// time of its last use.
    pub(super) fn settle(&mut self, entry: EntryId, now: u64) {
        let mut at = entry.index();
        while let Some(entry) = self.entries.get_mut(at)
            && let Some(slot) = &entry.slot
            && entry.is_active
            && entry.active_followers == 0
            && slot.holders_count() == 1
        {
            entry.is_active = false;
            self.active -= 1;
            self.last_use = now.max(self.last_use + 1);
            entry.last_use = self.last_use;
            if entry.followers == 0 {
                self.eviction.insert(id(at), entry.usage());
            }
            if entry.parent == NONE {
                return;
            }
            at = entry.parent as usize;
            self.entries[at].active_followers -= 1;
        }
    }

    /// Removes the block that goes first, and says which it was; `None` if none may go.
    pub(super) fn evict(&mut self) -> Option<Victim> {
        let victim = self.eviction.victim()?;
        let entry = &mut self.entries[victim.index()];
        let slot = entry.slot.take()?;
        let (mut key, uses, parent) = (entry.key(), entry.uses, entry.parent);
        entry.parent = self.vacant;
        self.vacant = victim.0;
        let removed = self.table.find_entry(hash(&key.identity), |&other| other == victim.0);
        removed.expect("an entry that names a block is in the table").remove();
        if parent != NONE {
            let before = &mut self.entries[parent as usize];
            key.parent = Some(before.identity);
            before.followers -= 1;
            if before.followers == 0 && !before.is_active {
                self.eviction.insert(EntryId::new(parent), before.usage());
            }
        }
        let slot = slot.into_owned().expect("nobody holds a block that may be evicted");
        Some(Victim { key, uses, slot })
    }

    /// Returns every block with the one before it, each behind the block it follows.
    pub(super) fn parents_first(&self) -> Vec<Held> {
        let mut blocks: Vec<_> = self.entries.iter().filter(|entry| entry.slot.is_some()).collect();
        // What follows a block stands behind it in every sequence.
        blocks.sort_by_key(|entry| entry.position);
        let held = |entry: &Entry| {
            let parent = (entry.position > 0).then_some(entry.parent_sequence);
            Held { parent, sequence: entry.sequence, local: entry.local }
        };
        blocks.into_iter().map(held).collect()
    }
}

/// A block that was evicted.
pub(crate) struct Victim {
    /// Without its parent if that was not registered when the block was.
    pub(crate) key: BlockKey,
    /// How often it was found.
    pub(crate) uses: u32,
    pub(crate) slot: Slot,
}

/// A block as events name it.
pub(super) struct Held {
    pub(super) parent: Option<SequenceHash>,
    pub(super) sequence: SequenceHash,
    pub(super) local: LocalHash,
}

impl Entry {
    /// Returns what names it, but for its parent's identity, which the entry does not have.
    fn key(&self) -> BlockKey {
        BlockKey {
            identity: self.identity,
            parent: None,
            sequence: self.sequence,
            parent_sequence: (self.position > 0).then_some(self.parent_sequence),
            local: self.local,
            position: self.position,
            chain: self.chain,
        }
    }

    fn usage(&self) -> Use {
        Use::new(hash(&self.identity), self.position, self.uses, self.last_use)
    }
}

/// An identity is a hash already. Not its first bytes: those of a sequence's first block have chosen
/// the shard.
fn hash(identity: &BlockIdentity) -> u64 {
    let [.., a, b, c, d, e, f, g, h] = identity.0;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

fn id(index: usize) -> EntryId {
    EntryId::new(u32::try_from(index).expect("blocks are counted by u32"))
}

const NONE: u32 = u32::MAX;
