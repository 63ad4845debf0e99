use std::error::Error;
use std::fmt;

use dynamo_transfer::ErrorKind;

/// Why a block was not stored: it cannot be found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The block is not of the tier's size.
    #[error("a block of {found} bytes in a tier of blocks of {expected}")]
    Length {
        /// The tier's.
        expected: usize,
        /// The block's.
        found: usize,
    },
    /// Every place for a block is being read or written.
    #[error("every place for a block is being read or written")]
    Busy,
    /// The block was removed, or the tier cleared, while it was stored.
    #[error("the block was removed while it was stored")]
    Removed,
    /// The filesystem, a quota or a limit is full.
    #[error("no room for a block")]
    StorageFull(#[source] Box<dyn Error + Send + Sync>),
    /// The block, or what is kept beside it, cannot be written.
    #[error("storing a block")]
    Io(#[source] Box<dyn Error + Send + Sync>),
    /// The tier has shut down.
    #[error("the tier has shut down")]
    Closed,
}

impl From<dynamo_transfer::Error> for StoreError {
    fn from(error: dynamo_transfer::Error) -> Self {
        match error.kind() {
            ErrorKind::StorageFull => Self::StorageFull(Box::new(error)),
            ErrorKind::Closed => Self::Closed,
            _ => Self::Io(Box::new(error)),
        }
    }
}

/// A block that was not loaded; the target's bytes mean nothing.
pub struct Miss<B> {
    /// Why.
    pub reason: MissReason,
    /// The memory that was to be filled; `None` if something may still write to it.
    pub target: Option<B>,
}

impl<B> fmt::Debug for Miss<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Miss").field("reason", &self.reason).finish_non_exhaustive()
    }
}

/// Why a block was not loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MissReason {
    /// It is not there.
    #[error("the block is not there")]
    Absent,
    /// Its bytes are not those that were stored; the block is removed.
    #[error("the block is damaged: {0}")]
    Damaged(Damage),
    /// Its bytes cannot be read; the block is removed if the device failed.
    #[error("reading a block")]
    Io(#[source] Box<dyn Error + Send + Sync>),
    /// The target is not of the tier's size.
    #[error("a target of {found} bytes in a tier of blocks of {expected}")]
    Length {
        /// The tier's.
        expected: usize,
        /// The target's.
        found: usize,
    },
    /// The tier has shut down.
    #[error("the tier has shut down")]
    Closed,
}

/// What is wrong with a stored block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Damage {
    /// Its bytes do not have the digest in its record: torn, flipped, overwritten or never written.
    Digest,
    /// What holds it ends before the block does.
    Truncated,
    /// What is in its place is another block, or none.
    Foreign,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Digest => "its bytes do not have its digest",
            Self::Truncated => "it is truncated",
            Self::Foreign => "something else is in its place",
        })
    }
}
