//! A page over HTTP that tells whoever watches over a process how its runtime is.

use std::convert::Infallible;
use std::fmt;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::error::{Error, ErrorKind, Result};
use crate::metrics::Registry;
use crate::readiness::{ServedHere, State};
use crate::runtime::Runtime;

/// Answers over HTTP how a runtime is.
///
/// | path | answer |
/// |---|---|
/// | `/live` | 200 as long as the process answers |
/// | `/ready` | 200 if at least one instance is served and all are listed; otherwise 503, with a line for each that is not, and why |
/// | `/metrics` | [`Registry::render`], for Prometheus |
///
/// Whoever reaches the address may read all of it: there is neither TLS nor a password. It is one
/// task; the runtime's shutdown, [`shutdown`](Self::shutdown) and dropping the page end it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> dynamo_core::Result<()> {
/// use dynamo_core::Runtime;
/// use dynamo_core::status::StatusPage;
///
/// let runtime = Runtime::in_process();
/// let page = StatusPage::start(&runtime, ([127, 0, 0, 1], 0).into()).await?;
/// assert_ne!(page.address().port(), 0);
/// # Ok(())
/// # }
/// ```
#[must_use = "dropping the page ends it"]
pub struct StatusPage {
    address: SocketAddr,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    _shutdown_on_drop: DropGuard,
}

impl StatusPage {
    /// Listens at `address`; port 0 takes a free one.
    ///
    /// Fails with [`Unavailable`](ErrorKind::Unavailable) if it cannot listen.
    ///
    /// # Cancel safety
    /// Dropping the future starts nothing.
    pub async fn start(runtime: &Runtime, address: SocketAddr) -> Result<Self> {
        let unavailable = |error| {
            let message = format!("status page cannot listen on {address}");
            Error::new(ErrorKind::Unavailable, message).with_source(error)
        };
        let listener = TcpListener::bind(address).await.map_err(unavailable)?;
        let address = listener.local_addr().map_err(unavailable)?;
        // Not the runtime itself: the page would keep it alive.
        let page = Page { served: runtime.served().clone(), metrics: runtime.metrics().clone() };
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let stop = shutdown.clone();
        runtime.spawn(tasks.track_future(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = page.answer_all(listener) => {}
            }
        }));
        tasks.close();
        let _shutdown_on_drop = shutdown.clone().drop_guard();
        Ok(Self { address, tasks, shutdown, _shutdown_on_drop })
    }

    /// Returns where the page is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends the page and waits for it; what is being answered is cut off.
    ///
    /// # Cancel safety
    /// Cancel safe; the page ends all the same.
    pub async fn shutdown(&self) {
        self.shutdown.cancel();
        self.tasks.wait().await;
    }
}

impl fmt::Debug for StatusPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusPage").field("address", &self.address).finish_non_exhaustive()
    }
}

/// What the page tells of.
struct Page {
    served: ServedHere,
    metrics: Registry,
}

impl Page {
    /// Answers all that come, in one task; further ones wait in the kernel's bounded backlog.
    async fn answer_all(&self, listener: TcpListener) {
        let mut connections = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                    match accepted {
                        Ok((socket, _)) => connections.push(Box::pin(self.answer(socket))),
                        Err(error) => {
                            tracing::warn!(%error, "connection to the status page not accepted");
                            // Out of descriptors, for instance: trying again at once would spin.
                            tokio::time::sleep(ACCEPT_BACK_OFF).await;
                        }
                    }
                }
                Some(()) = connections.next() => {}
            }
        }
    }

    /// Answers one request.
    async fn answer(&self, socket: TcpStream) {
        let service = service_fn(async |request: Request<hyper::body::Incoming>| {
            Ok::<_, Infallible>(self.respond(request.method(), request.uri().path()))
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_WITHIN)
            .max_buf_size(HEADER_BYTES_MAX)
            .keep_alive(false)
            .serve_connection(TokioIo::new(socket), service);
        match tokio::time::timeout(ANSWERED_WITHIN, connection).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "status page"),
            Err(_) => tracing::debug!("the reader of the status page did not read"),
        }
    }

    fn respond(&self, method: &Method, path: &str) -> Response<String> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n".into());
            refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refusal;
        }
        match path {
            "/live" => text(StatusCode::OK, "live\n".into()),
            "/ready" => self.ready(),
            "/metrics" => {
                let mut metrics = text(StatusCode::OK, self.metrics.render());
                let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                metrics.headers_mut().insert(CONTENT_TYPE, kind);
                metrics
            }
            _ => text(StatusCode::NOT_FOUND, "/live, /ready or /metrics\n".into()),
        }
    }

    fn ready(&self) -> Response<String> {
        let served = self.served.readiness();
        if served.is_empty() {
            return text(StatusCode::SERVICE_UNAVAILABLE, "nothing is served\n".into());
        }
        let mut missing = String::new();
        for its in served.iter().filter(|its| its.state != State::Listed) {
            // Writing to a string cannot fail.
            let _ = writeln!(missing, "{}", its.to_string().replace(['\r', '\n'], " "));
        }
        if missing.is_empty() {
            text(StatusCode::OK, "ready\n".into())
        } else {
            text(StatusCode::SERVICE_UNAVAILABLE, missing)
        }
    }
}

fn text(status: StatusCode, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// Probes and scrapers are a few; each costs a socket and at most these bytes twice.
const CONNECTIONS_MAX: usize = 64;

/// The least that hyper can do with.
const HEADER_BYTES_MAX: usize = 8 << 10;

/// Who is there to ask asks at once.
const HEADER_WITHIN: Duration = Duration::from_secs(2);

/// A reader that does not read makes room for the next.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);

const ACCEPT_BACK_OFF: Duration = Duration::from_millis(100);
