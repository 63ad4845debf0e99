//! An engine's cache as its contract says it, computed the slow way.

use std::collections::{BTreeMap, BTreeSet};

use dynamo_core::protocol::{
    BlockSize, CacheNamespace, KvChange, KvEvent, PromptBlocks, SequenceHash, Tier, WorkerId,
};
use proptest::prelude::*;

use super::wire::Told;
use crate::events::vllm::batch::EngineHash;

/// A sequence: the contents of its blocks, each one of three, behind the adapter's number.
type Path = Vec<u8>;

/// What an engine does next; numbers are taken modulo what there is.
#[derive(Debug, Clone)]
pub(super) enum Act {
    Store {
        adapter: u8,
        contents: Path,
        start: usize,
        is_host: bool,
    },
    /// Blocks that are known go to the host, without tokens.
    Offload {
        which: usize,
    },
    Remove {
        which: usize,
    },
    Clear,
}

pub(super) fn acts(count: usize) -> impl Strategy<Value = Vec<Act>> {
    let contents = prop::collection::vec(0..3_u8, 1..6);
    let store = (0..2_u8, contents, 0..6_usize, prop::bool::weighted(0.2)).prop_map(
        |(adapter, contents, start, is_host)| Act::Store { adapter, contents, start, is_host },
    );
    let act = prop_oneof![
        12 => store,
        2 => any::<usize>().prop_map(|which| Act::Offload { which }),
        12 => any::<usize>().prop_map(|which| Act::Remove { which }),
        1 => Just(Act::Clear),
    ];
    prop::collection::vec(act, 1..count)
}

/// A sequence is stored from its start.
pub(super) fn store(contents: &[u8]) -> Act {
    Act::Store { adapter: 0, contents: contents.to_vec(), start: 0, is_host: false }
}

#[derive(Debug)]
pub(super) struct Engine {
    block_size: u32,
    /// Copies of each block, by the path that ends in it.
    held: BTreeMap<(Path, Tier), usize>,
}

impl Engine {
    pub(super) fn new(block_size: u32) -> Self {
        Self { block_size, held: BTreeMap::new() }
    }

    /// Does it, and returns what is told of it.
    pub(super) fn act(&mut self, act: &Act) -> Option<Told> {
        match act {
            Act::Store { adapter, contents, start, is_host } => {
                let path = [&[*adapter], &contents[..]].concat();
                let start = (1..=(1 + start).min(contents.len())).rev();
                let start = start.into_iter().find(|at| *at == 1 || self.has(&path[..*at]));
                Some(self.store(&path, start.unwrap_or(1), *is_host))
            }
            Act::Offload { which } => {
                let (path, _) = self.held.keys().nth(which % self.held.len().max(1))?.clone();
                let told = self.told(&path, path.len() - 1, "CPU");
                *self.held.entry((path, Tier::Host)).or_default() += 1;
                let Told::Stored { hashes, block_size, medium, .. } = told else { return None };
                let (parent, tokens, adapter, keys) = (None, Vec::new(), None, Vec::new());
                Some(Told::Stored { hashes, parent, tokens, block_size, adapter, medium, keys })
            }
            Act::Remove { which } => {
                let key = self.held.keys().nth(which % self.held.len().max(1))?.clone();
                let copies = self.held.get_mut(&key)?;
                *copies -= 1;
                if *copies == 0 {
                    self.held.remove(&key);
                }
                let medium = if key.1 == Tier::Host { "CPU" } else { "GPU" };
                Some(Told::Removed { hashes: vec![hash(&key.0)], medium })
            }
            Act::Clear => {
                self.held.clear();
                Some(Told::Cleared)
            }
        }
    }

    fn has(&self, path: &[u8]) -> bool {
        [Tier::Device, Tier::Host].iter().any(|tier| self.is_in(path, *tier))
    }

    fn is_in(&self, path: &[u8], tier: Tier) -> bool {
        self.held.contains_key(&(path.to_vec(), tier))
    }

