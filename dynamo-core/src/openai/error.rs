//! What a server's refusals are here.

use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{HeaderMap, RETRY_AFTER};
use serde_json::Value;

use crate::error::{Error, ErrorKind};

/// Returns the error that `status` stands for, with the server's message, cut.
///
/// A refusal that is said before any byte of an answer, because there is no room or nobody to serve
/// (429, 503), is [unprocessed](Error::unprocessed): another instance may be asked.
pub(super) fn of_status(what: &str, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Error {
    let retry_after = retry_after(headers);
    let kind = match status.as_u16() {
        404 => ErrorKind::NotFound,
        408 | 502 | 504 => ErrorKind::Unavailable,
        409 => ErrorKind::Conflict,
        429 => ErrorKind::Overloaded,
        503 if retry_after.is_some() => ErrorKind::Overloaded,
        503 => ErrorKind::Unavailable,
        // Also 401 and 403: the key is wrong, and asking again will not make it right.
        400..=499 => ErrorKind::InvalidArgument,
        500..=599 => ErrorKind::Internal,
        _ => ErrorKind::Protocol,
    };
    let said = said(body).map_or_else(String::new, |said| format!(": {said}"));
    let mut error = Error::new(kind, format!("{what} answered {status}{said}"));
    if let Some(retry_after) = retry_after {
        error = error.with_retry_after(retry_after);
    }
    match status.as_u16() {
        429 | 503 => error.unprocessed(),
        _ => error,
    }
}

/// Returns the error that an `error` object in the stream stands for.
///
/// It says nothing of what was not started: tokens may have come before it.
pub(super) fn of_object(what: &str, object: &Value) -> Error {
    let code = object.get("code");
    let code = code.and_then(|code| code.as_u64().or_else(|| code.as_str()?.parse().ok()));
    let kind = match code {
        Some(400 | 422) => ErrorKind::InvalidArgument,
        Some(404) => ErrorKind::NotFound,
        Some(429) => ErrorKind::Overloaded,
        Some(502..=504) => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    };
    let said = message(object).map_or_else(|| "no message".to_owned(), |said| bounded(&said));
    Error::new(kind, format!("{what} failed: {said}"))
}

/// Returns the seconds of `Retry-After`; a date in it, which needs a calendar, is passed over.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

/// Returns what a refusal says: the message of OpenAI's error object, the detail of FastAPI's, or
/// the text.
fn said(body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    let said = match serde_json::from_slice::<Value>(body) {
        Ok(value) => message(value.get("error").unwrap_or(&value)),
        Err(_) => None,
    };
    let said = bounded(said.as_deref().unwrap_or(&text));
    (!said.is_empty()).then_some(said)
}

fn message(object: &Value) -> Option<String> {
    let said = object.get("message").or_else(|| object.get("detail")).unwrap_or(object);
    match said {
        Value::String(said) => Some(said.clone()),
        Value::Null => None,
        other => Some(other.to_string()),
    }
}

/// Returns the beginning of what a server says, on one line.
fn bounded(said: &str) -> String {
    let line = said.trim().chars().take(SAID_CHARS_MAX);
    line.map(|char| if char.is_control() { ' ' } else { char }).collect()
}

/// A sentence or two for a log.
const SAID_CHARS_MAX: usize = 400;

/// Nobody is believed who sends a caller away for longer.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, after: Option<&'static str>, body: &str) -> Error {
        let mut headers = HeaderMap::new();
        if let Some(after) = after {
            headers.insert(RETRY_AFTER, after.parse().unwrap());
        }
        let status = StatusCode::from_u16(status).unwrap();
        of_status("/v1/completions of http://host", status, &headers, body.as_bytes())
    }

    #[test]
    fn a_status_says_what_the_caller_can_branch_on_and_whether_to_ask_another() {
        use ErrorKind::{
            Conflict, Internal, InvalidArgument, NotFound, Overloaded, Protocol, Unavailable,
        };
        for (status, after, kind, is_retryable) in [
            (400, None, InvalidArgument, false),
            (401, None, InvalidArgument, false),
            (403, None, InvalidArgument, false),
            (404, None, NotFound, false),
            (408, None, Unavailable, false),
            (409, None, Conflict, false),
            (422, None, InvalidArgument, false),
            (429, None, Overloaded, true),
            (429, Some("7"), Overloaded, true),
            (500, None, Internal, false),
            (502, None, Unavailable, false),
            (503, None, Unavailable, true),
            (503, Some("7"), Overloaded, true),
            (503, Some("Sun, 06 Nov 1994 08:49:37 GMT"), Unavailable, true),
            (504, None, Unavailable, false),
            (302, None, Protocol, false),
        ] {
            let error = refused(status, after, "");
            assert_eq!((error.kind(), error.is_retryable()), (kind, is_retryable), "{status}");
            let seconds = after.and_then(|after| after.parse().ok()).map(Duration::from_secs);
            assert_eq!(error.retry_after(), seconds, "{status}");
        }
        assert_eq!(refused(429, Some("99999999"), "").retry_after(), Some(RETRY_AFTER_MAX));
    }

    #[test]
    fn a_refusal_is_told_with_the_servers_words_cut_and_on_one_line() {
        let head = "/v1/completions of http://host answered 400 Bad Request";
        for (body, told) in [
            (r#"{"error": {"message": "too long", "code": 400}}"#, ": too long"),
            (r#"{"object": "error", "message": "too long"}"#, ": too long"),
            (r#"{"detail": [{"loc": ["body"]}]}"#, r#": [{"loc":["body"]}]"#),
            (r#"{"error": "too long"}"#, ": too long"),
            ("too\r\nlong\n", ": too  long"),
            ("", ""),
        ] {
            assert_eq!(refused(400, None, body).message(), format!("{head}{told}"), "{body}");
        }
        let long = "y".repeat(10_000);
        assert_eq!(refused(400, None, &long).message().len(), head.len() + 2 + SAID_CHARS_MAX);
    }

    #[test]
    fn an_error_object_in_the_stream_is_never_retryable() {
        for (text, kind) in [
            (r#"{"message": "no", "code": 400}"#, ErrorKind::InvalidArgument),
            (r#"{"message": "no", "code": "503"}"#, ErrorKind::Unavailable),
            (r#"{"message": "no", "code": 429}"#, ErrorKind::Overloaded),
            (r#""no""#, ErrorKind::Internal),
        ] {
            let error = of_object("engine", &serde_json::from_str(text).unwrap());
            assert_eq!((error.kind(), error.is_retryable()), (kind, false), "{text}");
            assert_eq!(error.message(), "engine failed: no", "{text}");
        }
    }
}
