use std::fmt;
use std::io;
use std::path::PathBuf;

use dynamo_transfer::{Error, ErrorKind};

/// Why a directory cannot be opened, or the tier cannot do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The config describes no tier.
    #[error("a disk tier of {blocks} blocks of {block_bytes} bytes, {in_flight} in flight")]
    Config {
        /// How many blocks.
        blocks: u32,
        /// Their size in bytes.
        block_bytes: usize,
        /// How many are moved at once.
        in_flight: usize,
    },
    /// Another tier, of this process or another one, has the directory open.
    #[error("{} is open in another disk tier", dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory was made for something else; see
    /// [`OnForeign`](super::OnForeign).
    #[error("{} {foreign}", dir.display())]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// How it differs.
        foreign: Foreign,
    },
    /// The filesystem, a quota or a limit is full.
    #[error("no room for the files of a disk tier")]
    StorageFull(#[source] Error),
    /// A file of the directory cannot be used.
    #[error("a file of a disk tier")]
    File(#[source] Error),
    /// The directory cannot be used.
    #[error("{doing} {}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The directory, or a file in it.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// What is under way has not ended in time.
    #[error("what a disk tier has under way has not ended")]
    Busy,
    /// The tier has shut down.
    #[error("the disk tier has shut down")]
    Closed,
}

impl From<Error> for DiskError {
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::StorageFull => Self::StorageFull(error),
            ErrorKind::Closed => Self::Closed,
            ErrorKind::DeadlineExceeded => Self::Busy,
            _ => Self::File(error),
        }
    }
}

/// How a directory differs from what the config describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Foreign {
    /// Its manifest begins with something else, or is too short, or its superblock is damaged.
    Unknown,
    /// It was written in another version of the format.
    Version(u32),
    /// Its blocks are of another model or layout.
    Fingerprint(u64),
    /// Its slots are of another number or size.
    Geometry {
        /// How many.
        blocks: u64,
        /// The size of a block in bytes.
        block_bytes: u64,
    },
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("has no manifest of a disk tier, or a damaged one"),
            Self::Version(found) => write!(f, "is of version {found} of the format"),
            Self::Fingerprint(found) => write!(f, "holds blocks of fingerprint {found:016x}"),
            Self::Geometry { blocks, block_bytes } => {
                write!(f, "holds {blocks} blocks of {block_bytes} bytes")
            }
        }
    }
}

/// Why a block was not stored: it cannot be found, and its slot is free.
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
    /// Every slot is being read or written.
    #[error("every slot is being read or written")]
    Busy,
    /// The block was removed, or the tier cleared, while it was stored.
    #[error("the block was removed while it was stored")]
    Removed,
    /// The filesystem is full.
    #[error("no room for a block")]
    StorageFull(#[source] Error),
    /// The block or its record cannot be written.
    #[error("storing a block")]
    Io(#[source] Error),
    /// The tier has shut down.
    #[error("the disk tier has shut down")]
    Closed,
}

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::StorageFull => Self::StorageFull(error),
            ErrorKind::Closed => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

/// A block that was not loaded; the target's bytes mean nothing.
pub struct Miss<B> {
    /// Why.
    pub reason: MissReason,
    /// The memory that was to be filled; `None` if the kernel may still write to it.
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
    Io(#[source] Error),
    /// The target is not of the tier's size.
    #[error("a target of {found} bytes in a tier of blocks of {expected}")]
    Length {
        /// The tier's.
        expected: usize,
        /// The target's.
        found: usize,
    },
    /// The tier has shut down.
    #[error("the disk tier has shut down")]
    Closed,
}

/// What is wrong with a stored block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Damage {
    /// Its bytes do not have the digest in its record: torn, flipped, overwritten or never written.
    Digest,
    /// The file ends before the block does.
    Truncated,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Digest => "its bytes do not have its digest",
            Self::Truncated => "its file is truncated",
        })
    }
}
