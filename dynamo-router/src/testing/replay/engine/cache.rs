use std::collections::{BTreeMap, HashMap};

use dynamo_core::protocol::{LocalHash, SequenceHash};

/// The KV blocks of an engine: found by prefix, the least recently used go first.
#[derive(Debug)]
pub(in super::super) struct Cache {
    blocks_max: usize,
    /// Blocks that a request has.
    used: usize,
    blocks: HashMap<SequenceHash, Cached>,
    /// Blocks that nobody has and that can be found, oldest first.
    idle: BTreeMap<u64, SequenceHash>,
    clock: u64,
    changes: Vec<Change>,
}

#[derive(Debug)]
struct Cached {
    holders: usize,
    /// Its key among the idle, while nobody has it.
    idle_since: u64,
}

/// What a cache did, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Change {
    Stored { parent: Option<SequenceHash>, local: LocalHash, sequence: SequenceHash },
    Removed(SequenceHash),
}

/// The blocks of one request.
#[derive(Debug, Default)]
pub(super) struct Lease {
    /// Those that can be found by others, in the order of the sequence.
    shared: Vec<SequenceHash>,
    /// The number of the others: being filled, or twins of blocks that can be found.
    private: usize,
}

impl Lease {
    pub(super) fn len(&self) -> usize {
        self.shared.len() + self.private
    }
}

impl Cache {
    pub(in super::super) fn new(blocks_max: usize) -> Self {
        Self {
            blocks_max,
            used: 0,
            blocks: HashMap::new(),
            idle: BTreeMap::new(),
            clock: 0,
            changes: Vec::new(),
        }
    }

    pub(super) fn blocks_max(&self) -> usize {
        self.blocks_max
    }

    /// Returns how many blocks no request has.
    pub(super) fn available(&self) -> usize {
        self.blocks_max - self.used
    }

    /// Returns how many of `hashes`, from the first on, are there, and how many of these in use.
    pub(in super::super) fn find(&self, hashes: &[SequenceHash]) -> (usize, usize) {
        let found = hashes.iter().map_while(|hash| self.blocks.get(hash));
        found.fold((0, 0), |(found, active), block| {
            (found + 1, active + usize::from(block.holders > 0))
        })
    }

    /// Gives blocks that were found to a request that has none.
    pub(super) fn share(&mut self, lease: &mut Lease, hashes: &[SequenceHash]) {
        for hash in hashes {
            let Some(block) = self.blocks.get_mut(hash) else { return };
            if block.holders == 0 {
                self.idle.remove(&block.idle_since);
                self.used += 1;
            }
            block.holders += 1;
            lease.shared.push(*hash);
        }
    }

    /// Gives `count` fresh blocks to a request, or none if there are not as many.
    pub(super) fn allocate(&mut self, lease: &mut Lease, count: usize) -> bool {
        if count > self.available() {
            return false;
        }
        self.used += count;
        lease.private += count;
        while self.used + self.idle.len() > self.blocks_max {
            let Some((_, oldest)) = self.idle.pop_first() else { break };
            self.blocks.remove(&oldest);
            self.changes.push(Change::Removed(oldest));
        }
        true
    }

    /// Lets others find a block that the request has filled; a twin of one that they find already
    /// stays its own.
    pub(super) fn register(
        &mut self,
        lease: &mut Lease,
        parent: Option<SequenceHash>,
        local: LocalHash,
        sequence: SequenceHash,
    ) {
        if lease.private == 0 || self.blocks.contains_key(&sequence) {
            return;
        }
        lease.private -= 1;
        lease.shared.push(sequence);
        self.blocks.insert(sequence, Cached { holders: 1, idle_since: 0 });
        self.changes.push(Change::Stored { parent, local, sequence });
    }

    /// Takes a request's blocks back. The end of a sequence counts as older than what is before it.
    pub(super) fn release(&mut self, lease: &mut Lease) {
        self.used -= std::mem::take(&mut lease.private);
        for hash in lease.shared.drain(..).rev() {
            let Some(block) = self.blocks.get_mut(&hash) else { continue };
            block.holders -= 1;
            if block.holders == 0 {
                self.used -= 1;
                self.clock += 1;
                block.idle_since = self.clock;
                self.idle.insert(self.clock, hash);
            }
        }
    }

    /// Returns what has changed since the last call.
    pub(in super::super) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }
}
