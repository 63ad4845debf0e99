//! Events between processes over NATS core: each numbered by its publisher, so that a loss shows.
//!
//! ```text
//! subject: {root}.events.{namespace}.{component}.{event}
//! payload: a stamp (publisher, epoch, number, and how long ago the event before it was), the event
//! ```
//!
//! A publisher is a process that publishes, under a name of its own or a random one; each start of
//! it is another epoch. A sign of life repeats how many events there were, each second for a minute
//! and then each minute, so that the loss of the last event shows as well. Nothing relies on
//! JetStream.

mod config;
mod listener;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

pub use self::config::NatsEventPlaneConfig;
use self::listener::NatsSubscriber;
use super::sequence::{HEADER_BYTES, Numbering};
use super::{EventPlane, RawSubscriber, Topic};
use crate::error::{Error, ErrorKind, Result};
use crate::nats;
use crate::protocol::InstanceId;
use crate::time::{Clock, SystemClock};

/// Carries events over NATS.
///
/// Where it is not known whether something was lost, a listener is told a gap. None may be behind it
/// - if what it first hears of a publisher was under way, or unread, for longer than from the event
///   before that one to its subscription;
/// - if a publisher restarts that [keeps its name](NatsEventPlaneConfig::with_publisher);
/// - if more publishers are heard on a topic than it remembers, 65,536.
///
/// Nobody can count what a publisher said that is never heard again, or of which nothing was heard
/// before its restart. Clocks may differ, but must run alike (within a 500th), and a listener's must
/// not stand still, as that of a machine that sleeps does.
///
/// It owns one task: [`shutdown`](EventPlane::shutdown) joins it, dropping the plane ends it.
pub struct NatsEventPlane {
    client: async_nats::Client,
    root: String,
    numbering: Arc<Mutex<Numbering>>,
    outgoing: mpsc::Sender<(String, Bytes)>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    _shutdown_on_drop: DropGuard,
}

impl NatsEventPlane {
    /// Connects; goes on to try in the background if NATS is not there yet, as it does later.
    ///
    /// Fails with [`InvalidArgument`](ErrorKind::InvalidArgument) on a config that cannot work, and
    /// [`Unavailable`](ErrorKind::Unavailable) if NATS refuses.
    ///
    /// # Cancel safety
    /// Dropping the future starts nothing.
    pub async fn start(config: NatsEventPlaneConfig) -> Result<Self> {
        config.check()?;
        let capacity = config.backlog_max;
        let client =
            config.access.connect(|options| options.subscription_capacity(capacity)).await?;
        let (outgoing, events) = mpsc::channel(capacity);
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        // An epoch is only compared for being the same: a clock that was set back does no harm.
        let publisher = config.publisher.unwrap_or_else(InstanceId::random);
        let numbering = Numbering::new(publisher.0, InstanceId::random().0);
        let numbering = Arc::new(Mutex::new(numbering));
        let sending = send(client.clone(), events);
        let signing = sign(outgoing.clone(), Arc::clone(&numbering));
        let stop = shutdown.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = sending => {}
                () = signing => {}
            }
        });
        Ok(Self {
            client,
            root: config.root,
            numbering,
            outgoing,
            tasks,
            _shutdown_on_drop: shutdown.clone().drop_guard(),
            shutdown,
        })
    }

    fn subject(&self, topic: &Topic) -> String {
        // Names have no dot.
        let Topic { namespace, component, event } = topic;
        format!("{}.events.{namespace}.{component}.{event}", self.root)
    }
}

/// Sends what waits, in its order.
async fn send(client: async_nats::Client, mut messages: mpsc::Receiver<(String, Bytes)>) {
    while let Some((subject, message)) = messages.recv().await {
        if let Err(error) = client.publish(subject, message).await {
            // Its number is missing at the listeners, who see a gap.
            tracing::warn!(%error, "event not published");
        }
    }
}

/// Puts signs of life behind the events that wait, so that none overtakes what it counts.
async fn sign(outgoing: mpsc::Sender<(String, Bytes)>, numbering: Arc<Mutex<Numbering>>) {
    let mut turns = tokio::time::interval(SIGN_EACH);
    turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        let mut numbering = numbering.lock().unwrap_or_else(PoisonError::into_inner);
        for (subject, stamp) in numbering.signs(SystemClock.now()) {
            // One that finds no room is followed by others.
            let _ = outgoing.try_send((subject, stamp.encode(&[])));
        }
    }
}

#[async_trait]
impl EventPlane for NatsEventPlane {
    fn publish(&self, topic: &Topic, payload: Bytes) -> Result<()> {
        let subject = self.subject(topic);
        let limit = self.client.server_info().max_payload;
        if limit > 0 && payload.len() + HEADER_BYTES > limit {
            let message = format!("event of {} bytes on {topic}, at most {limit}", payload.len());
            return Err(Error::invalid(message));
        }
        let mut numbering = self.numbering.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = numbering.event(&subject, SystemClock.now());
        // Under the lock, so that numbers are queued in their order. What does not fit is lost, and
        // its number tells.
        match self.outgoing.try_send((subject, stamp.encode(&payload))) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => {
                tracing::warn!(%topic, "event lost: too many wait for NATS");
                Ok(())
            }
            Err(mpsc::error::TrySendError::Closed(_)) => {
                Err(Error::new(ErrorKind::Closed, "event plane has shut down"))
            }
        }
    }

    async fn subscribe(&self, topic: &Topic) -> Result<Box<dyn RawSubscriber>> {
        let unavailable = |error: Box<dyn std::error::Error + Send + Sync>| {
            let message = format!("cannot listen to {topic} over NATS");
            Error::new(ErrorKind::Unavailable, message).with_source(error)
        };
        let messages = self.client.subscribe(self.subject(topic)).await;
        let messages = messages.map_err(|error| unavailable(error.into()))?;
        // It is on its way to the server before we say so; what is published until it gets there,
        // or until NATS is back, is told as a gap.
        let flushed = tokio::time::timeout(nats::CONNECT_MAX, self.client.flush()).await;
        if let Ok(Err(error)) = flushed {
            return Err(unavailable(error.into()));
        }
        let shutdown = self.shutdown.clone();
        Ok(Box::new(NatsSubscriber::new(messages, shutdown)))
    }

    async fn shutdown(&self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl fmt::Debug for NatsEventPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsEventPlane").field("root", &self.root).finish_non_exhaustive()
    }
}

/// A sign of life may be due this often.
const SIGN_EACH: Duration = Duration::from_secs(1);
