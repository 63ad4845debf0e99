use std::error::Error as StdError;
use std::fmt;

/// The result of a fallible operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller passed something that can never work.
    InvalidArgument,
    /// A range lies outside its region.
    OutOfBounds,
    /// The region was revoked, or its owner restarted.
    StaleRegion,
    /// The region does not grant this right, or the token is wrong.
    PermissionDenied,
    /// No backend reaches the peer.
    BackendUnavailable,
    /// The peer cannot be connected to.
    Unreachable,
    /// The connection to the peer broke, or the peer has shut down or given up.
    Disconnected,
    /// The deadline passed first.
    DeadlineExceeded,
    /// The peer or this agent is at a limit, or the peer does not read its notifications.
    Overloaded,
    /// Bytes of a peer broke the protocol.
    Protocol,
    /// Bytes arrived otherwise than they were sent.
    Corrupted,
    /// A file does not exist, or was deleted meanwhile.
    NotFound,
    /// A file cannot grow: the filesystem, a quota or a limit is full.
    StorageFull,
    /// A file cannot be read or written there: the device failed, or the file is shorter.
    Io,
    /// The transfer was cancelled or dropped on this side.
    Cancelled,
    /// This agent has shut down; a peer that has is [`Disconnected`](Self::Disconnected).
    Closed,
    /// A bug in this crate.
    Internal,
}

/// What a failed write has left in the peer's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RemoteMemory {
    /// Nothing was written: no byte was sent, or the owner has refused before it took one.
    Untouched,
    /// Some of the ranges, or all, may have been written, and nothing is on its way any more.
    Partial,
    /// Some may have been written, and more may still arrive until the peer has noticed.
    Unknown,
}

/// A failure with its kind, what it concerns, and the peer it came from.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    peer: Option<String>,
    remote_memory: RemoteMemory,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let remote_memory = RemoteMemory::Untouched;
        Self { kind, message: message.into(), peer: None, remote_memory, source: None }
    }

    /// Says that the transfer was given up by whoever posted it.
    pub(crate) fn cancelled() -> Self {
        Self::new(ErrorKind::Cancelled, "transfer was cancelled")
    }

    /// Says that this agent has ended.
    pub(crate) fn shut_down() -> Self {
        Self::new(ErrorKind::Closed, "agent has shut down")
    }

    pub(crate) fn with_peer(mut self, peer: &str) -> Self {
        self.peer.get_or_insert_with(|| peer.to_owned());
        self
    }

    pub(crate) fn with_remote_memory(mut self, remote_memory: RemoteMemory) -> Self {
        self.remote_memory = remote_memory;
        self
    }

    /// Names the region of a range.
    pub(crate) fn in_region(mut self, id: u64) -> Self {
        self.message = format!("region {id}: {}", self.message);
        self
    }

    pub(crate) fn with_source(
        mut self,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Returns what kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns the message without kind, peer and sources.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns the name of the peer concerned.
    pub fn peer(&self) -> Option<&str> {
        self.peer.as_deref()
    }

    /// Returns what a failed write has left in the peer's memory.
    pub fn remote_memory(&self) -> RemoteMemory {
        self.remote_memory
    }

    /// Tells whether the same operation may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::Unreachable
                | ErrorKind::Disconnected
                | ErrorKind::DeadlineExceeded
                | ErrorKind::Overloaded
                | ErrorKind::Corrupted
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.peer.iter().try_for_each(|peer| write!(f, " (peer {peer})"))
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}
