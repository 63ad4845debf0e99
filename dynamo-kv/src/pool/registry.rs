use std::collections::HashMap;
use std::sync::Arc;

use dynamo_transfer::HostBuffer;

use crate::evict::{EntryId, Eviction, Use};
use crate::identity::{BlockIdentity, BlockKey};

/// Identity → block, with what keeps each one; pure.
///
/// A block is *active* while guards pin it or a block that follows it is active, so that whatever
/// is not active can be evicted, leaf after leaf.
pub(super) struct Registry {
    entries: HashMap<BlockIdentity, Entry>,
    eviction: Box<dyn Eviction>,
    /// What each entry of the policy names, and those that name nothing.
    names: Vec<BlockIdentity>,
    unused: Vec<EntryId>,
    /// Counts uses; each release gets a number of its own.
    clock: u64,
    active: usize,
}

struct Entry {
    key: BlockKey,
    buffer: Arc<HostBuffer>,
    id: EntryId,
    depth: u32,
    uses: u32,
    /// Guards, plus registered followers that are active.
    pins: usize,
    /// Registered followers.
    followers: usize,
    /// The block before this one, if it was registered when this one was.
    parent: Option<BlockIdentity>,
    last_use: u64,
}

impl Entry {
    fn usage(&self) -> Use {
        let [a, b, c, d, e, f, g, h, ..] = self.key.identity.0;
        let hash = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        Use::new(hash, self.depth, self.uses, self.last_use)
    }
}

impl Registry {
    pub(super) fn new(eviction: Box<dyn Eviction>) -> Self {
        let (names, unused) = (Vec::new(), Vec::new());
        Self { entries: HashMap::new(), eviction, names, unused, clock: 0, active: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns how many blocks may be evicted.
    pub(super) fn cached(&self) -> usize {
        self.entries.len() - self.active
    }

    /// Adds a block, pinned once. It must not be registered.
    pub(super) fn insert(&mut self, key: BlockKey, buffer: Arc<HostBuffer>) {
        let parent = key.parent.filter(|parent| self.entries.contains_key(parent));
        if let Some(parent) = parent {
            // Pinned before it gains a follower: whatever is offered for eviction is a leaf.
            self.pin(&parent);
            if let Some(parent) = self.entries.get_mut(&parent) {
                parent.followers += 1;
            }
        }
        let id = self.unused.pop().unwrap_or_else(|| {
            self.names.push(key.identity);
            EntryId::new(u32::try_from(self.names.len() - 1).expect("blocks are counted by u32"))
        });
        self.names[id.index()] = key.identity;
        let depth = parent.map_or(0, |parent| self.entries[&parent].depth + 1);
        let (pins, followers) = (1, 0);
        let (uses, last_use) = (0, 0);
        let entry = Entry { key, buffer, id, depth, uses, pins, followers, parent, last_use };
        self.entries.insert(key.identity, entry);
        self.active += 1;
    }

    /// Pins a block and returns its memory; `None` if it is not registered.
    pub(super) fn pin(&mut self, identity: &BlockIdentity) -> Option<Arc<HostBuffer>> {
        let buffer = Arc::clone(&self.entries.get(identity)?.buffer);
        let mut next = Some(*identity);
        while let Some(identity) = next {
            let Some(entry) = self.entries.get_mut(&identity) else { break };
            entry.pins += 1;
            if entry.pins > 1 {
                break;
            }
            self.active += 1;
            entry.uses += 1;
            if entry.followers == 0 {
                self.eviction.remove(entry.id);
            }
            next = entry.parent;
        }
        Some(buffer)
    }

    /// Takes one pin back; the last one makes the block evictable, and perhaps its parents.
    pub(super) fn unpin(&mut self, identity: &BlockIdentity) {
        let mut next = Some(*identity);
        while let Some(identity) = next {
            let Some(entry) = self.entries.get_mut(&identity) else { break };
            entry.pins -= 1;
            if entry.pins > 0 {
                break;
            }
            self.active -= 1;
            self.clock += 1;
            entry.last_use = self.clock;
            if entry.followers == 0 {
                self.eviction.insert(entry.id, entry.usage());
            }
            next = entry.parent;
        }
    }

    /// Removes the block that goes first; `None` if none may go.
    pub(super) fn evict(&mut self) -> Option<(BlockKey, HostBuffer)> {
        let victim = self.eviction.victim()?;
        let entry = self.entries.remove(&self.names[victim.index()])?;
        self.unused.push(victim);
        if let Some(parent) = entry.parent
            && let Some(above) = self.entries.get_mut(&parent)
        {
            above.followers -= 1;
            if above.followers == 0 && above.pins == 0 {
                self.eviction.insert(above.id, above.usage());
            }
        }
        let buffer = Arc::into_inner(entry.buffer).expect("a block without guards has one owner");
        Some((entry.key, buffer))
    }

    /// Returns all keys, each after the block it follows.
    pub(super) fn parents_first(&self) -> Vec<BlockKey> {
        let mut followers: HashMap<_, Vec<_>> = HashMap::new();
        #[expect(clippy::iter_over_hash_type, reason = "only who follows whom matters")]
        for entry in self.entries.values() {
            // One whose parent is not registered stands at a start of its own.
            let parent = entry.parent.filter(|parent| self.entries.contains_key(parent));
            followers.entry(parent).or_default().push(entry.key);
        }
        let mut ordered = followers.remove(&None).unwrap_or_default();
        let mut at = 0;
        while at < ordered.len() {
            let next = followers.remove(&Some(ordered[at].identity)).unwrap_or_default();
            ordered.extend(next);
            at += 1;
        }
        ordered
    }
}
