use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Incoming};
use hyper::header::HeaderMap;
use hyper::{Response, StatusCode};

use super::super::error;
use super::{Http, Line};
use crate::error::{Error, ErrorKind, Result};

/// What the server answers; dropping it before its end closes the connection.
pub(in crate::openai) struct Answer {
    http: Http,
    status: StatusCode,
    headers: HeaderMap,
    body: Incoming,
    /// There until the end of the body.
    line: Option<Line>,
}

impl Answer {
    pub(super) fn new(http: Http, response: Response<Incoming>, line: Line) -> Self {
        let (head, body) = response.into_parts();
        Self { http, status: head.status, headers: head.headers, body, line: Some(line) }
    }

    pub(in crate::openai) fn status(&self) -> StatusCode {
        self.status
    }

    /// Receives the next bytes; `None` at the end, from which on the connection may serve others.
    ///
    /// # Cancel safety
    /// Cancel safe: no bytes are lost.
    pub(in crate::openai) async fn next(&mut self) -> Option<Result<Bytes>> {
        loop {
            let frame = poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await;
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => return Some(Ok(bytes)),
                    Err(_trailers) => {}
                },
                Some(Err(error)) => {
                    self.line = None;
                    return Some(Err(self.http.broken(error)));
                }
                None => {
                    if let Some(line) = self.line.take() {
                        self.http.keep(line);
                    }
                    return None;
                }
            }
        }
    }

    /// Receives all of the body.
    ///
    /// Fails with [`Protocol`](ErrorKind::Protocol) if it has more than `bytes_max` bytes.
    ///
    /// # Cancel safety
    /// Not cancel safe: what came is dropped with the future.
    pub(in crate::openai) async fn all(&mut self, bytes_max: usize) -> Result<Bytes> {
        let mut all = BytesMut::new();
        while let Some(bytes) = self.next().await {
            let bytes = bytes?;
            if bytes.len() > bytes_max - all.len() {
                let message =
                    format!("engine at {}: answer over {bytes_max} bytes", self.http.url());
                return Err(Error::new(ErrorKind::Protocol, message));
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all.freeze())
    }

    /// Returns what the server's refusal of `path` is here.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub(in crate::openai) async fn refusal(mut self, path: &str) -> Error {
        // A body that is too long or breaks off says nothing; the status says enough.
        let body = tokio::time::timeout(REFUSAL_MAX, self.all(REFUSAL_BYTES_MAX)).await;
        let body = body.ok().and_then(Result::ok).unwrap_or_default();
        let what = format!("{path} of {}", self.http.url());
        error::of_status(&what, self.status, &self.headers, &body)
    }
}

/// A refusal is a sentence; what quotes the prompt back is cut in any case.
const REFUSAL_BYTES_MAX: usize = 64 << 10;

/// Its body comes with its head.
const REFUSAL_MAX: Duration = Duration::from_secs(2);
