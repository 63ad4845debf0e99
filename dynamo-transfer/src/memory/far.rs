use super::span::Span;
use super::{MemoryKind, Right};
use crate::backend::cuda::{DeviceId, DeviceMemory};
#[cfg(unix)]
use crate::backend::file::FileMemory;
use crate::error::Result;

/// Memory that only an engine reaches: it moves bytes between there and the host's.
pub(crate) enum Far {
    #[cfg(unix)]
    File(FileMemory),
    Device(DeviceMemory),
}

/// Keeps what an engine touches alive, until it has ended.
pub(crate) type Keep = Box<dyn Send>;

/// A place in far memory, and the host memory that its bytes come from or go to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) span: Span,
}

impl Far {
    pub(crate) fn len(&self) -> u64 {
        match self {
            #[cfg(unix)]
            Self::File(file) => file.len(),
            Self::Device(device) => device.len(),
        }
    }

    pub(crate) fn kind(&self) -> MemoryKind {
        match self {
            #[cfg(unix)]
            Self::File(_) => MemoryKind::File,
            Self::Device(device) => MemoryKind::Device(device.ordinal()),
        }
    }

    /// Returns it if it is of a device, which is at its best with pinned memory.
    pub(crate) fn device(&self) -> Option<&DeviceMemory> {
        match self {
            #[cfg(unix)]
            Self::File(_) => None,
            Self::Device(device) => Some(device),
        }
    }

    /// Fills pieces of the host's memory from here, or writes them here.
    ///
    /// `pinned` is the device that reaches the pieces by itself, if one does. `keep` keeps this and the
    /// pieces alive; it is dropped when nothing touches them any more, which may be long after this
    /// future was.
    pub(crate) async fn pass(
        &self,
        right: Right,
        pieces: Vec<Piece>,
        pinned: Option<DeviceId>,
        keep: Keep,
    ) -> Result<()> {
        match self {
            #[cfg(unix)]
            Self::File(file) => file.pass(right, pieces, keep).await,
            Self::Device(device) => device.pass(right, &pieces, pinned, keep).await,
        }
    }
}
