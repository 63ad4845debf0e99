//! Events between processes over NATS core: each numbered by its publisher, so that a loss shows.
//!
//! ```text
//! subject: {root}.events.{namespace}.{component}.{event}
//! payload: publisher u64 │ number u64 │ kind u8 (0 event, 1 sign of life) │ event; little-endian
//! ```
//!
//! A sign of life repeats the number of the last event each second for a while, so that the loss of
//! the last event shows as well. Nothing relies on JetStream.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::{EventPlane, RawDelivery, RawSubscriber, Topic};
use crate::error::{Error, ErrorKind, Result};
use crate::nats::{self, NatsAccess};
use crate::protocol::InstanceId;

/// How NATS is used.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct NatsEventPlaneConfig {
    /// How NATS is reached.
    pub access: NatsAccess,
    /// What all subjects start with: `[a-z0-9_-]+`.
    #[serde(default = "nats::default_root")]
    pub root: String,
    /// Events that wait for the connection, and per listener for their reader; more are lost.
    #[serde(default = "backlog_max")]
    pub backlog_max: usize,
}

impl NatsEventPlaneConfig {
    /// Uses NATS as `access` says, or at a URL.
    pub fn new(access: impl Into<NatsAccess>) -> Self {
        let (root, backlog_max) = (nats::default_root(), backlog_max());
        Self { access: access.into(), root, backlog_max }
    }

    /// Starts all subjects with `root`.
    #[must_use]
    pub fn with_root(mut self, root: impl Into<String>) -> Self {
        self.root = root.into();
        self
    }

    /// Limits the events that wait.
    #[must_use]
    pub fn with_backlog_max(mut self, backlog_max: usize) -> Self {
        self.backlog_max = backlog_max;
        self
    }
}

/// What the memory plane allows.
const fn backlog_max() -> usize {
    4096
}

/// Carries events over NATS.
///
/// It owns one task: [`shutdown`](EventPlane::shutdown) joins it, dropping the plane ends it.
pub struct NatsEventPlane {
    client: async_nats::Client,
    root: String,
    /// Names this plane's numbering; another process, or another start, has another one.
    publisher: u64,
    /// The number of the last event per subject.
    numbers: Arc<Mutex<HashMap<String, Last>>>,
    outgoing: mpsc::Sender<(String, Bytes)>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    _shutdown_on_drop: DropGuard,
}

