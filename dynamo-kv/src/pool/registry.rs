//! Identity → block within one shard, with what keeps each one; pure but for the slots' counts.

use std::collections::{BTreeMap, HashMap};

use dynamo_core::protocol::{LocalHash, SequenceHash};
use dynamo_transfer::{SharedSlot, SharedSlots, Slot, SlotRun};
use hashbrown::HashTable;
use hashbrown::hash_table;

use super::Home;
use crate::evict::{EntryId, Levels, RetentionPriority, Use};
use crate::identity::{BlockIdentity, BlockKey};

/// The blocks of one shard.
///
/// A block is *active* while guards hold it or a block that follows it is active, so that whatever
/// is not active can be evicted, leaf after leaf. A slot holds that of the block before it, and counts
/// by itself who holds it; the registry's holds are in `slots`. What guards leave is seen when
/// [`settle`](Self::settle) looks.
pub(super) struct Registry {
    /// Which entry has an identity.
    table: HashTable<u32>,
    entries: Vec<Entry>,
    /// Of each entry, unless it is vacant.
    slots: SharedSlots<Home>,
    /// What stands before the blocks that were registered while it was not.
    orphans: BTreeMap<u32, SequenceHash>,
    /// [`BlockKey::chain`] of each entry, if [`victim`](Self::victim) is to be asked.
    chains: Option<Vec<u64>>,
    /// The first entry that names no block; each names the next.
    vacant: u32,
    eviction: Levels,
    active: usize,
    /// The time of the use that was last.
    last_use: u64,
}

/// A block, or nothing.
struct Entry {
    identity: BlockIdentity,
    sequence: SequenceHash,
    local: LocalHash,
    last_use: u64,
    /// The entry of the block before it, if that was registered when this one was; of a vacant entry,
    /// the next one.
    parent: u32,
    /// Registered blocks behind it, and how many of those are active.
    followers: u32,
    active_followers: u32,
    position: u32,
    /// How often it was the last of what was found, and blocks behind it were that are gone.
    uses: u32,
    is_active: bool,
    priority: RetentionPriority,
}

/// The entry of the block before another, and a hold of it that can be given up.
pub(super) type Before = Option<(EntryId, Option<SharedSlot<Home>>)>;

/// A new block and a hold of it, or the one that was there and the slot that is not needed.
pub(super) type Inserted = Result<(EntryId, SharedSlot<Home>), (EntryId, Slot<Home>)>;

/// Blocks of which each follows the one before, with the entry of the last.
pub(super) type Linked = (EntryId, SlotRun<Home>);

