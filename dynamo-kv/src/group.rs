//! Block groups: models whose layers do not all attend to the same tokens.
//!
//! Layers that attend alike are a group, with blocks of their own: of another shape where they keep
//! other vectors (full attention beside latent attention, say), and needed for another while where they
//! look back over a window only. Every group has a [`BlockManager`]; a block of a sequence is one block
//! in each.
//!
//! What can be reused of a prefix is what *all* groups have what they read of: full attention all of its
//! blocks, a window the last few. Blocks of a window therefore stand alone
//! ([`BlockKey::alone`]): those that it has left behind may go while later ones stay. Managers may have
//! tiers below them, each group its own: [`BlockGroups::acquire`] brings up what is needed and no more.
//!
//! ```
//! use dynamo_core::protocol::{BlockSize, CacheNamespace, InstanceId, WorkerId};
//! use dynamo_kv::layout::{BlockLayout, DType, KvShape};
//! use dynamo_kv::{Attention, BlockGroups, BlockManager, ManagerConfig, TokenSequence};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // One layer of each six attends to all tokens, the others to the last 512.
//! let size = BlockSize::DEFAULT;
//! let manager = |layers, blocks| {
//!     let layout = BlockLayout::of(KvShape::new(layers, 1, 8, size, DType::Bf16)?);
//!     let (config, worker) = (ManagerConfig::new(layout, blocks), WorkerId::new(InstanceId(1)));
//!     BlockManager::new(config, worker, Box::new(|_event| {})).map_err(Box::<dyn std::error::Error>::from)
//! };
//! let window = Attention::Window { tokens: 512 };
//! let groups = BlockGroups::new(vec![(Attention::Full, manager(1, 64)?), (window, manager(5, 40)?)])?;
//!
//! let tokens: Vec<u32> = (0..64 * 16).collect();
//! let sequence = TokenSequence::new(&CacheNamespace::model("m"), size, &tokens);
//! let first = groups.allocate(4)?;
//! for (group, blocks) in first.into_iter().enumerate() {
//!     drop(groups.register(group, blocks.into_iter().zip(sequence.keys().iter().copied()).collect()));
//! }
//! assert_eq!(groups.match_prefix(sequence.keys()).blocks(), 4);
//! # Ok(())
//! # }
//! ```

mod acquire;

use std::ops::Range;

use dynamo_core::protocol::BlockSize;
use dynamo_core::{Error, Result};

use crate::block::{BlockRun, MutableBlock, RegisteredBlock};
use crate::identity::BlockKey;
use crate::manager::{AllocateError, BlockManager};

/// Which tokens a token attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Attention {
    /// All before it, and itself.
    Full,
    /// The last so many, itself among them.
    Window {
        /// How many; 1 is itself alone.
        tokens: usize,
    },
}

impl Attention {
    /// Returns which of a prefix's blocks the tokens behind them read.
    pub fn reads(self, blocks: usize, block_size: BlockSize) -> Range<usize> {
        match self {
            Self::Full => 0..blocks,
            Self::Window { tokens } => {
                // The next token itself is not in the prefix.
                let before = tokens.saturating_sub(1).div_ceil(block_size.tokens());
                blocks.saturating_sub(before)..blocks
            }
        }
    }

    /// Returns the name of a block as it is kept here.
    fn key(self, key: BlockKey) -> BlockKey {
        match self {
            Self::Full => key,
            Self::Window { .. } => key.alone(),
        }
    }
}

/// The managers of a model's groups; cheap to clone.
///
/// Each publishes events of its own. A router wants those of one group: of one with full attention, if
/// there is any, since its blocks go last; those of the others say nothing of a prefix.
#[derive(Debug, Clone)]
pub struct BlockGroups {
    groups: Vec<Group>,
    block_size: BlockSize,
}

#[derive(Debug, Clone)]
struct Group {
    attention: Attention,
    manager: BlockManager,
}

/// The longest prefix that every group has what it reads of; kept while this lives.
#[derive(Debug)]
pub struct GroupedPrefix {
    blocks: usize,
    groups: Vec<GroupPrefix>,
}

/// What one group has of a prefix.
#[derive(Debug)]
#[non_exhaustive]
pub struct GroupPrefix {
    /// Which of the prefix's blocks it has: those it reads.
    pub range: Range<usize>,
    /// Those blocks.
    pub blocks: Vec<RegisteredBlock>,
}

/// A group has not enough blocks: nothing was allocated in any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("group {group}")]
pub struct GroupAllocateError {
    /// Which group.
    pub group: usize,
    /// What it lacks.
    pub source: AllocateError,
}

impl BlockGroups {
    /// Takes the managers of the groups.
    ///
    /// Fails with [`InvalidArgument`](dynamo_core::ErrorKind::InvalidArgument) if there is none, if
    /// their blocks hold different numbers of tokens, or for a window of no tokens.
    pub fn new(groups: Vec<(Attention, BlockManager)>) -> Result<Self> {
        let size = |manager: &BlockManager| manager.layout().block_size();
        let first = groups.first().map(|(_, manager)| size(manager));
        let block_size = first.ok_or_else(|| Error::invalid("a model of no block groups"))?;
        for (number, (attention, manager)) in groups.iter().enumerate() {
            let found = size(manager);
            if found != block_size {
                let message =
                    format!("group {number} of {found} tokens per block, group 0 of {block_size}");
                return Err(Error::invalid(message));
            }
            if *attention == (Attention::Window { tokens: 0 }) {
                return Err(Error::invalid(format!("group {number} with a window of 0 tokens")));
            }
        }
        let group = |(attention, manager)| Group { attention, manager };
        Ok(Self { groups: groups.into_iter().map(group).collect(), block_size })
    }