    fn store(&mut self, path: &[u8], start: usize, is_host: bool) -> Told {
        let (tier, medium) = if is_host { (Tier::Host, "CPU") } else { (Tier::Device, "GPU") };
        for end in start + 1..=path.len() {
            *self.held.entry((path[..end].to_vec(), tier)).or_default() += 1;
        }
        self.told(path, start, medium)
    }

    fn told(&self, path: &[u8], start: usize, medium: &'static str) -> Told {
        let adapter = (path[0] == 1).then_some("a");
        let keys = (start..path.len()).map(|_| adapter.into_iter().collect()).collect();
        Told::Stored {
            hashes: (start + 1..=path.len()).map(|end| hash(&path[..end])).collect(),
            parent: (start > 1).then(|| hash(&path[..start])),
            tokens: self.tokens(&path[start..]),
            block_size: self.block_size,
            adapter,
            medium,
            keys,
        }
    }

    fn tokens(&self, contents: &[u8]) -> Vec<u32> {
        let block = |content| (0..self.block_size).map(move |at| u32::from(content) * 100 + at);
        contents.iter().copied().flat_map(block).collect()
    }

    /// Returns the router's blocks that the engine has in full.
    pub(super) fn truth(&self, block_size: BlockSize) -> BTreeSet<(Tier, SequenceHash)> {
        let (engine, router) = (self.block_size as usize, block_size.tokens());
        let mut truth = BTreeSet::new();
        for (path, tier) in self.held.keys() {
            let adapter = if path[0] == 1 { "a".to_owned() } else { String::new() };
            let namespace = CacheNamespace { adapter, ..CacheNamespace::model("m") };
            let blocks = PromptBlocks::new(&namespace, block_size, &self.tokens(&path[1..]));
            let end = (path.len() - 1) * engine;
            for (place, hash) in blocks.sequence().iter().enumerate() {
                let of = place * router..(place + 1) * router;
                let ends_here = of.end > end - engine;
                let mut over = of.start / engine + 1..=of.end.div_ceil(engine);
                if ends_here && over.all(|blocks| self.is_in(&path[..=blocks], *tier)) {
                    truth.insert((*tier, *hash));
                }
            }
        }
        truth
    }
}

/// Returns a name for a block, which says nothing of how the router hashes.
fn hash(path: &[u8]) -> EngineHash {
    EngineHash(path.iter().fold(1, |hash, part| hash * 5 + u64::from(*part)))
}

/// What one worker is known to have, from the events alone.
#[derive(Debug, Default)]
pub(super) struct Fold {
    pub(super) known: BTreeSet<(Tier, SequenceHash)>,
    last: Option<(u64, u64)>,
}

impl Fold {
    pub(super) fn take(&mut self, worker: WorkerId, event: &KvEvent) {
        assert_eq!(event.worker, worker);
        let expected = match self.last {
            Some((epoch, seq)) if epoch == event.epoch => seq + 1,
            last => {
                assert!(last.is_none_or(|(epoch, _)| epoch < event.epoch), "epochs grow");
                0
            }
        };
        assert_eq!(event.seq, expected, "numbers have no hole");
        self.last = Some((event.epoch, event.seq));
        match &event.change {
            KvChange::BlockStored { parent, blocks, tier } => {
                let mut parent = *parent;
                for block in blocks {
                    assert_eq!(SequenceHash::chain(parent, block.local), block.sequence);
                    assert!(self.known.insert((*tier, block.sequence)), "stored once");
                    parent = Some(block.sequence);
                }
            }
            KvChange::BlockRemoved { sequence_hashes, tier } => {
                for hash in sequence_hashes {
                    assert!(self.known.remove(&(*tier, *hash)), "removed once");
                }
            }
            KvChange::AllBlocksCleared => self.known.clear(),
            other => panic!("{other:?}"),
        }
    }
}
