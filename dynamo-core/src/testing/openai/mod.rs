//! A small server that speaks what vLLM's OpenAI-compatible server speaks.
//!
//! | path | answer |
//! |---|---|
//! | `POST /v1/completions` | for one prompt of token ids: whole, or as server-sent events |
//! | `GET /v1/models` | the one model, with its `max_model_len` |
//! | `GET /health` | 200 |
//! | `GET /metrics` | requests running and waiting, use of the cache, hits of prefixes |
//! | `POST /reset_prefix_cache` | forgets the prefix cache, if nothing runs |
//!
//! There is no model: a token is a function of all tokens before it ([`Script::next_token`]), so
//! the answer to any prompt is known beforehand, and an answer that is gone on with by another
//! server is the same answer. The prefix cache is one, so `cached_tokens` are true.

mod answer;
mod cache;
mod generation;
mod page;
mod record;
mod request;
mod script;
mod stream;
mod transfer;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

pub use cache::BlockChange;
pub use record::{Asked, AskedState};
pub use script::{Fault, MetricsOf, Observer, Script};
pub use transfer::Connector;

use self::cache::PrefixCache;
use self::record::Records;
use self::transfer::Side;
use crate::error::{Error, ErrorKind, Result};

/// An OpenAI-compatible server without a model, for tests: it answers as its [`Script`] says, and
/// remembers what it was asked.
///
/// ```
/// use dynamo_core::testing::openai::{PlayedServer, Script};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> dynamo_core::Result<()> {
/// let server = PlayedServer::start(Script::default()).await?;
/// assert!(server.url().starts_with("http://127.0.0.1:"));
/// server.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "dropping the server ends it"]
pub struct PlayedServer {
    address: SocketAddr,
    url: String,
    played: Arc<Played>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    _shutdown_on_drop: DropGuard,
}

/// What all connections of a server share.
#[derive(Debug)]
struct Played {
    script: Script,
    records: Arc<Records>,
    state: Mutex<State>,
    running: Arc<Semaphore>,
    side: Option<Side>,
    /// Lets those go on that hang.
    released: CancellationToken,
}

#[derive(Debug)]
struct State {
    cache: PrefixCache,
    faults: VecDeque<Fault>,
    /// Prompt tokens that were looked for in the cache, and those that were found.
    queried: u64,
    hits: u64,
}

impl PlayedServer {
    /// Starts a server.
    ///
    /// Fails with [`Unavailable`](ErrorKind::Unavailable) if it cannot listen at the script's
    /// address.
    ///
    /// # Cancel safety
    /// Dropping the future starts nothing.
    pub async fn start(script: Script) -> Result<Self> {
        let unavailable = |error| {
            let message = format!("played server cannot listen on {}", script.address);
            Error::new(ErrorKind::Unavailable, message).with_source(error)
        };
        let listener = TcpListener::bind(script.address).await.map_err(unavailable)?;
        let address = listener.local_addr().map_err(unavailable)?;
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let played = Arc::new(Played::new(script, shutdown.clone()));
        let (its, stop) = (Arc::clone(&played), shutdown.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = its.answer_all(listener) => {}
            }
        });
        tasks.close();
        let _shutdown_on_drop = shutdown.clone().drop_guard();
        let url = format!("http://{address}");
        Ok(Self { address, url, played, tasks, shutdown, _shutdown_on_drop })
    }

    /// Returns where the server is: `http://`, address and port, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the address that it listens at: that of a later server that takes its place.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives requests to `/v1/completions` that come after those with a fault this one.
    pub fn fail_next(&self, fault: Fault) {
        self.played.state().faults.push_back(fault);
    }

    /// Lets all that hangs go on, and makes nothing hang from now on.
    pub fn release(&self) {
        self.played.released.cancel();
    }

    /// Returns of how many requests blocks are kept for other servers.
    pub fn kept(&self) -> usize {
        self.played.side.as_ref().map_or(0, Side::kept)
    }

    /// Ends the time of all blocks that are kept for other servers: there are others in their place.
    pub fn expire_kept(&self) {
        self.played.side.as_ref().inspect(|side| side.expire());
    }

    /// Returns the requests to `/v1/completions`, in order; after very many the first are left out.
    pub fn asked(&self) -> Vec<Asked> {
        self.played.records.read(<[Asked]>::to_vec)
    }

    /// Waits until what was asked of `/v1/completions` `is` so, and returns it.
    ///
    /// Fails with [`DeadlineExceeded`](ErrorKind::DeadlineExceeded) if that has not happened
    /// within 20 s.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn until(&self, mut is: impl FnMut(&[Asked]) -> bool) -> Result<Vec<Asked>> {
        let mut asked = self.played.records.watch();
        match tokio::time::timeout(UNTIL_MAX, asked.wait_for(|all| is(all))).await {
            Ok(Ok(all)) => Ok(all.clone()),
            _ => {
                let message = format!("what {} was asked did not become so", self.url);
                Err(Error::new(ErrorKind::DeadlineExceeded, message))
            }
        }
    }

    /// Ends the server as a crash does: at once, whatever it is answering.
    ///
    /// # Cancel safety
    /// Cancel safe; the server ends all the same.
    pub async fn shutdown(&self) {
        self.played.side.as_ref().inspect(|side| side.leave());
        self.shutdown.cancel();
        self.tasks.wait().await;
    }
}

impl Played {
    fn new(mut script: Script, ending: CancellationToken) -> Self {
        let faults = std::mem::take(&mut script.faults).into();
        let cache = PrefixCache::new(script.block_size, script.blocks);
        Self {
            state: Mutex::new(State { cache, faults, queried: 0, hits: 0 }),
            running: Arc::new(Semaphore::new(script.running_max)),
            side: script.connector.as_ref().map(Connector::join),
            records: Arc::new(Records::new(ending)),
            released: CancellationToken::new(),
            script,
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the observer, if there is one.
    fn tell(&self, change: BlockChange) {
        if let Some(observer) = &self.script.observer {
            observer(change);
        }
    }

    /// Answers all that come, in one task; further ones wait in the kernel's bounded backlog.
    async fn answer_all(self: &Arc<Self>, listener: TcpListener) {
        let mut connections = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                    if let Ok((socket, _)) = accepted {
                        connections.push(Box::pin(self.serve(socket)));
                    }
                }
                Some(()) = connections.next() => {}
            }
        }
    }

    async fn serve(self: &Arc<Self>, socket: TcpStream) {
        let service = service_fn(|request| Arc::clone(self).respond(request));
        // A connection that is closed in the middle is what tests ask for.
        if let Err(error) =
            http1::Builder::new().serve_connection(TokioIo::new(socket), service).await
        {
            tracing::debug!(%error, "connection to a played server");
        }
    }
}

const CONNECTIONS_MAX: usize = 1024;

/// A test that waits for longer will not see it.
const UNTIL_MAX: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests;
