//! What can be wrong with what a publisher says, and how often it was.

use std::error::Error;
use std::fmt;

use dynamo_core::protocol::BlockSize;

use super::batch::EngineHash;
use super::pack::Malformed;

/// Something that was not taken into the index, and why.
///
/// Nothing of it is fatal: the index says less of the worker until the next good event.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// A message is not a batch of events; what was known of the publisher is forgotten.
    Malformed {
        /// The number of the message, where it has one.
        number: Option<u64>,
        /// What is wrong with it.
        wrong: Malformed,
    },
    /// Messages are missing that nobody has any more; what was known is forgotten.
    Gap {
        /// The number of the message that should have come.
        expected: u64,
        /// The number of the message that came.
        found: u64,
    },
    /// Neither block size is a multiple of the other: nothing of this engine can be placed.
    BlockSizeMismatch {
        /// Tokens per block of the engine.
        engine: BlockSize,
        /// Tokens per block of the router.
        router: BlockSize,
    },
    /// A run follows a block that is not known.
    UnknownParent {
        /// That block.
        parent: EngineHash,
    },
    /// Blocks came without tokens, and were not told of before.
    UnknownBlocks {
        /// How many.
        blocks: usize,
    },
    /// A run has other than a block's tokens for each block.
    TokenCount {
        /// Tokens of the run.
        tokens: usize,
        /// Blocks of the run.
        blocks: usize,
        /// Tokens per block.
        block_size: BlockSize,
    },
    /// The engine says to hold more blocks than are remembered.
    TooManyBlocks {
        /// How many are.
        limit: usize,
    },
    /// The publisher speaks for more ranks than are remembered.
    TooManyRanks {
        /// How many are.
        limit: usize,
    },
    /// An event of which nothing is known.
    UnknownEvent {
        /// Its name.
        name: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed { number: Some(number), wrong } => {
                write!(f, "message {number}: {wrong}")
            }
            Self::Malformed { number: None, wrong } => write!(f, "a message: {wrong}"),
            Self::Gap { expected, found } => {
                write!(f, "messages {expected} to {} are lost", found.saturating_sub(1))
            }
            Self::BlockSizeMismatch { engine, router } => {
                write!(f, "blocks of {engine} tokens fit no blocks of {router}")
            }
            Self::UnknownParent { parent } => {
                write!(f, "blocks follow {:016x}, which is not known", parent.0)
            }
            Self::UnknownBlocks { blocks } => {
                write!(f, "{blocks} blocks without tokens are not known")
            }
            Self::TokenCount { tokens, blocks, block_size } => {
                write!(f, "{tokens} tokens for {blocks} blocks of {block_size}")
            }
            Self::TooManyBlocks { limit } => write!(f, "more than {limit} blocks"),
            Self::TooManyRanks { limit } => write!(f, "more than {limit} ranks"),
            Self::UnknownEvent { name } => write!(f, "event {name:?} is not known"),
        }
    }
}

impl Error for Problem {}

/// What came of a publisher, so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VllmStats {
    /// Connections that a publisher was behind.
    pub connections: u64,
    /// Messages taken in, those of a replay among them.
    pub messages: u64,
    /// Events in them.
    pub events: u64,
    /// Blocks of the router that were told to be stored, once per tier.
    pub blocks_stored: u64,
    /// Blocks of the router that were told to be removed, once per tier.
    pub blocks_removed: u64,
    /// Runs that were skipped because nobody knows what they follow.
    pub unknown_parents: u64,
    /// Blocks that were skipped because they came without tokens and are not known.
    pub unknown_blocks: u64,
    /// Runs that were skipped because of their block size, number of tokens, or a limit.
    pub misfits: u64,
    /// Events of layers that say nothing of a whole prefix, which are left out.
    pub other_groups: u64,
    /// Events of an unknown kind.
    pub unknown_events: u64,
    /// Messages that were none.
    pub decode_errors: u64,
    /// Times that what was known was forgotten because messages may be missing.
    pub gaps: u64,
    /// Times that the publisher was found to have restarted.
    pub restarts: u64,
    /// Messages that had come before, and were left out.
    pub repeats: u64,
    /// Replays asked for.
    pub replays: u64,
    /// Replays that did not come to their end.
    pub failed_replays: u64,
    /// Messages that a replay brought back.
    pub replayed: u64,
    /// The last thing that was wrong.
    pub last_problem: Option<Problem>,
}

impl VllmStats {
    /// Counts a problem of `publisher`; the first of a kind is logged as a warning.
    pub(super) fn note(&mut self, publisher: &str, problem: Problem) {
        let (counter, by) = match &problem {
            Problem::Malformed { .. } => (&mut self.decode_errors, 1),
            Problem::Gap { .. } => (&mut self.gaps, 1),
            Problem::UnknownParent { .. } => (&mut self.unknown_parents, 1),
            Problem::UnknownBlocks { blocks } => (&mut self.unknown_blocks, *blocks as u64),
            Problem::UnknownEvent { .. } => (&mut self.unknown_events, 1),
            Problem::BlockSizeMismatch { .. }
            | Problem::TokenCount { .. }
            | Problem::TooManyBlocks { .. }
            | Problem::TooManyRanks { .. } => (&mut self.misfits, 1),
        };
        if *counter == 0 {
            tracing::warn!(publisher, %problem, "KV events of vLLM");
        } else {
            tracing::debug!(publisher, %problem, "KV events of vLLM");
        }
        *counter += by;
        self.last_problem = Some(problem);
    }
}
