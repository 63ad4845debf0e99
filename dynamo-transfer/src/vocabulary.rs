//! Words that all rooms share.

use std::fmt;

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

/// What goes first where transfers share a way; those of one priority take turns. Copies within the host
/// have their turns in the order they come.
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
