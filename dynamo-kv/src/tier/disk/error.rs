use std::fmt;
use std::io;
use std::path::PathBuf;

use dynamo_core::ErrorKind as Kind;
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
    /// Its manifest begins with something else, or is too short, or both its superblocks are damaged.
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

impl From<DiskError> for dynamo_core::Error {
    fn from(error: DiskError) -> Self {
        let kind = match error {
            DiskError::Config { .. } => Kind::InvalidArgument,
            DiskError::Locked { .. } | DiskError::Foreign { .. } => Kind::Conflict,
            DiskError::StorageFull(_) => Kind::Overloaded,
            DiskError::File(_) | DiskError::Io { .. } => Kind::Unavailable,
            DiskError::Busy => Kind::DeadlineExceeded,
            DiskError::Closed => Kind::Closed,
        };
        Self::new(kind, "disk tier").with_source(error)
    }
}
