//! Words that all rooms share.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};

/// Names a backend in reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BackendKind {
    /// A copy inside the process.
    Memcpy,
    /// A copy between processes of one host.
    Shm,
    /// UCX.
    Ucx,
    /// Connections to the owner.
    Tcp,
    /// The engine of files.
    File,
    /// The engine of a device.
    Device,
}

impl BackendKind {
    /// All there are.
    pub const ALL: [Self; 6] =
        [Self::Memcpy, Self::Shm, Self::Ucx, Self::Tcp, Self::File, Self::Device];
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memcpy => "memcpy",
            Self::Shm => "shm",
            Self::Ucx => "ucx",
            Self::Tcp => "tcp",
            Self::File => "file",
            Self::Device => "device",
        })
    }
}

/// Fails with [`InvalidArgument`](ErrorKind::InvalidArgument) on what is no name of a backend.
impl FromStr for BackendKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.to_string() == name).ok_or_else(|| {
            Error::new(ErrorKind::InvalidArgument, format!("`{name}` is no backend"))
        })
    }
}

/// What goes first where transfers share a way; those of one priority take turns, and copies within the
/// host, once begun, are not interrupted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Priority {
    /// What nobody waits for, such as offloading.
    Low,
    /// The usual.
    #[default]
    Normal,
    /// What a token waits for.
    High,
}

/// The longest name of an agent.
pub(crate) const NAME_BYTES_MAX: usize = 255;

/// The largest notification: a message, not a transfer.
pub(crate) const NOTIFICATION_BYTES_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_found_by_its_name_and_a_name_of_none_is_refused() {
        for kind in BackendKind::ALL {
            assert_eq!(kind.to_string().parse::<BackendKind>().unwrap(), kind);
        }
        let error = "pigeon".parse::<BackendKind>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.message().contains("pigeon"), "{error}");
    }
}
