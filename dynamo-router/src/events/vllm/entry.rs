//! What is remembered of one block of an engine; pure.

use std::collections::BTreeSet;
use std::slice;
use std::sync::Arc;

use dynamo_core::protocol::{
    BlockHasher, CacheNamespace, SequenceHash, StoredBlock, Tier, TokenId,
};

use super::batch::EngineHash;

/// One block of the engine.
#[derive(Debug)]
pub(super) struct Entry {
    /// How many copies each tier has: an engine may compute the same block twice at a time, and
    /// tells of either one's end.
    pub(super) copies: [u8; TIERS],
    /// The router's blocks that end in this one.
    pub(super) made: Made,
    /// The router's block before those, or before the one that this is a part of.
    pub(super) before: Option<SequenceHash>,
    pub(super) namespace: Arc<CacheNamespace>,
    /// Its place on the path to a router's block, where it is only a part of one.
    pub(super) part: Option<Box<Part>>,
}

#[derive(Debug)]
pub(super) enum Made {
    None,
    One(StoredBlock),
    Many(Box<[StoredBlock]>),
}

#[derive(Debug, Default)]
pub(super) struct Part {
    /// The part before it, unless it is the first one.
    pub(super) parent: Option<EngineHash>,
    /// The parts after it.
    pub(super) children: BTreeSet<EngineHash>,
    /// All tokens since the last router's block, unless this one ends the next.
    pub(super) tokens: Vec<TokenId>,
}

impl Entry {
    pub(super) fn is_in(&self, tier: Tier) -> bool {
        self.copies[tier as usize] > 0
    }

    pub(super) fn parent(&self) -> Option<EngineHash> {
        self.part.as_ref().and_then(|part| part.parent)
    }

    pub(super) fn children(&self) -> impl Iterator<Item = EngineHash> + '_ {
        self.part.iter().flat_map(|part| part.children.iter().copied())
    }

    /// Returns the last router's block up to the end of this one, and the tokens behind it.
    pub(super) fn end(&self) -> (Option<SequenceHash>, &[TokenId]) {
        match self.made.blocks().last() {
            Some(last) => (Some(last.sequence), &[]),
            None => (self.before, self.part.as_ref().map_or(&[], |part| &part.tokens)),
        }
    }
}

impl Made {
    pub(super) fn blocks(&self) -> &[StoredBlock] {
        match self {
            Self::None => &[],
            Self::One(block) => slice::from_ref(block),
            Self::Many(blocks) => blocks,
        }
    }
}

/// Hashes `tokens` in blocks of `size` behind `before`.
pub(super) fn made(
    tokens: &[TokenId],
    size: usize,
    mut before: Option<SequenceHash>,
    namespace: &Arc<CacheNamespace>,
    hasher: &mut Option<(Arc<CacheNamespace>, BlockHasher)>,
) -> Made {
    if tokens.is_empty() {
        return Made::None;
    }
    if hasher.as_ref().is_none_or(|(of, _)| !Arc::ptr_eq(of, namespace)) {
        *hasher = Some((namespace.clone(), BlockHasher::new(namespace)));
    }
    let Some((_, hasher)) = hasher else { return Made::None };
    let mut blocks = tokens.chunks_exact(size).map(|tokens| {
        let local = hasher.local(tokens);
        let sequence = SequenceHash::chain(before, local);
        before = Some(sequence);
        StoredBlock { sequence, local }
    });
    match blocks.len() {
        1 => blocks.next().map_or(Made::None, Made::One),
        _ => Made::Many(blocks.collect()),
    }
}

/// Tiers that blocks may be in.
pub(super) const TIERS: usize = Tier::ALL.len();
