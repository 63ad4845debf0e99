//! The task that follows one publisher.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dynamo_core::{Error, ErrorKind, Result};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::config::{Place, VllmConfig};
use super::intake::{Intake, Message, SharedTranslator};
use super::problem::VllmStats;
use super::sink::Sink;
use super::source::{Source, dial, next_connection};
use super::zmtp::{Connection, Role};

/// Follows the KV events of one vLLM publisher until it is shut down or dropped.
///
/// What a router is told by it is taken back when it ends. A router that forgets a worker, as it does
/// with who is missing from discovery for a while, is told of it anew within a second or so of its
/// return.
///
/// ```
/// use std::sync::Arc;
///
/// use dynamo_core::protocol::{BlockSize, CacheNamespace, InstanceId};
/// use dynamo_core::time::SystemClock;
/// use dynamo_router::events::vllm::{VllmConfig, VllmEvents};
/// use dynamo_router::{KvRouter, RouterConfig};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> dynamo_core::Result<()> {
/// let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
/// let model = CacheNamespace::model("m");
/// let config =
///     VllmConfig::new(InstanceId(7), "tcp://127.0.0.1:5557", model, BlockSize::DEFAULT)
///         .with_replay("tcp://127.0.0.1:5558");
/// let events = VllmEvents::connect(config, router)?;
/// assert_eq!(events.stats().gaps, 0);
/// events.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "dropping the feed stops it"]
pub struct VllmEvents {
    tasks: TaskTracker,
    shutdown: CancellationToken,
    _shutdown_on_drop: DropGuard,
    stats: Arc<Mutex<VllmStats>>,
    translator: Arc<SharedTranslator>,
    retell: Arc<Notify>,
    local_addr: Option<SocketAddr>,
}

impl VllmEvents {
    /// Connects to a publisher that listens (its endpoint has a `*`), now and whenever the
    /// connection is lost, and tells `sink` what happens, in order.
    ///
    /// Fails with [`InvalidArgument`](ErrorKind::InvalidArgument) if an
    /// endpoint is none.
    ///
    /// # Panics
    /// If called outside a tokio runtime.
    pub fn connect(config: VllmConfig, sink: impl Sink + Send + 'static) -> Result<Self> {
        let source = Source::Dial(Place::parse(&config.endpoint)?);
        Self::start(config, source, None, sink)
    }

    /// Listens for a publisher that connects (its endpoint has no `*`), and tells `sink` what happens,
    /// in order.
    ///
    /// A publisher that connects takes the place of the one before: one listens for one worker.
    /// Fails with [`InvalidArgument`](ErrorKind::InvalidArgument) if an
    /// endpoint is none, and with [`Unavailable`](ErrorKind::Unavailable) if it cannot be listened
    /// at.
    ///
    /// # Cancel safety
    /// Cancel safe; nothing has started then.
    pub async fn bind(config: VllmConfig, sink: impl Sink + Send + 'static) -> Result<Self> {
        let address = Place::parse(&config.endpoint)?.to_listen()?;
        let listener = TcpListener::bind(&address).await.map_err(|source| {
            let message = format!("cannot listen at {}", config.endpoint);
            Error::new(ErrorKind::Unavailable, message).with_source(source)
        })?;
        let local_addr = listener.local_addr().ok();
        Self::start(config, Source::Listen(listener), local_addr, sink)
    }

    /// Returns what came of the publisher so far.
    pub fn stats(&self) -> VllmStats {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has everything told anew, in a new epoch: for a sink that has forgotten the worker, and does not
    /// [say so](Sink::lacks) itself.
    pub fn retell(&self) {
        self.retell.notify_one();
    }

    /// Returns where publishers are listened for, if they are.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local_addr
    }