#[derive(Default)]
struct Last {
    /// The number of the next event.
    next: u64,
    /// Signs of life that are still due.
    signs_due: u32,
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
        nats::check_root(&config.root)?;
        if config.backlog_max == 0 {
            return Err(Error::invalid("NATS backlog_max is 0"));
        }
        let capacity = config.backlog_max;
        let client =
            config.access.connect(|options| options.subscription_capacity(capacity)).await?;
        let (outgoing, events) = mpsc::channel(config.backlog_max);
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let numbers = Arc::<Mutex<HashMap<String, Last>>>::default();
        let publisher = InstanceId::random().0;
        let sending = send(client.clone(), events, publisher, Arc::clone(&numbers));
        let stop = shutdown.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = sending => {}
            }
        });
        Ok(Self {
            client,
            root: config.root,
            publisher,
            numbers,
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

/// Sends what is published, and signs of life behind it.
async fn send(
    client: async_nats::Client,
    mut events: mpsc::Receiver<(String, Bytes)>,
    publisher: u64,
    numbers: Arc<Mutex<HashMap<String, Last>>>,
) {
    let mut signs = tokio::time::interval(SIGN_EACH);
    signs.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let due = tokio::select! {
            event = events.recv() => match event {
                Some(event) => vec![event],
                None => return,
            },
            _ = signs.tick() => signs_of_life(publisher, &numbers),
        };
        for (subject, payload) in due {
            if let Err(error) = client.publish(subject, payload).await {
                // Its number is missing at the listeners, who see a gap.
                tracing::warn!(%error, "event not published");
            }
        }
    }
}

fn signs_of_life(publisher: u64, numbers: &Mutex<HashMap<String, Last>>) -> Vec<(String, Bytes)> {
    let mut numbers = numbers.lock().unwrap_or_else(PoisonError::into_inner);
    let due = numbers.iter_mut().filter(|(_, last)| last.signs_due > 0 && last.next > 0);
    let signs = due.map(|(subject, last)| {
        last.signs_due -= 1;
        (subject.clone(), encode(publisher, last.next - 1, SIGN_OF_LIFE, &[]))
    });
    signs.collect()
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
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let last = numbers.entry(subject.clone()).or_default();
        let number = last.next;
        (last.next, last.signs_due) = (number + 1, SIGNS);
        let framed = encode(self.publisher, number, EVENT, &payload);
        // Under the lock, so that numbers are queued in their order. What does not fit is lost, and
        // its number tells.
        match self.outgoing.try_send((subject, framed)) {
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
        // The server has it before we say so; while NATS is away it is told at the reconnect.
        let flushed = tokio::time::timeout(nats::CONNECT_MAX, self.client.flush()).await;
        if let Ok(Err(error)) = flushed {
            return Err(unavailable(error.into()));
        }
        let shutdown = self.shutdown.clone();
        let heard = Heard::default();
        Ok(Box::new(NatsSubscriber { messages, heard, waiting: None, shutdown }))
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

struct NatsSubscriber {
    messages: async_nats::Subscriber,
    heard: Heard,
    /// An event behind a gap that was told first.
    waiting: Option<Bytes>,
    shutdown: CancellationToken,
}

impl fmt::Debug for NatsSubscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsSubscriber").finish_non_exhaustive()
    }
}

#[async_trait]
impl RawSubscriber for NatsSubscriber {
    async fn recv(&mut self) -> Option<RawDelivery> {
        if let Some(event) = self.waiting.take() {
            return Some(RawDelivery::Event(event));
        }
        loop {
            let message = tokio::select! {
                () = self.shutdown.cancelled() => return None,
                message = self.messages.next() => message?,
            };
            match self.heard.judge(message.payload) {
                Judged::Event(event) => return Some(RawDelivery::Event(event)),
                Judged::Nothing => {}
                Judged::Gap { missed, event } => {
                    self.waiting = event;
                    return Some(RawDelivery::Gap { missed });
                }
            }
        }
    }
}

/// The numbers heard of each publisher; pure.
#[derive(Debug, Default)]
struct Heard {
    next: HashMap<u64, u64>,
}

#[derive(Debug, PartialEq, Eq)]
enum Judged {
    Event(Bytes),
    Nothing,
    /// This many are missing, and then comes the event.
    Gap {
        missed: u64,
        event: Option<Bytes>,
    },
}

impl Heard {
    fn judge(&mut self, mut payload: Bytes) -> Judged {
        let header = (payload.try_get_u64_le(), payload.try_get_u64_le(), payload.try_get_u8());
        let (Ok(publisher), Ok(number), Ok(kind)) = header else {
            tracing::warn!("event without a header");
            return Judged::Gap { missed: 1, event: None };
        };
        let (Some(after), EVENT | SIGN_OF_LIFE) = (number.checked_add(1), kind) else {
            tracing::warn!(number, kind, "event with a header that makes no sense");
            return Judged::Gap { missed: 1, event: None };
        };
        let event = (kind == EVENT).then_some(payload);
        if self.next.len() >= PUBLISHERS_MAX && !self.next.contains_key(&publisher) {
            // Those that ended are not known from those that are silent: start anew.
            self.next.clear();
        }
        // Whoever listens late has lost nothing of what it listens to.
        let expected = *self.next.entry(publisher).or_insert(match event {
            Some(_) => number,
            None => after,
        });
        let missed = match event {
            // A sign of life says that all up to this number were sent.
            None => after.saturating_sub(expected),
            Some(_) => number.saturating_sub(expected),
        };
        if after <= expected {
            // It was heard before, or its loss was told.
            return Judged::Nothing;
        }
        self.next.insert(publisher, after);
        match (missed, event) {
            (0, Some(event)) => Judged::Event(event),
            (missed, event) => Judged::Gap { missed, event },
        }
    }
}

/// Whatever arrives, an event is handed out as it came, and once; each byte of `data` that stands
/// for a length has a message behind it.
///
/// # Panics
/// If not.
#[cfg(any(test, feature = "test-util"))]
pub fn fuzz_event(mut data: &[u8]) {
    let mut heard = Heard::default();
    while let Some((len, rest)) = data.split_first() {
        let (message, rest) = rest.split_at(rest.len().min(usize::from(*len)));
        data = rest;
        for is_repeat in [false, true] {
            match heard.judge(Bytes::copy_from_slice(message)) {
                Judged::Event(event) | Judged::Gap { event: Some(event), .. } => {
                    assert!(!is_repeat && message[HEADER_BYTES..] == event);
                }
                Judged::Gap { missed, .. } => assert!(missed > 0),
                Judged::Nothing => {}
            }
        }
    }
}

fn encode(publisher: u64, number: u64, kind: u8, event: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER_BYTES + event.len());
    out.put_u64_le(publisher);
    out.put_u64_le(number);
    out.put_u8(kind);
    out.put_slice(event);
    out.freeze()
}