    /// Returns the manager of a group.
    ///
    /// # Panics
    /// If there is no such group.
    pub fn manager(&self, group: usize) -> &BlockManager {
        &self.groups[group].manager
    }

    /// Returns the longest run of `keys`, from the first on, of which every group has what it reads, in
    /// memory.
    pub fn match_prefix(&self, keys: &[BlockKey]) -> GroupedPrefix {
        let mut found: Vec<_> = self.groups.iter().map(|group| Found::new(group, keys)).collect();
        let mut blocks = keys.len();
        loop {
            let before = blocks;
            for (group, found) in self.groups.iter().zip(&mut found) {
                blocks = found.longest(group, &keys[..blocks], self.block_size);
            }
            // Whoever had less has the others look again.
            if blocks == before {
                break;
            }
        }
        self.grouped(blocks, found)
    }

    /// Takes what each group reads of a prefix of which it has that.
    fn grouped(&self, blocks: usize, found: Vec<Found>) -> GroupedPrefix {
        let taken = |(group, found): (&Group, Found)| {
            let range = group.attention.reads(blocks, self.block_size);
            GroupPrefix { blocks: found.take(range.clone()), range }
        };
        GroupedPrefix { blocks, groups: self.groups.iter().zip(found).map(taken).collect() }
    }

    /// Allocates `count` blocks in each group, or none in any; the lists are in the order of the groups.
    ///
    /// Blocks that a group evicted for them before another one failed stay evicted.
    pub fn allocate(
        &self,
        count: usize,
    ) -> std::result::Result<Vec<Vec<MutableBlock>>, GroupAllocateError> {
        let allocate = |(group, of): (usize, &Group)| {
            of.manager.allocate(count).map_err(|source| GroupAllocateError { group, source })
        };
        self.groups.iter().enumerate().map(allocate).collect()
    }

    /// Declares blocks of a group written, and makes them findable and shared, in order.
    ///
    /// # Panics
    /// If there is no such group, or a block is another group's.
    pub fn register(&self, group: usize, blocks: Vec<(MutableBlock, BlockKey)>) -> BlockRun {
        let Group { attention, manager } = &self.groups[group];
        let complete = |(block, key): (MutableBlock, BlockKey)| block.complete(attention.key(key));
        manager.register_all(blocks.into_iter().map(complete).collect())
    }
}

impl GroupedPrefix {
    /// Returns how many blocks need not be computed.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Returns what each group has of them, in the order of the groups.
    pub fn into_groups(self) -> Vec<GroupPrefix> {
        self.groups
    }
}

/// What a group was seen to have, held so that it stays.
enum Found {
    /// Without a gap, from the first block on.
    Prefix(Vec<RegisteredBlock>),
    /// Block by block, as far as they were looked at.
    Each(Vec<Looked>),
}

enum Looked {
    NotYet,
    Missing,
    Held(RegisteredBlock),
}

impl Found {
    fn new(group: &Group, keys: &[BlockKey]) -> Self {
        match group.attention {
            Attention::Full => Self::Prefix(group.manager.match_prefix(keys).into()),
            Attention::Window { .. } => Self::not_yet(keys),
        }
    }

    fn not_yet(keys: &[BlockKey]) -> Self {
        Self::Each(keys.iter().map(|_| Looked::NotYet).collect())
    }

    /// Returns how many blocks, at most all of `keys`, the group has what it reads of.
    fn longest(&mut self, group: &Group, keys: &[BlockKey], block_size: BlockSize) -> usize {
        let each = match self {
            Self::Prefix(blocks) => return blocks.len().min(keys.len()),
            Self::Each(each) => each,
        };
        // From the back: `at..end` is held.
        let (mut end, mut at) = (keys.len(), keys.len());
        while at > group.attention.reads(end, block_size).start {
            at -= 1;
            if !each[at].is_held(&group.manager, &keys[at]) {
                end = at;
            }
        }
        end
    }

    fn take(self, range: Range<usize>) -> Vec<RegisteredBlock> {
        match self {
            Self::Prefix(mut blocks) => {
                blocks.truncate(range.end);
                blocks
            }
            Self::Each(each) => {
                let looked = each.into_iter().skip(range.start).take(range.len());
                let held =
                    |looked| if let Looked::Held(block) = looked { Some(block) } else { None };
                looked.filter_map(held).collect()
            }
        }
    }
}

impl Looked {
    fn is_held(&mut self, manager: &BlockManager, key: &BlockKey) -> bool {
        if matches!(self, Self::NotYet) {
            let found = manager.match_prefix(std::slice::from_ref(key)).into_iter().next();
            *self = found.map_or(Self::Missing, Self::Held);
        }
        matches!(self, Self::Held(_))
    }
}

#[cfg(test)]
mod tests;
