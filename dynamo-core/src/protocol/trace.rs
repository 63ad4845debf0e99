use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::str::FromStr;

use crate::error::{Error, Result};

/// Where a request stands in a distributed trace: W3C Trace Context, level 1, `traceparent`.
///
/// # Examples
/// ```
/// use dynamo_core::protocol::TraceContext;
///
/// let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// let trace: TraceContext = text.parse()?;
/// assert!(trace.is_sampled());
/// assert_eq!(trace.to_string(), text);
/// assert_eq!(trace.child().trace_id(), trace.trace_id());
/// # Ok::<(), dynamo_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: u128,
    span_id: u64,
    flags: u8,
}

impl TraceContext {
    /// Creates a context; `None` if one of the ids is zero, which the standard forbids.
    pub const fn new(trace_id: u128, span_id: u64, flags: u8) -> Option<Self> {
        if trace_id == 0 || span_id == 0 {
            return None;
        }
        Some(Self { trace_id, span_id, flags })
    }

    /// Starts a trace of its own, sampled.
    pub fn random() -> Self {
        let trace_id = u128::from(random_id()) << 64 | u128::from(random_id());
        Self { trace_id, span_id: random_id(), flags: SAMPLED }
    }

    /// Returns the context of a new span below this one.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { span_id: random_id(), ..*self }
    }

    /// Notes the ids in the fields `trace` and `span` of a tracing span, if anyone listens.
    pub(crate) fn record(&self, span: &tracing::Span) {
        if !span.is_disabled() {
            span.record("trace", tracing::field::display(format_args!("{:032x}", self.trace_id)));
            span.record("span", tracing::field::display(format_args!("{:016x}", self.span_id)));
        }
    }

    /// Returns the id that all spans of the trace share.
    pub const fn trace_id(&self) -> u128 {
        self.trace_id
    }

    /// Returns the id of the span.
    pub const fn span_id(&self) -> u64 {
        self.span_id
    }

    /// Returns the flags byte of the standard.
    pub const fn flags(&self) -> u8 {
        self.flags
    }

    /// Tells whether whoever started the trace records it.
    pub const fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }
}

/// Unique, not secret, and never zero.
fn random_id() -> u64 {
    RandomState::new().build_hasher().finish().max(1)
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

impl FromStr for TraceContext {
    type Err = Error;

    /// Reads a `traceparent` value; one of a later version is read as far as version 0 goes.
    ///
    /// Fails with [`InvalidArgument`](crate::ErrorKind::InvalidArgument) on anything else.
    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::invalid(format!("{:?} is no traceparent", head(text)));
        let mut parts = text.split('-');
        let mut part = |digits: usize| {
            let part = parts.next().filter(|part| part.len() == digits)?;
            let is_hex = |c: char| matches!(c, '0'..='9' | 'a'..='f');
            part.chars().all(is_hex).then_some(part)
        };
        let (Some(version), Some(trace), Some(span), Some(flags)) =
            (part(2), part(32), part(16), part(2))
        else {
            return Err(bad());
        };
        let is_longer = parts.next().is_some();
        if version == "ff" || (version == "00" && is_longer) {
            return Err(bad());
        }
        let trace_id = u128::from_str_radix(trace, 16).map_err(|_| bad())?;
        let span_id = u64::from_str_radix(span, 16).map_err(|_| bad())?;
        let flags = u8::from_str_radix(flags, 16).map_err(|_| bad())?;
        Self::new(trace_id, span_id, flags).ok_or_else(bad)
    }
}

/// Returns as much of a stranger's text as an error message should hold.
fn head(text: &str) -> String {
    text.chars().take(64).collect()
}

const SAMPLED: u8 = 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_traceparent_is_refused() {
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert!(bad.parse::<TraceContext>().is_err(), "{bad}");
        }
        let later = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-more";
        assert!(!later.parse::<TraceContext>().unwrap().is_sampled());
    }

    #[test]
    fn traces_and_spans_differ() {
        let (one, other) = (TraceContext::random(), TraceContext::random());
        assert_ne!(one.trace_id(), other.trace_id());
        assert_ne!(one.span_id(), one.child().span_id());
        assert_eq!(one.to_string().parse::<TraceContext>().unwrap(), one);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,80}") {
            let _ = text.parse::<TraceContext>();
        }
    }
}
