//! What every index is told and asked: who stores and removes which blocks, in which order, and the
//! prompts that are looked up afterwards.

use std::collections::HashSet;
use std::hash::BuildHasherDefault;
use std::rc::Rc;

use dynamo_core::protocol::{LocalHash, SequenceHash};
use dynamo_kv_router::protocols::{LocalBlockHash, compute_seq_hash_for_block};

use crate::lru::AsItIs;

/// The full blocks of a prompt, hashed.
pub struct Prompt {
    pub local: Vec<LocalHash>,
    pub sequence: Vec<SequenceHash>,
}

impl Prompt {
    /// Chains the content hashes of a prompt's blocks as the peer does, whose positional index
    /// needs it.
    pub fn new(local: Vec<LocalHash>) -> Self {
        let theirs: Vec<_> = local.iter().map(|local| LocalBlockHash(local.0)).collect();
        let sequence = compute_seq_hash_for_block(&theirs).into_iter().map(SequenceHash).collect();
        Self { local, sequence }
    }

    pub fn len(&self) -> usize {
        self.local.len()
    }
}

/// One event of one worker.
#[derive(Clone, Copy)]
pub struct Event {
    pub worker: usize,
    pub change: Change,
}

#[derive(Clone, Copy)]
pub enum Change {
    /// Blocks `from..to` of a prompt were stored.
    Stored { prompt: usize, from: usize, to: usize },
    /// Hashes `from..to` of [`Workload::removed`] were removed.
    Removed { from: usize, to: usize },
}

pub struct Workload {
    pub prompts: Rc<Vec<Prompt>>,
    pub events: Vec<Event>,
    /// The blocks that are removed, event after event.
    pub removed: Vec<SequenceHash>,
    /// The prompts that are looked up, in this order.
    pub queries: Vec<usize>,
    /// Pairs of a worker and a block that it holds after all events.
    pub pairs: usize,
}

impl Workload {
    /// Counts the blocks that `events` store or remove.
    pub fn blocks(events: &[Event]) -> usize {
        let blocks = events.iter().map(|event| match event.change {
            Change::Stored { from, to, .. } | Change::Removed { from, to } => to - from,
        });
        blocks.sum()
    }

    /// Tells whether there are millions of blocks.
    pub fn is_big(&self) -> bool {
        Self::blocks(&self.events) > 4_000_000
    }

    /// Returns what removes all that is held in the end, the last stored first.
    pub fn emptying(&self) -> Self {
        let mut held: HashSet<(usize, SequenceHash), BuildHasherDefault<AsItIs>> =
            HashSet::default();
        for Event { worker, change } in &self.events {
            match *change {
                Change::Stored { prompt, from, to } => {
                    let blocks = &self.prompts[prompt].sequence[from..to];
                    held.extend(blocks.iter().map(|hash| (*worker, *hash)));
                }
                Change::Removed { from, to } => self.removed[from..to].iter().for_each(|hash| {
                    held.remove(&(*worker, *hash));
                }),
            }
        }
        let (mut events, mut removed) = (Vec::new(), Vec::new());
        for &Event { worker, change } in self.events.iter().rev() {
            let Change::Stored { prompt, from, to } = change else { continue };
            let first = removed.len();
            let blocks = self.prompts[prompt].sequence[from..to].iter().rev();
            removed.extend(blocks.filter(|hash| held.remove(&(worker, **hash))));
            let change = Change::Removed { from: first, to: removed.len() };
            events.extend((first < removed.len()).then_some(Event { worker, change }));
        }
        let (prompts, queries) = (Rc::clone(&self.prompts), Vec::new());
        Self { prompts, events, removed, queries, pairs: 0 }
    }
}

/// Returns the content hash of a block by its number.
pub fn local(number: u64) -> LocalHash {
    LocalHash(mix(number.wrapping_add(1)))
}

/// Spreads the bits of `value` (the finalizer of splitmix64).
pub fn mix(mut value: u64) -> u64 {
    value = value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