const HEADER_BYTES: usize = 17;
const EVENT: u8 = 0;
const SIGN_OF_LIFE: u8 = 1;

/// The last event is repeated as a sign of life this often and for this long: a minute covers any
/// reconnect, and a listener that was away for longer hears the next event.
const SIGN_EACH: Duration = Duration::from_secs(1);
const SIGNS: u32 = 60;

/// Far more processes than publish on one topic.
const PUBLISHERS_MAX: usize = 65_536;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(publisher: u64, number: u64) -> Bytes {
        encode(publisher, number, EVENT, &number.to_le_bytes())
    }

    fn sign(publisher: u64, number: u64) -> Bytes {
        encode(publisher, number, SIGN_OF_LIFE, &[])
    }

    fn judge(messages: &[Bytes]) -> Vec<(u64, bool)> {
        let mut heard = Heard::default();
        messages
            .iter()
            .map(|message| match heard.judge(message.clone()) {
                Judged::Event(_) => (0, true),
                Judged::Nothing => (0, false),
                Judged::Gap { missed, event } => (missed, event.is_some()),
            })
            .collect()
    }

    #[test]
    fn a_loss_shows_at_the_next_event_or_the_next_sign_of_life() {
        let told =
            judge(&[event(1, 5), event(1, 6), event(1, 9), sign(1, 9), sign(1, 11), event(1, 12)]);
        assert_eq!(told, [(0, true), (0, true), (2, true), (0, false), (2, false), (0, true)]);
    }

    #[test]
    fn repeats_are_ignored_publishers_are_apart_and_a_late_listener_has_lost_nothing() {
        let told = judge(&[sign(1, 4), event(1, 5), event(2, 0), event(1, 5), event(2, 1)]);
        assert_eq!(told, [(0, false), (0, true), (0, true), (0, false), (0, true)]);
    }

    #[test]
    fn what_makes_no_sense_is_a_gap_of_one() {
        let bad = [Bytes::from_static(b"x"), encode(1, u64::MAX, EVENT, &[]), encode(1, 1, 7, &[])];
        assert_eq!(judge(&bad), [(1, false); 3]);
    }

    proptest! {
        #[test]
        fn every_event_is_heard_or_counted_as_missed(
            arrives in prop::collection::vec(any::<bool>(), 1..50),
        ) {
            let mut heard = Heard::default();
            heard.judge(event(7, 0));
            let mut told = 1;
            for (number, arrives) in (1..).zip(&arrives) {
                if *arrives {
                    match heard.judge(event(7, number)) {
                        Judged::Event(_) => told += 1,
                        Judged::Gap { missed, event } => told += missed + u64::from(event.is_some()),
                        Judged::Nothing => prop_assert!(false, "a new event is news"),
                    }
                }
            }
            if let Judged::Gap { missed, .. } = heard.judge(sign(7, arrives.len() as u64)) {
                told += missed;
            }
            prop_assert_eq!(told, arrives.len() as u64 + 1);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut heard = Heard::default();
            heard.judge(bytes.clone().into());
            heard.judge(bytes.into());
        }
    }
}
