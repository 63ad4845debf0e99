//! One server over HTTP/1.1: connections are dialled when needed, kept for a while when an answer
//! ended properly, and closed with whatever still reads from them.

mod answer;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

pub(super) use answer::Answer;

use crate::error::{Error, ErrorKind, Result};
use crate::time::{Clock, SystemClock};

/// Speaks to one server; clones share its connections.
///
/// Each connection is one task of a tracker that [`shutdown`](Self::shutdown) joins. Dropping the
/// last clone closes them all.
#[derive(Clone)]
pub(super) struct Http {
    shared: Arc<Shared>,
    connect_max: Duration,
}

struct Shared {
    url: String,
    address: String,
    /// What stands before every path.
    base: String,
    headers: HeaderMap,
    kept: Mutex<Vec<Kept>>,
    tasks: TaskTracker,
    closed: CancellationToken,
    _closed_on_drop: DropGuard,
}

/// A connection that waits for its next request.
struct Kept {
    line: Line,
    since: Instant,
}

/// A connection: dropping it closes the socket, whatever is on its way.
struct Line {
    requests: SendRequest<String>,
    _close_on_drop: DropGuard,
}

impl Http {
    /// Takes the server at `url`: `http://host[:port][/path]`, of which the path stands before
    /// those of requests. Nothing is dialled yet.
    ///
    /// Fails with [`InvalidArgument`](ErrorKind::InvalidArgument) if the URL is none, or not of
    /// `http`, or if the key cannot stand in a header.
    pub(super) fn new(url: &str, api_key: Option<&str>) -> Result<Self> {
        let invalid = |why: &str| Error::invalid(format!("url {url:?} of an engine {why}"));
        let uri: Uri = url.parse().map_err(|error| invalid("cannot be read").with_source(error))?;
        if uri.scheme_str() != Some("http") {
            return Err(invalid("does not begin with http://"));
        }
        let authority = uri.authority().ok_or_else(|| invalid("names no host"))?;
        if authority.as_str().contains('@') || uri.query().is_some() {
            return Err(invalid("has a user or a query"));
        }
        let base = uri.path().trim_end_matches('/');
        if base.ends_with("/v1") {
            return Err(invalid("ends with /v1, which the paths asked for have themselves"));
        }
        let mut headers = HeaderMap::new();
        let host = HeaderValue::from_str(authority.as_str());
        headers.insert(HOST, host.map_err(|_| invalid("has no host for a header"))?);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(key) = api_key {
            let mut bearer = HeaderValue::from_str(&format!("Bearer {key}"))
                .map_err(|_| Error::invalid(format!("API key for {url} fits no header")))?;
            bearer.set_sensitive(true);
            headers.insert(AUTHORIZATION, bearer);
        }
        let closed = CancellationToken::new();
        let shared = Shared {
            url: url.trim_end_matches('/').to_owned(),
            address: format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80)),
            base: base.to_owned(),
            headers,
            kept: Mutex::default(),
            tasks: TaskTracker::new(),
            _closed_on_drop: closed.clone().drop_guard(),
            closed,
        };
        Ok(Self { shared: Arc::new(shared), connect_max: CONNECT_MAX })
    }

    /// Gives up a connection that is not there within `connect_max`.
    pub(super) fn with_connect_max(self, connect_max: Duration) -> Self {
        Self { connect_max, ..self }
    }

    /// Returns where the server is.
    pub(super) fn url(&self) -> &str {
        &self.shared.url
    }

    /// Gets `path`, all of it.
    ///
    /// Fails with what [`of_status`](super::error::of_status) makes of a status that is not 2xx, with
    /// [`Protocol`](ErrorKind::Protocol) if there are more than `bytes_max` bytes, and with
    /// [`Unavailable`](ErrorKind::Unavailable) if they are not there within `timeout`.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub(super) async fn get(
        &self,
        path: &str,
        bytes_max: usize,
        timeout: Duration,
    ) -> Result<Bytes> {
        let got = async {
            let request = self.request(Method::GET, path, HeaderMap::new(), String::new())?;
            let mut answer = self.send(request).await?;
            if !answer.status().is_success() {
                return Err(answer.refusal(path).await);
            }
            answer.all(bytes_max).await
        };
        tokio::time::timeout(timeout, got)
            .await
            .unwrap_or_else(|_| Err(self.unavailable(&format!("no answer to {path} in time"))))
    }

    /// Posts `body`; what comes back is read from the answer, whatever its status.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub(super) async fn post(
        &self,
        path: &str,
        headers: HeaderMap,
        body: String,
    ) -> Result<Answer> {
        let request = self.request(Method::POST, path, headers, body)?;
        // Dialling and sending take kilobytes, which callers would carry for the whole answer.
        Box::pin(self.send(request)).await
    }

    /// Closes all connections, those that are read from too, and waits for their tasks.
    ///
    /// # Cancel safety
    /// Cancel safe; they are closed all the same.
    pub(super) async fn shutdown(&self) {
        self.shared.closed.cancel();
        self.shared.tasks.close();
        self.kept().clear();
        self.shared.tasks.wait().await;
    }

    /// Runs `task` as one that [`shutdown`](Self::shutdown) waits for; it ends when
    /// [`closed`](Self::closed) says so.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.shared.tasks.spawn(task);
    }

    /// Completes once all is to end.
    pub(super) async fn closed(&self) {
        self.shared.closed.cancelled().await;
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: String,
    ) -> Result<Request<String>> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        let path = format!("{}{path}", self.shared.base);
        *request.uri_mut() = path.parse().map_err(|error| {
            Error::invalid(format!("path {path:?} of {}", self.shared.url)).with_source(error)
        })?;
        request.headers_mut().extend(self.shared.headers.clone());
        request.headers_mut().extend(headers);
        Ok(request)
    }

    /// Sends over a kept connection, or over one that is dialled for it.
    async fn send(&self, mut request: Request<String>) -> Result<Answer> {
        while let Some(mut line) = self.take_kept() {
            // The server may have closed it at any moment; then the request comes back unsent.
            if line.requests.ready().await.is_err() {
                continue;
            }
            match line.requests.try_send_request(request).await {
                Ok(response) => return Ok(Answer::new(self.clone(), response, line)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(self.broken(error.into_error())),
                },
            }
        }
        let mut line = self.dial().await?;
        match line.requests.try_send_request(request).await {
            Ok(response) => Ok(Answer::new(self.clone(), response, line)),
            Err(mut error) => {
                let is_unsent = error.take_message().is_some();
                let broken = self.broken(error.into_error());
                Err(if is_unsent { broken.unprocessed() } else { broken })
            }
        }
    }

    async fn dial(&self) -> Result<Line> {
        if self.shared.closed.is_cancelled() {
            return Err(self.shut_down().unprocessed());
        }
        let dialled =
            tokio::time::timeout(self.connect_max, TcpStream::connect(&self.shared.address));
        let socket = match dialled.await {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) => {
                return Err(self.unavailable("no connection").with_source(error).unprocessed());
            }
            Err(_) => return Err(self.unavailable("no connection in time").unprocessed()),
        };
        // A request is one write; one that waits for company would only be late.
        let _ = socket.set_nodelay(true);
        let (requests, connection) = http1::Builder::new()
            .max_buf_size(BUFFER_BYTES_MAX)
            .handshake(TokioIo::new(socket))
            .await
            .map_err(|error| self.broken(error).unprocessed())?;
        let close = self.shared.closed.child_token();
        let closing = close.clone();
        let url = self.shared.url.clone();
        self.shared.tasks.spawn(async move {
            tokio::select! {
                () = closing.cancelled() => {}
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%url, %error, "connection to an engine");
                }
            }
        });
        Ok(Line { requests, _close_on_drop: close.drop_guard() })
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<Kept>> {
        self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the connection that was used last: the others grow old.
    fn take_kept(&self) -> Option<Line> {
        let oldest = SystemClock.now().checked_sub(KEPT_MAX);
        let mut kept = self.kept();
        kept.retain(|kept| oldest.is_none_or(|oldest| kept.since >= oldest));
        kept.pop().map(|kept| kept.line)
    }

    fn keep(&self, line: Line) {
        let mut kept = self.kept();
        if !self.shared.closed.is_cancelled()
            && !line.requests.is_closed()
            && kept.len() < KEPT_COUNT_MAX
        {
            kept.push(Kept { line, since: SystemClock.now() });
        }
    }

    /// Returns that the server is not there, and how that showed.
    pub(super) fn unavailable(&self, how: &str) -> Error {
        Error::new(ErrorKind::Unavailable, format!("engine at {}: {how}", self.shared.url))
    }

    /// Returns that [`shutdown`](Self::shutdown) has ended it.
    pub(super) fn shut_down(&self) -> Error {
        Error::new(ErrorKind::Closed, format!("engine at {}: shut down here", self.shared.url))
    }

    fn broken(&self, error: hyper::Error) -> Error {
        let kind = match error.is_parse() {
            true => ErrorKind::Protocol,
            false if self.shared.closed.is_cancelled() => ErrorKind::Closed,
            false => ErrorKind::Unavailable,
        };
        Error::new(kind, format!("engine at {}: connection broke", self.shared.url))
            .with_source(error)
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").field("url", &self.shared.url).finish_non_exhaustive()
    }
}

/// A host that is there takes a connection at once.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// Below the five seconds after which uvicorn, vLLM's server, closes an idle connection: one that is
/// about to be closed would lose the request it is used for.
const KEPT_MAX: Duration = Duration::from_secs(3);

/// Descriptors that idle at most; a fleet is a few hundred servers.
const KEPT_COUNT_MAX: usize = 32;

/// What hyper may have of an answer that nobody reads.
const BUFFER_BYTES_MAX: usize = 64 << 10;
