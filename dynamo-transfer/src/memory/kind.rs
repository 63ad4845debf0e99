use crate::vocabulary::BackendKind;

/// What registered memory is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MemoryKind {
    /// Memory of the process.
    #[default]
    Host,
    /// Memory of the process that a device reaches by itself: a
    /// [`PinnedBuffer`](crate::device::PinnedBuffer).
    Pinned,
    /// Memory of the device of that number.
    Device(u32),
    /// A file.
    File,
}

impl MemoryKind {
    /// Tells whether the process itself can touch it.
    pub(crate) fn is_host(self) -> bool {
        matches!(self, Self::Host | Self::Pinned)
    }

    /// Returns whose engine moves it, if the process itself cannot.
    pub(crate) fn engine(self) -> Option<BackendKind> {
        match self {
            Self::Host | Self::Pinned => None,
            Self::Device(_) => Some(BackendKind::Device),
            Self::File => Some(BackendKind::File),
        }
    }
}
