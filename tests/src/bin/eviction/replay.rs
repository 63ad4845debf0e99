//! One cache of a number of blocks, through which a trace goes request by request.

use dynamo_core::random::Random;
use dynamo_kv::evict::{EntryId, Eviction, Lru, Use};

use crate::trace::{Name, Trace};

/// Blocks as a pool has them: those of one request are held while it is served, and a block is offered
/// while nothing that is cached follows it.
pub(crate) struct Pool<'a> {
    trace: &'a Trace,
    capacity: usize,
    policy: Box<dyn Eviction>,
    blocks: Vec<Block>,
    /// Which block each entry is.
    entries: Vec<Name>,
    /// The request that is served.
    now: u64,
}

#[derive(Clone, Default)]
struct Block {
    entry: Option<EntryId>,
    followers: u32,
    uses: u32,
    last_use: u64,
}

impl<'a> Pool<'a> {
    pub(crate) fn new(trace: &'a Trace, capacity: usize, policy: Box<dyn Eviction>) -> Self {
        let blocks = vec![Block::default(); trace.unique()];
        Self { trace, capacity, policy, blocks, entries: Vec::new(), now: 0 }
    }

    /// Finds what is there of a request's blocks, and keeps the rest; returns how many were found.
    pub(crate) fn serve(&mut self, request: &[Name]) -> usize {
        self.now += 1;
        let found = request.iter().take_while(|name| self.blocks[**name].entry.is_some()).count();
        let (held, missing) = request.split_at(found);
        let mut last = held.last().copied();
        if let Some(Block { entry: Some(entry), followers: 0, .. }) = last.map(|n| &self.blocks[n])
        {
            self.policy.remove(*entry);
        }
        for name in held {
            let block = &mut self.blocks[*name];
            block.uses += 1;
            block.last_use = self.now;
        }
        for name in missing {
            // Where all blocks are this request's own, the rest is computed and not kept.
            let Some(entry) = self.take(*name) else { break };
            let (uses, last_use) = (0, self.now);
            self.blocks[*name] = Block { entry: Some(entry), followers: 0, uses, last_use };
            if let Some(last) = last.replace(*name) {
                self.blocks[last].followers += 1;
            }
        }
        if let Some(last) = last {
            self.offer(last);
        }
        found
    }

    /// Returns an entry for a block, evicting another if there is no free one.
    fn take(&mut self, name: Name) -> Option<EntryId> {
        if self.entries.len() < self.capacity {
            self.entries.push(name);
            return Some(entry(self.entries.len() - 1));
        }
        let victim = self.policy.victim()?;
        let evicted = std::mem::replace(&mut self.entries[victim.index()], name);
        self.blocks[evicted].entry = None;
        if let Some(parent) = self.trace.places[evicted].0 {
            self.blocks[parent].followers -= 1;
            if self.blocks[parent].last_use < self.now {
                self.offer(parent);
            }
        }
        Some(victim)
    }

    fn offer(&mut self, name: Name) {
        let Block { entry, followers, uses, last_use } = self.blocks[name];
        if let Some(entry) = entry
            && followers == 0
        {
            let hash = Random::new(name as u64).next_u64();
            self.policy.insert(entry, Use::new(hash, self.trace.places[name].1, uses, last_use));
        }
    }
}

/// Blocks that each are evicted by their own last use, whatever follows them.
///
/// A block counts as found only if all before it are there, too.
pub(crate) struct PlainLru {
    capacity: usize,
    lru: Lru,
    entries: Vec<Option<EntryId>>,
    names: Vec<Name>,
    now: u64,
}

impl PlainLru {
    pub(crate) fn new(trace: &Trace, capacity: usize) -> Self {
        let entries = vec![None; trace.unique()];
        Self { capacity, lru: Lru::default(), entries, names: Vec::new(), now: 0 }
    }

    pub(crate) fn serve(&mut self, request: &[Name]) -> usize {
        let found = request.iter().take_while(|name| self.entries[**name].is_some()).count();
        for name in request {
            self.now += 1;
            let entry = self.entries[*name].inspect(|entry| self.lru.remove(*entry));
            let entry = entry.unwrap_or_else(|| self.take());
            self.names[entry.index()] = *name;
            self.entries[*name] = Some(entry);
            self.lru.insert(entry, Use::new(0, 0, 0, self.now));
        }
        found
    }

    fn take(&mut self) -> EntryId {
        if self.names.len() == self.capacity
            && let Some(victim) = self.lru.victim()
        {
            self.entries[self.names[victim.index()]] = None;
            return victim;
        }
        self.names.push(0);
        entry(self.names.len() - 1)
    }
}

fn entry(index: usize) -> EntryId {
    EntryId::new(u32::try_from(index).expect("blocks are counted by u32"))
}
