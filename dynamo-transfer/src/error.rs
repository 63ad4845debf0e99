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
    /// The connection to the peer broke.
    Disconnected,
    /// The deadline passed first.
    DeadlineExceeded,
    /// The peer, or this agent, is at a limit.
    Overloaded,
    /// Bytes of a peer broke the protocol.
    Protocol,
    /// A file does not exist, or was deleted meanwhile.
    NotFound,
    /// A file cannot grow: the filesystem, a quota or a limit is full.
    StorageFull,
    /// A file cannot be read or written there: the device failed, or the file is shorter.
    Io,
    /// This agent has shut down.
    Closed,
    /// A bug in this crate.
    Internal,
}

/// A failure with its kind, what it concerns, and the peer it came from.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    peer: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), peer: None, source: None }
    }

    pub(crate) fn with_peer(mut self, peer: &str) -> Self {
        self.peer.get_or_insert_with(|| peer.to_owned());
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

    /// Tells whether the same operation may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::Unreachable
                | ErrorKind::Disconnected
                | ErrorKind::DeadlineExceeded
                | ErrorKind::Overloaded
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