impl Registry {
    /// Creates one that knows all that names its blocks if it `is_named`.
    pub(super) fn new(eviction: Levels, is_named: bool) -> Self {
        Self {
            table: HashTable::new(),
            entries: Vec::new(),
            slots: SharedSlots::default(),
            orphans: BTreeMap::new(),
            chains: is_named.then(Vec::new),
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

    fn find(&self, identity: &BlockIdentity) -> Option<EntryId> {
        let is_it = |&entry: &u32| self.entries[entry as usize].identity == *identity;
        self.table.find(hash(identity), is_it).map(|&entry| EntryId::new(entry))
    }

    /// Tells whether a block is there.
    pub(super) fn has(&self, identity: &BlockIdentity) -> bool {
        self.find(identity).is_some()
    }

    /// Takes a hold of a block, if the entry still names it.
    pub(super) fn hold(
        &mut self,
        at: EntryId,
        identity: &BlockIdentity,
    ) -> Option<SharedSlot<Home>> {
        let entry = self.entries.get(at.index())?;
        let slot = self.slots.get(at.index()).filter(|_| entry.identity == *identity)?.clone();
        self.found(at);
        Some(slot)
    }

    /// Takes a hold of the longest run of `keys` from the first on, and takes note of it if it `is_use`.
    pub(super) fn hold_prefix(&mut self, keys: &[BlockKey], is_use: bool) -> Vec<Linked> {
        let parts = self.prefix(keys);
        for (last, _) in &parts {
            if is_use {
                self.found(*last);
            } else {
                self.activate(last.index());
            }
        }
        parts
    }

    /// Returns how many of `keys` from the first on are there.
    pub(super) fn count_prefix(&self, keys: &[BlockKey]) -> usize {
        // The holds end under the lock: to whoever settles nothing was held.
        self.prefix(keys).iter().map(|(_, slots)| slots.len()).sum()
    }

    /// Returns the longest run of `keys` from the first on; it has to be active, or let go, before the
    /// lock is let go.
    fn prefix(&self, mut keys: &[BlockKey]) -> Vec<Linked> {
        while let Some((length, last)) = self.reach(keys) {
            keys = &keys[..length];
            let follows = |pair: &[BlockKey]| pair[1].parent == Some(pair[0].identity);
            if let Some(end) = keys.windows(2).position(|pair| !follows(pair)) {
                // Not of one sequence: what was found last says nothing of the first ones.
                keys = &keys[..=end];
                continue;
            }
            match self.linked_up_to(keys, last) {
                Ok(found) => return found,
                Err(missing) => keys = &keys[..missing],
            }
        }
        Vec::new()
    }

    /// Finds a key that is there while the one behind it is not, and says how many end with it; `None`
    /// if the first is not there.
    ///
    /// That those before it are there is likely and not known: a block may stand alone.
    fn reach(&self, keys: &[BlockKey]) -> Option<(usize, EntryId)> {
        let mut last = self.find(&keys.first()?.identity)?;
        let (mut found, mut missing) = (0, keys.len());
        // All of them is what is asked for most.
        let mut probe = keys.len() - 1;
        while missing - found > 1 {
            match self.find(&keys[probe].identity) {
                Some(entry) => (found, last) = (probe, entry),
                None => missing = probe,
            }
            probe = found.midpoint(missing);
        }
        Some((found + 1, last))
    }

    /// Returns the blocks of `keys`, which follow each other and of which `last` is the last one: in one
    /// part, or in several where a block stands alone. Fails with the number of a key that is not there.
    fn linked_up_to(&self, keys: &[BlockKey], last: EntryId) -> Result<Vec<Linked>, usize> {
        let (mut parts, mut last, mut left) = (Vec::new(), last, keys.len());
        loop {
            let slots = self.run(last, left);
            left -= slots.len();
            parts.push((last, slots));
            if left == 0 {
                parts.reverse();
                return Ok(parts);
            }
            last = self.find(&keys[left - 1].identity).ok_or(left - 1)?;
        }
    }

    /// Returns a block and those that it keeps, `blocks_max` at most; it has to be active
    /// before the lock is let go.
    pub(super) fn run(&self, last: EntryId, blocks_max: usize) -> SlotRun<Home> {
        let last = self.slots.get(last.index()).expect("an entry that was found has a slot");
        SharedSlot::clone(&last).into_run(blocks_max)
    }

    /// Takes note that a block was asked for, and with it those that it follows.
    pub(super) fn found(&mut self, last: EntryId) {
        self.activate(last.index());
        let entry = &mut self.entries[last.index()];
        entry.uses = entry.uses.saturating_add(1);
    }

    /// Makes room for so many blocks more at once.
    pub(super) fn reserve(&mut self, blocks: usize) {
        let vacant = self.entries.capacity() - self.len();
        if blocks > vacant {
            // Not twice as many: shards fill up evenly. But for the next ones too.
            let room = (2 * blocks).max(self.len() / 16).max(64);
            self.entries.reserve_exact(self.len() + room - self.entries.len());
            self.slots.reserve(self.entries.capacity());
        }
    }

    /// Adds a block that follows `before`, as far as whoever adds a run knows it with a hold to give up.
    pub(super) fn insert(
        &mut self,
        key: &BlockKey,
        priority: RetentionPriority,
        slot: Slot<Home>,
        before: Before,
    ) -> Inserted {
        let (before, hold) = before.map_or((None, None), |(before, hold)| (Some(before), hold));
        let before = before.or_else(|| key.parent.as_ref().and_then(|parent| self.find(parent)));
        let (hash, identity) = (hash(&key.identity), &key.identity);
        let is_it = |&entry: &u32| self.entries[entry as usize].identity == *identity;
        let hash_of = |&entry: &u32| self::hash(&self.entries[entry as usize].identity);
        let place = match self.table.entry(hash, is_it, hash_of) {
            hash_table::Entry::Occupied(there) => return Err((EntryId::new(*there.get()), slot)),
            hash_table::Entry::Vacant(place) => place,
        };
        let at = if self.vacant == NONE { id(self.entries.len()) } else { EntryId(self.vacant) };
        place.insert(at.0);
        self.fill(at, key, priority, before);
        let stored = |before: EntryId| self.slots.get(before.index()).map(|slot| slot.clone());
        let [slot, hold] = slot.share_behind(hold.or_else(|| before.and_then(stored)));
        self.slots.insert(at.index(), slot);
        Ok((at, hold))
    }

    /// Writes the entry of a new block.
    fn fill(
        &mut self,
        at: EntryId,
        key: &BlockKey,
        priority: RetentionPriority,
        before: Option<EntryId>,
    ) {
        if let Some(before) = before {
            // Active before it gains a follower: whatever is offered for eviction is a leaf.
            self.activate(before.index());
            let before = &mut self.entries[before.index()];
            before.followers += 1;
            before.active_followers += 1;
        } else if let Some(parent) = key.parent_sequence {
            self.orphans.insert(at.0, parent);
        }
        let entry = Entry {
            identity: key.identity,
            sequence: key.sequence,
            local: key.local,
            last_use: 0,
            parent: before.map_or(NONE, |before| before.0),
            followers: 0,
            active_followers: 0,
            position: key.position,
            uses: 0,
            is_active: true,
            priority,
        };
        self.active += 1;
        if let Some(chains) = &mut self.chains {
            chains.resize(chains.len().max(at.index() + 1), 0);
            chains[at.index()] = key.chain;
        }
        match self.entries.get_mut(at.index()) {
            Some(vacant) => self.vacant = std::mem::replace(vacant, entry).parent,
            None => self.entries.push(entry),
        }
    }

    /// Gives a block that is held, or about to be, a priority if that is higher than its own.
    pub(super) fn raise(&mut self, at: EntryId, priority: RetentionPriority) {
        if self.entries[at.index()].priority < priority {
            self.prioritize(at, 1, priority);
        }
    }

    /// Gives a block that is held, or about to be, and those before it a priority, `count` in all.
    pub(super) fn prioritize(&mut self, last: EntryId, count: usize, priority: RetentionPriority) {
        // What is active is at no policy, which would know it by its old priority.
        self.activate(last.index());
        let mut next = Some(last);
        for _ in 0..count {
            let Some(at) = next else { return };
            self.entries[at.index()].priority = priority;
            next = self.before(at);
        }
    }

    /// Returns the entry of the block before it, if they are linked.
    pub(super) fn before(&self, entry: EntryId) -> Option<EntryId> {
        Some(self.entries[entry.index()].parent).filter(|parent| *parent != NONE).map(EntryId)
    }

    /// Returns what names a block and those before it, `count` in all, first block first.
    pub(super) fn names(&self, last: EntryId, count: usize) -> Vec<(EntryId, BlockIdentity)> {
        let up = std::iter::successors(Some(last), |entry| self.before(*entry)).take(count);
        let mut names: Vec<_> =
            up.map(|entry| (entry, self.entries[entry.index()].identity)).collect();
        names.reverse();
        names
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
            let (is_leaf, parent, priority) = (entry.followers == 0, entry.parent, entry.priority);
            if is_leaf {
                self.eviction.remove(id(at), priority);
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
            && entry.is_active
            && entry.active_followers == 0
            && let Some(slot) = self.slots.get(at)
            // By this registry, and by the blocks behind it.
            && slot.holders_count() == 1 + entry.followers as usize
        {
            drop(slot);
            entry.is_active = false;
            self.active -= 1;
            self.last_use = now.max(self.last_use + 1);
            entry.last_use = self.last_use;
            if entry.followers == 0 {
                self.eviction.insert(id(at), entry.priority, entry.usage());
            }
            if entry.parent == NONE {
                return;
            }
            at = entry.parent as usize;
            self.entries[at].active_followers -= 1;
        }
    }

    /// Removes the blocks that go first, `count` at most, while they rank up to `limit`; says which by
    /// `name`.
    pub(super) fn evict<N>(
        &mut self,
        count: usize,
        limit: u64,
        name: fn(&Self, EntryId) -> N,
    ) -> impl Iterator<Item = (N, Slot<Home>)> {
        // What one held is often the next: its hold goes with it.
        let mut before = None;
        let next = move || {
            self.rank().filter(|rank| *rank <= limit)?;
            self.evict_one(&mut before, name)
        };
        std::iter::from_fn(next).take(count)
    }

    fn evict_one<N>(
        &mut self,
        hold: &mut Option<SharedSlot<Home>>,
        name: fn(&Self, EntryId) -> N,
    ) -> Option<(N, Slot<Home>)> {
        let victim = self.eviction.victim()?;
        let named = name(self, victim);
        Some((named, self.take(victim, hold)?))
    }

    /// Removes a block, if nobody holds it and nothing follows it.
    pub(super) fn remove(&mut self, identity: &BlockIdentity) -> Removed {
        let Some(at) = self.find(identity) else { return Removed::Absent };
        let entry = &self.entries[at.index()];
        if entry.is_active || entry.followers > 0 {
            return Removed::Kept;
        }
        self.eviction.remove(at, entry.priority);
        self.take(at, &mut None).map_or(Removed::Absent, Removed::Gone)
    }

    /// Takes the slot of a block that may be evicted, and is not to be chosen any more; `hold` is one of
    /// it, and becomes one of the block before it.
    fn take(&mut self, victim: EntryId, hold: &mut Option<SharedSlot<Home>>) -> Option<Slot<Home>> {
        let slot = self.slots.take(victim.index())?;
        let entry = &mut self.entries[victim.index()];
        let (hash, uses) = (hash(&entry.identity), entry.uses);
        let parent = std::mem::replace(&mut entry.parent, self.vacant);
        self.vacant = victim.0;
        let removed = self.table.find_entry(hash, |&other| other == victim.0);
        removed.expect("an entry that names a block is in the table").remove();
        let owned = slot.into_owned(hold.take());
        let (slot, before) = owned.expect("nobody holds a block that may be evicted");
        *hold = before;
        if parent == NONE {
            self.orphans.remove(&victim.0);
            return Some(slot);
        }
        let before = &mut self.entries[parent as usize];
        before.uses = before.uses.saturating_add(uses);
        before.followers -= 1;
        if before.followers == 0 && !before.is_active {
            self.eviction.insert(EntryId::new(parent), before.priority, before.usage());
        }
        Some(slot)
    }

    /// Returns what events call a block.
    pub(super) fn sequence(&self, entry: EntryId) -> SequenceHash {
        self.entries[entry.index()].sequence
    }

    /// Returns all that names a block.
    pub(super) fn victim(&self, at: EntryId) -> Victim {
        let entry = &self.entries[at.index()];
        let parent = self.before(at).map(|before| &self.entries[before.index()]);
        let orphan = || self.orphans.get(&at.0).copied();
        let key = BlockKey {
            identity: entry.identity,
            parent: parent.map(|parent| parent.identity),
            sequence: entry.sequence,
            parent_sequence: parent.map(|parent| parent.sequence).or_else(orphan),
            local: entry.local,
            position: entry.position,
            chain: self.chains.as_ref().map_or(0, |chains| chains[at.index()]),
        };
        Victim { key, uses: entry.uses }
    }

    /// Returns every block with the one before it, each behind the block it follows.
    pub(super) fn parents_first(&self) -> Vec<Held> {
        let held = |(at, entry): (usize, &Entry)| {
            let parent = self.entries.get(entry.parent as usize).map(|parent| parent.sequence);
            let alone = || self.orphans.get(&u32::try_from(at).ok()?).copied();
            Held { parent: parent.or_else(alone), sequence: entry.sequence, local: entry.local }
        };
        self.in_order().into_iter().map(held).collect()
    }

    /// Returns all that names every block, each behind the block it follows; what [`victim`](Self::victim)
    /// does not know of a block is taken from the first of its sequence, if that is there.
    pub(super) fn keys(&self) -> Vec<BlockKey> {
        let mut chains: HashMap<BlockIdentity, u64> = HashMap::new();
        let key = |(at, _): (usize, &Entry)| {
            let mut key = self.victim(id(at)).key;
            if self.chains.is_none() {
                key.chain = match key.parent.and_then(|parent| chains.get(&parent).copied()) {
                    Some(chain) => chain,
                    None => key.identity.chain(),
                };
                chains.insert(key.identity, key.chain);
            }
            key
        };
        self.in_order().into_iter().map(key).collect()
    }

    /// Returns every block's entry; what follows a block stands behind it in every sequence.
    fn in_order(&self) -> Vec<(usize, &Entry)> {
        let is_there = |(at, _): &(usize, &Entry)| self.slots.get(*at).is_some();
        let mut blocks: Vec<_> = self.entries.iter().enumerate().filter(is_there).collect();
        blocks.sort_by_key(|(_, entry)| entry.position);
        blocks
    }
}

/// What became of a block that was to be removed.
pub(super) enum Removed {
    Absent,
    /// Somebody holds it, or a block follows it.
    Kept,
    Gone(Slot<Home>),
}

/// A block that is evicted.
pub(crate) struct Victim {
    /// Without its parent if that was not registered when the block was.
    pub(crate) key: BlockKey,
    /// How often it, or what followed it, was found.
    pub(crate) uses: u32,
}

/// A block as events name it.
pub(super) struct Held {
    pub(super) parent: Option<SequenceHash>,
    pub(super) sequence: SequenceHash,
    pub(super) local: LocalHash,
}

impl Entry {
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
