use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::driver::{Drive, Driver, Handle};
use super::{Counters, Share, Shares, lock};
use crate::discovery::Instance;
use crate::engine::{Context, Priority, RequestId};
use crate::error::{Error, ErrorKind, Result};
use crate::wire::codec::Codec;
use crate::wire::head::Head;
use crate::wire::session::{Recv, Session, StreamIds};

/// A session that a task drives; cheap to clone.
#[derive(Clone)]
pub(crate) struct Connection(pub(super) Arc<Shared>, Option<Vouch>);

/// Fails if the peer has not shown that it may answer for an instance.
pub(crate) type Vouch = Arc<dyn Fn(&Instance) -> Result<()> + Send + Sync>;

pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    since: Instant,
    /// Wakes the driver: there is something to send.
    pub(super) due: AtomicWaker,
    /// The driver itself, while it drives.
    driver: OnceLock<Weak<dyn Drive>>,
    /// Whether streams can be opened.
    pub(super) open: watch::Sender<Stage>,
    pub(super) counters: Arc<Counters>,
}

pub(super) struct State {
    pub(super) session: Session,
    /// Who waits for a stream: at the client to read, at the server to write.
    pub(super) waiting: HashMap<u32, Waker, StreamIds>,
    /// At the server: the contexts of the requests that run.
    pub(super) running: HashMap<u32, Context, StreamIds>,
    /// Who is told when the last stream has ended.
    pub(super) on_idle: Option<Arc<Notify>>,
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Greeting,
    Open,
    Gone,
}

/// A request that has arrived.
pub(crate) struct Arrival {
    pub(crate) stream: u32,
    /// Cancelled from here on as the client asks for.
    pub(crate) ctx: Context,
    pub(crate) asked: Asked,
    pub(crate) body: Bytes,
    /// How it and its answer are encoded.
    pub(crate) codec: Codec,
}

/// What a request is for.
pub(crate) struct Asked {
    /// Endpoint and instance.
    pub(crate) key: (String, u64),
    pub(crate) incarnation: u64,
    pub(crate) is_probe: bool,
}

impl Connection {
    pub(crate) fn new(session: Session, counters: Arc<Counters>) -> Self {
        counters.connections.fetch_add(1, Ordering::Relaxed);
        let (waiting, running) = (HashMap::default(), HashMap::default());
        let state = State { session, waiting, running, on_idle: None };
        let open = watch::Sender::new(Stage::Greeting);
        let (state, due, since) = (Mutex::new(state), AtomicWaker::new(), Instant::now());
        let driver = OnceLock::new();
        Self(Arc::new(Shared { state, since, due, driver, open, counters }), None)
    }

    /// Lets [`check`](Self::check) ask `vouch`.
    pub(crate) fn vouched_by(self, vouch: Option<Vouch>) -> Self {
        Self(self.0, vouch)
    }

    /// Fails if the peer is known not to be `instance`.
    pub(crate) fn check(&self, instance: &Instance) -> Result<()> {
        self.1.as_ref().map_or(Ok(()), |vouch| vouch(instance))
    }

    /// Takes no more streams and ends behind those it has, unless it was made only just before;
    /// tells whether it does.
    pub(crate) fn retire(&self, age_min: Duration) -> bool {
        let is_old = self.0.since.elapsed() >= age_min;
        if is_old {
            self.0.open.send_replace(Stage::Gone);
            self.flush();
        }
        is_old
    }

    /// Lets the peer run as many requests at once as its share is, until that is dropped.
    pub(crate) fn share(&self, shares: &Arc<Shares>) -> Share {
        let own = self.clone();
        shares.join(move |streams_max| {
            lock(&own.0.state).session.set_streams_max(streams_max);
            own.flush();
        })
    }

    /// Waits until streams can be opened, or never will.
    pub(crate) async fn greeted(&self) -> Stage {
        let mut open = self.0.open.subscribe();
        // The sender lives in self.
        let stage = open.wait_for(|stage| *stage != Stage::Greeting).await;
        stage.map_or(Stage::Gone, |stage| *stage)
    }

