//! What failures are told as: in words that blame neither the request nor its client.

use std::error::Error as StdError;
use std::fmt;

use dynamo_core::{Context, Error, ErrorKind};

/// How much of an answer its reader had when it failed: the source of the error that says so.
///
/// The error keeps the kind of what failed, which is its source in turn.
#[derive(Debug)]
#[non_exhaustive]
pub struct Interrupted {
    /// Tokens that were delivered: all of them belong to the answer, in order.
    pub tokens: usize,
    cause: Error,
}

impl Interrupted {
    /// Returns how much of the answer was delivered before `error`, if it began at all.
    pub fn of(error: &Error) -> Option<&Self> {
        error.source()?.downcast_ref()
    }

    /// Says that `cause` ended an answer of which `tokens` were delivered. It is not retryable:
    /// the part that was delivered would come twice.
    pub(super) fn error(tokens: usize, cause: Error) -> Error {
        let message = format!("answer interrupted after {tokens} tokens");
        let error = Error::new(cause.kind(), message);
        let error = match cause.retry_after() {
            Some(retry_after) => error.with_retry_after(retry_after),
            None => error,
        };
        error.with_source(Self { tokens, cause })
    }
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens were delivered, then: {}", self.tokens, self.cause)
    }
}

impl StdError for Interrupted {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.cause)
    }
}

/// Tells whether a request failed because an early end was asked for before it was its turn.
pub(super) fn was_stopped(ctx: &Context, error: &Error) -> bool {
    ctx.check().is_ok() && ctx.is_stopped() && error.kind() == ErrorKind::Cancelled
}

/// Says what no worker could begin: the workers' own ends and times are not the request's.
pub(super) fn of_the_start(ctx: &Context, error: Error) -> Error {
    if let Err(over) = ctx.check() {
        return over;
    }
    match error.kind() {
        ErrorKind::Cancelled | ErrorKind::DeadlineExceeded | ErrorKind::Closed => {
            Error::new(ErrorKind::Unavailable, "worker gave up").with_source(error)
        }
        _ => error,
    }
}

/// Says what ended an answer that had begun: the request was good enough for a worker, and the
/// ticket is the graph's own.
///
/// What is left of the answer was started by nobody who could not find room, so that it may be
/// asked for again.
pub(super) fn of_the_rest(ctx: &Context, error: Error) -> Error {
    let error = of_the_start(ctx, error);
    let kind = match error.kind() {
        ErrorKind::Overloaded => return error.unprocessed(),
        ErrorKind::NotFound | ErrorKind::Conflict => ErrorKind::Unavailable,
        ErrorKind::InvalidArgument | ErrorKind::Protocol => ErrorKind::Internal,
        _ => return error,
    };
    Error::new(kind, "hand-off to a decode worker").with_source(error)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_interrupted_answer_says_how_much_there_was_and_why_it_ended() {
        let cause = Error::new(ErrorKind::Overloaded, "no blocks").unprocessed();
        let cause = cause.with_retry_after(Duration::from_secs(1));
        let error = Interrupted::error(7, cause);
        assert_eq!(error.kind(), ErrorKind::Overloaded);
        assert_eq!(error.retry_after(), Some(Duration::from_secs(1)));
        assert!(!error.is_retryable());
        let interrupted = Interrupted::of(&error).unwrap();
        assert_eq!(interrupted.tokens, 7);
        assert!(interrupted.to_string().contains("no blocks"), "{interrupted}");
        assert!(Interrupted::of(&Error::internal("boom")).is_none());
    }

    #[test]
    fn a_hand_off_blames_neither_the_request_nor_its_client() {
        use ErrorKind::*;
        let ctx = Context::new();
        for (said, told) in [
            (NotFound, Unavailable),
            (Conflict, Unavailable),
            (Closed, Unavailable),
            (Cancelled, Unavailable),
            (DeadlineExceeded, Unavailable),
            (InvalidArgument, Internal),
            (Protocol, Internal),
            (Internal, Internal),
            (Overloaded, Overloaded),
        ] {
            assert_eq!(of_the_rest(&ctx, Error::new(said, "pull")).kind(), told, "{said}");
        }
        assert_eq!(of_the_start(&ctx, Error::invalid("too long")).kind(), InvalidArgument);
        ctx.kill();
        assert_eq!(of_the_rest(&ctx, Error::internal("boom")).kind(), Cancelled);
    }
}
