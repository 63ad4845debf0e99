//! The one error of this crate: a kind to branch on, a message that names the thing, a source.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

/// The result of a fallible operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can branch on; this is also what travels between processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The named thing does not exist.
    NotFound,
    /// The named thing exists already, or changed under the caller.
    Conflict,
    /// Nobody can serve the request right now; another instance or a later try may.
    Unavailable,
    /// There is no room, here or at the server.
    Overloaded,
    /// The deadline passed first.
    DeadlineExceeded,
    /// The request was cancelled by its owner.
    Cancelled,
    /// The other side has shut down.
    Closed,
    /// The caller passed something that can never work.
    InvalidArgument,
    /// Bytes or a message broke the protocol.
    Protocol,
    /// A bug or a panic in the code that served the request.
    Internal,
}

impl ErrorKind {
    /// All kinds; the order is that of the codes on the wire.
    pub(crate) const ALL: [Self; 10] = [
        Self::NotFound,
        Self::Conflict,
        Self::Unavailable,
        Self::Overloaded,
        Self::DeadlineExceeded,
        Self::Cancelled,
        Self::Closed,
        Self::InvalidArgument,
        Self::Protocol,
        Self::Internal,
    ];

    /// Returns the place of the kind in [`ALL`](Self::ALL).
    pub(crate) const fn index(self) -> usize {
        self as usize
    }

    /// Returns the stable lower-case name used in metrics and on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Unavailable => "unavailable",
            Self::Overloaded => "overloaded",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Cancelled => "cancelled",
            Self::Closed => "closed",
            Self::InvalidArgument => "invalid_argument",
            Self::Protocol => "protocol",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failure with its [`ErrorKind`], what it concerns, and what caused it.
///
/// The message is lower case, names the thing (`instance 7f3 of demo/llm/generate`) and has no
/// full stop, so that it reads well at the end of a chain.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    unprocessed: bool,
    retry_after: Option<Duration>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// Creates an error of `kind` whose message names the thing concerned.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let message = message.into();
        let (unprocessed, retry_after, source) = (false, None, None);
        Self(Box::new(Inner { kind, message, unprocessed, retry_after, source }))
    }

    /// Creates an [`ErrorKind::InvalidArgument`] error.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    /// Creates an [`ErrorKind::Internal`] error.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// Creates an [`ErrorKind::Internal`] error of what panicked, and logs it.
    pub(crate) fn panicked(what: &str, payload: &(dyn Any + Send)) -> Self {
        let text = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        tracing::error!(panic = text, "{what} panicked");
        Self::internal(format!("{what} panicked: {text}"))
    }

    /// Attaches what caused this error.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Marks that the peer provably did not start the request, so that a retry cannot run it twice.
    #[must_use]
    pub fn unprocessed(mut self) -> Self {
        self.0.unprocessed = true;
        self
    }

    /// Says when there may be room again.
    #[must_use]
    pub fn with_retry_after(mut self, retry_after: Duration) -> Self {
        self.0.retry_after = Some(retry_after);
        self
    }

    /// Returns what kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns the message without the chain of sources.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Tells whether sending the same request to another instance is safe: no one started it.
    pub fn is_retryable(&self) -> bool {
        self.0.unprocessed
    }

    /// Returns when whoever refused may have room again, if it said so.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("message", &self.0.message)
            .field("source", &self.0.source)
            .finish()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.kind, self.0.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_its_kind_its_message_and_its_source() {
        let error = Error::new(ErrorKind::NotFound, "instance 7f3 of demo/llm/generate")
            .with_source(std::io::Error::other("socket closed"));
        assert_eq!(error.to_string(), "not_found: instance 7f3 of demo/llm/generate");
        assert_eq!(error.source().map(ToString::to_string).as_deref(), Some("socket closed"));
        assert!(!error.is_retryable());
        assert!(error.unprocessed().is_retryable());
    }

    #[test]
    fn every_kind_has_its_place() {
        for (index, kind) in ErrorKind::ALL.into_iter().enumerate() {
            assert_eq!(kind.index(), index, "{kind}");
        }
    }

    #[test]
    fn overload_is_retryable_only_where_nothing_was_started() {
        let overloaded = Error::new(ErrorKind::Overloaded, "KV blocks in mid-stream");
        assert!(!overloaded.is_retryable());
    }
}