    /// Returns why the connection is of no use, once it is not.
    pub(crate) fn why_gone(&self) -> String {
        lock(&self.0.state).session.why_closed().unwrap_or("the peer is going away").to_owned()
    }

    /// Tells whether streams can be opened, as far as anyone here has heard.
    pub(crate) fn is_open(&self) -> bool {
        *self.0.open.borrow() == Stage::Open && lock(&self.0.state).session.is_open()
    }

    /// Counts as idle from here on, and tells `on_idle` whenever the last stream has ended.
    pub(crate) fn tell_idle(&self, on_idle: &Arc<Notify>) {
        let mut state = lock(&self.0.state);
        state.session.begin_idle(Instant::now().into_std());
        state.on_idle = Some(Arc::clone(on_idle));
    }

    /// Returns since when no stream runs, if the connection could carry some.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        lock(&self.0.state).session.idle_since().map(Instant::from_std)
    }

    /// At the server: takes no more streams, and ends, if it has been idle for `patience`; tells
    /// whether it does.
    pub(crate) fn leave_if_idle(&self, patience: Duration) -> bool {
        let session = &mut lock(&self.0.state).session;
        let idle_since = session.idle_since().map(Instant::from_std);
        let is_idle = idle_since.is_some_and(|since| since.elapsed() >= patience);
        if is_idle {
            session.go_away();
            self.flush();
        }
        is_idle
    }

    /// Opens a stream for a request.
    pub(crate) fn open(&self, head: &Head, body: Bytes) -> Result<u32> {
        let id = lock(&self.0.state).session.open(head, body)?;
        self.push();
        Ok(id)
    }

    /// Waits until the engine has given its stream, or fails with why it did not.
    pub(crate) async fn started(&self, id: u32) -> Result<()> {
        std::future::poll_fn(|cx| {
            let mut state = lock(&self.0.state);
            if !state.session.is_decided(id) {
                let _displaced = state.waiting.insert(id, cx.waker().clone());
                drop(state);
                return Poll::Pending;
            }
            if state.session.is_accepted(id) {
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(match state.session.recv(id) {
                Recv::Failed(error) => Err(error),
                _ => Err(Error::new(ErrorKind::Protocol, "an answer to a request not started")),
            })
        })
        .await
    }

    /// Polls for what has arrived on a client's stream: takes some of the messages that are there, or
    /// how the stream ended.
    pub(crate) fn poll_recv(
        &self,
        id: u32,
        messages: &mut VecDeque<Bytes>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<()>>> {
        let mut state = lock(&self.0.state);
        let mut bytes = 0;
        let ended = loop {
            match state.session.recv(id) {
                Recv::Message(message) => {
                    bytes += message.len();
                    messages.push_back(message);
                    // What is left holds its credit until somebody reads so far.
                    if bytes >= TAKEN_BYTES || messages.len() >= TAKEN_MAX {
                        break Some(Ok(()));
                    }
                }
                Recv::Pending if messages.is_empty() => {
                    let _displaced = state.waiting.insert(id, cx.waker().clone());
                    drop(state);
                    return Poll::Pending;
                }
                Recv::Pending => break Some(Ok(())),
                Recv::Complete => break None,
                Recv::Failed(error) => break Some(Err(error)),
            }
        };
        let session = &state.session;
        // A grant is to be sent, or the driver may have nothing left to do.
        let is_due = session.has_control() || session.is_closed();
        let is_last = session.streams() == 0;
        drop(state);
        if is_due || is_last && *self.0.open.borrow() == Stage::Gone {
            self.push();
        }
        Poll::Ready(ended)
    }

    pub(crate) fn stop(&self, id: u32) {
        lock(&self.0.state).session.stop(id);
        self.flush();
    }

    pub(crate) fn kill(&self, id: u32) {
        let mut state = lock(&self.0.state);
        let _waiter = state.waiting.remove(&id);
        state.session.kill(id);
        drop(state);
        self.flush();
    }

    /// Queues the word that the engine has given its stream; [`flush`](Self::flush) sends it.
    pub(crate) fn accept(&self, id: u32) {
        lock(&self.0.state).session.accept(id);
    }

    /// Wakes the driver for what is queued.
    pub(crate) fn flush(&self) {
        self.0.due.wake();
    }

    /// Sends what is queued: here and now if it cannot get company, else by waking the driver.
    pub(crate) fn push(&self) {
        if !self.drive_alone() {
            self.flush();
        }
    }

    /// Moves bytes within the caller's task if there is at most one stream to share the work, unless
    /// somebody else does; tells whether it did.
    ///
    /// After three tasks that woke each other tokio wakes another thread for the next, which costs
    /// more than a request: so one that is alone on its connection wakes nobody.
    pub(crate) fn drive_alone(&self) -> bool {
        let is_alone = lock(&self.0.state).session.streams() <= 1;
        let driver = self.0.driver.get().filter(|_| is_alone).and_then(Weak::upgrade);
        driver.is_some_and(|driver| driver.drive_now())
    }

    /// Queues messages of an answer, up to the first error; tells whether there is room for more.
    /// [`flush`](Self::flush) sends them.
    pub(crate) fn send(&self, id: u32, messages: Vec<Result<Bytes>>) -> Result<bool> {
        let mut state = lock(&self.0.state);
        let sent = messages.into_iter().try_for_each(|message| state.session.send(id, message?));
        sent.map(|()| state.session.has_room(id))
    }

    /// Waits while too much of an answer is queued.
    pub(crate) async fn room(&self, id: u32) -> Result<()> {
        std::future::poll_fn(|cx| {
            let mut state = lock(&self.0.state);
            if state.session.has_room(id) {
                return Poll::Ready(Ok(()));
            }
            let _displaced = state.waiting.insert(id, cx.waker().clone());
            drop(state);
            Poll::Pending
        })
        .await
    }

    /// Ends an answer; [`push`](Self::push) or [`flush`](Self::flush) sends it.
    pub(crate) fn settle(&self, id: u32, outcome: Result<()>) {
        let mut state = lock(&self.0.state);
        let _over = (state.running.remove(&id), state.waiting.remove(&id));
        match outcome {
            Ok(()) => state.session.finish(id),
            Err(error) => state.session.fail(id, error),
        }
    }

    /// Moves bytes until the connection is of no use, or `shutdown` fires; then every stream ends.
    ///
    /// Requests that arrive are handed to `on_arrival`.
    pub(crate) async fn drive(
        self,
        halves: (impl AsyncRead + Unpin + Send + 'static, impl AsyncWrite + Unpin + Send + 'static),
        shutdown: CancellationToken,
        on_arrival: impl FnMut(Arrival) + Send + 'static,
    ) {
        let handle = Handle::new(Driver::new(self.clone(), halves, shutdown, on_arrival));
        // A connection is driven once.
        let _ = self.0.driver.set(Arc::downgrade(&handle) as Weak<dyn Drive>);
        let outcome = std::future::poll_fn(|cx| handle.poll(cx)).await;
        let reason = match outcome {
            Ok(()) => "the connection was closed".to_owned(),
            Err(error) => error.message().to_owned(),
        };
        if let Some(driver) = handle.take() {
            driver.end(reason).await;
        }
    }
}

impl Asked {
    /// Reads from `head` what a request is for, and its context.
    pub(super) fn read(head: Head) -> (Self, Context) {
        let mut ctx = Context::with_id(RequestId::from(&*head.request))
            .with_priority(Priority::new(head.priority).unwrap_or(Priority::NORMAL))
            .with_rank(head.rank);
        if let Some(trace) = head.trace {
            ctx = ctx.with_trace(trace);
        }
        for (key, value) in head.metadata {
            ctx = ctx.with_metadata(key, value);
        }
        if let Some(remaining) = head.remaining {
            ctx = ctx.with_timeout(remaining);
        }
        let key = (head.endpoint, head.instance);
        (Self { key, incarnation: head.incarnation, is_probe: head.is_probe }, ctx)
    }
}

/// What a reader takes at once; a lock for each message would cost more than the message.
const TAKEN_BYTES: usize = 32 << 10;
const TAKEN_MAX: usize = 256;