    /// Stops the feed and joins its task.
    ///
    /// # Cancel safety
    /// Cancel safe; the task ends all the same.
    pub async fn shutdown(self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Returns what snapshots are taken of.
    pub(super) fn translator(&self) -> Arc<SharedTranslator> {
        Arc::clone(&self.translator)
    }

    fn start(
        config: VllmConfig,
        source: Source,
        local_addr: Option<SocketAddr>,
        sink: impl Sink + Send + 'static,
    ) -> Result<Self> {
        let replay = config.replay_endpoint.as_deref().map(Place::parse).transpose()?;
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let stats = Arc::new(Mutex::new(VllmStats::default()));
        let intake = Intake::new(config.clone(), sink, stats.clone());
        let (translator, retell) = (intake.translator(), Arc::new(Notify::new()));
        let asked = retell.clone();
        let mut follower = Follower { config, source, replay, intake, asked };
        let stop = shutdown.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = follower.run() => {}
            }
            follower.intake.forget(None);
            follower.intake.show();
        });
        let _shutdown_on_drop = shutdown.clone().drop_guard();
        Ok(Self { tasks, shutdown, _shutdown_on_drop, stats, translator, retell, local_addr })
    }
}

#[derive(Debug)]
struct Follower<S> {
    config: VllmConfig,
    source: Source,
    replay: Option<Place>,
    intake: Intake<S>,
    /// Whether all is to be told anew.
    asked: Arc<Notify>,
}

impl<S: Sink> Follower<S> {
    /// Follows connection after connection, for ever.
    async fn run(&mut self) {
        let Self { config, source, replay, intake, asked } = self;
        let mut coming = pin!(next_connection(source, config, 0));
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut current = None;
        // Connections in a row that no message came along.
        let mut idle = 0;
        loop {
            intake.show();
            tokio::select! {
                next = &mut coming, if current.is_none() || source.is_listening() => {
                    current = Some(next);
                    coming.set(next_connection(source, config, 0));
                    idle += 1;
                    intake.connected();
                    catch_up(intake, replay.as_ref(), config).await;
                }
                () = asked.notified() => intake.retell(),
                _ = look.tick() => intake.retell_missing(),
                parts = receive(&mut current) => match parts.map(Message::published) {
                    Err(error) => {
                        tracing::warn!(publisher = config.endpoint, %error, "no KV events of vLLM");
                        current = None;
                        if !source.is_listening() {
                            coming.set(next_connection(source, config, idle + 1));
                        }
                    }
                    Ok(Err(wrong)) => intake.malformed(wrong),
                    Ok(Ok(message)) => {
                        idle = 0;
                        if replay.is_some() && intake.is_behind(&message) {
                            catch_up(intake, replay.as_ref(), config).await;
                        }
                        intake.live(&message);
                    }
                },
            }
        }
    }
}

/// Waits for a message; for ever without a connection.
async fn receive(current: &mut Option<Connection>) -> Result<Vec<Vec<u8>>> {
    match current {
        Some(connection) => connection.receive().await,
        None => std::future::pending().await,
    }
}

/// Has repeated what is missing, or forgets what nothing proves any more.
async fn catch_up<S: Sink>(intake: &mut Intake<S>, place: Option<&Place>, config: &VllmConfig) {
    if let Some(place) = place {
        let error = match timeout(config.answer_max, replay(intake, place, config)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(_) => Some(Error::new(ErrorKind::DeadlineExceeded, "the replay has no end")),
        };
        intake.replay_ended(error.is_none());
        if let Some(error) = error {
            tracing::warn!(publisher = config.replay_endpoint, %error, "KV events are not replayed");
        }
    }
    intake.doubt();
}

async fn replay<S: Sink>(intake: &mut Intake<S>, place: &Place, config: &VllmConfig) -> Result<()> {
    let mut connection = dial(place, Role::Dealer, config).await?;
    loop {
        // The empty part is what a socket of requests puts before each.
        connection.send(&[b"", &intake.ask_from().to_be_bytes()]);
        let mut answer = next_replayed(&mut connection).await?;
        let asks_again = intake.prove(answer.as_ref());
        while let Some(message) = answer {
            if !asks_again {
                intake.replayed(&message);
            }
            answer = next_replayed(&mut connection).await?;
        }
        if !asks_again {
            return Ok(());
        }
    }
}

async fn next_replayed(connection: &mut Connection) -> Result<Option<Message>> {
    Message::replayed(connection.receive().await?)
        .map_err(|wrong| Error::new(ErrorKind::Protocol, wrong.to_string()))
}

/// So often a sink is asked whether it lacks anything.
const LOOK_EVERY: Duration = Duration::from_secs(1);
