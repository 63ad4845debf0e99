use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::{Counters, FLUSH_MAX, lock};
use crate::discovery::Instance;
use crate::engine::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::wire::codec::Codec;
use crate::wire::head::Head;
use crate::wire::session::{Event, Recv, Session};

/// A session that a task drives; cheap to clone.
#[derive(Clone)]
pub(crate) struct Connection(Arc<Shared>, Option<Vouch>);

/// Fails if the peer has not shown that it may answer for an instance.
pub(crate) type Vouch = Arc<dyn Fn(&Instance) -> Result<()> + Send + Sync>;

struct Shared {
    state: Mutex<State>,
    since: Instant,
    /// Wakes the driver: there is something to send.
    due: Notify,
    /// Whether streams can be opened.
    open: watch::Sender<Stage>,
    counters: Arc<Counters>,
}

struct State {
    session: Session,
    /// Who waits for a stream: at the client to read, at the server to write.
    waiting: HashMap<u32, Waker>,
    /// At the server: the contexts of the requests that run.
    running: HashMap<u32, Context>,
    /// At the client: requests whose kill the driver has to look out for, and does not yet.
    watches: Vec<Watch>,
}

/// Completes with the stream once its request is killed.
struct Watch {
    id: u32,
    killed: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Nobody waits for the answer any more: the watch may go, and nobody is woken for that.
    is_over: Arc<AtomicBool>,
}

impl Future for Watch {
    type Output = u32;

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<u32> {
        self.killed.as_mut().poll(cx).map(|()| self.id)
    }
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
    pub(crate) head: Head,
    pub(crate) body: Bytes,
}

impl Connection {
    pub(crate) fn new(session: Session, counters: Arc<Counters>) -> Self {
        counters.connections.fetch_add(1, Ordering::Relaxed);
        let (waiting, running, watches) = (HashMap::new(), HashMap::new(), Vec::new());
        let state = State { session, waiting, running, watches };
        let open = watch::Sender::new(Stage::Greeting);
        let (state, due, since) = (Mutex::new(state), Notify::new(), Instant::now());
        Self(Arc::new(Shared { state, since, due, open, counters }), None)
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

    /// Returns since when no stream runs, if the connection could carry some.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        lock(&self.0.state).session.idle_since().map(Instant::from_std)
    }

    /// At the server: takes no more streams, and ends, if none runs; tells whether it does.
    pub(crate) fn leave_if_idle(&self) -> bool {
        let session = &mut lock(&self.0.state).session;
        let is_idle = session.idle_since().is_some();
        if is_idle {
            session.go_away();
            self.flush();
        }
        is_idle
    }

    /// Opens a stream for the request of `ctx`: a kill reaches the server even if nobody reads the
    /// answer. The driver looks out for it until `is_over` is set.
    pub(crate) fn open(
        &self,
        ctx: &Context,
        head: &Head,
        body: Bytes,
        is_over: Arc<AtomicBool>,
    ) -> Result<u32> {
        let killed = Box::pin(ctx.kill_token().clone().cancelled_owned());
        let mut state = lock(&self.0.state);
        let id = state.session.open(head, body)?;
        state.watches.push(Watch { id, killed, is_over });
        drop(state);
        self.flush();
        Ok(id)
    }

    /// Waits until the server has started the request, or fails with why it did not.
    pub(crate) async fn started(&self, id: u32) -> Result<()> {
        std::future::poll_fn(|cx| {
            let mut state = lock(&self.0.state);
            if !state.session.is_decided(id) {
                state.waiting.insert(id, cx.waker().clone());
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

    /// Polls for what has arrived on a client's stream: takes all messages that are there, or how
    /// the stream ended.
    pub(crate) fn poll_recv(
        &self,
        id: u32,
        messages: &mut VecDeque<Bytes>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<()>>> {
        let mut state = lock(&self.0.state);
        let ended = loop {
            match state.session.recv(id) {
                Recv::Message(message) => messages.push_back(message),
                Recv::Pending if messages.is_empty() => {
                    state.waiting.insert(id, cx.waker().clone());
                    return Poll::Pending;
                }
                Recv::Pending => break Some(Ok(())),
                Recv::Complete => break None,
                Recv::Failed(error) => break Some(Err(error)),
            }
        };
        let has_grant = state.session.has_control();
        drop(state);
        if has_grant {
            self.flush();
        }
        Poll::Ready(ended)
    }

    pub(crate) fn stop(&self, id: u32) {
        lock(&self.0.state).session.stop(id);
        self.flush();
    }

    pub(crate) fn kill(&self, id: u32) {
        let mut state = lock(&self.0.state);
        state.waiting.remove(&id);
        state.session.kill(id);
        drop(state);
        self.flush();
    }

    /// Notes the context of a request that runs; returns how its messages are encoded if its
    /// stream is still there.
    pub(crate) fn run_in(&self, id: u32, ctx: &Context) -> Option<Codec> {
        let mut state = lock(&self.0.state);
        let is_there = state.session.has_stream(id);
        if is_there {
            state.running.insert(id, ctx.clone());
        }
        is_there.then(|| state.session.codec())
    }

    /// Queues the word that a request was started; [`flush`](Self::flush) sends it.
    pub(crate) fn accept(&self, id: u32) {
        lock(&self.0.state).session.accept(id);
    }

    /// Wakes the driver for what is queued.
    pub(crate) fn flush(&self) {
        self.0.due.notify_one();
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
            state.waiting.insert(id, cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Ends an answer.
    pub(crate) fn settle(&self, id: u32, outcome: Result<()>) {
        let mut state = lock(&self.0.state);
        state.running.remove(&id);
        state.waiting.remove(&id);
        match outcome {
            Ok(()) => state.session.finish(id),
            Err(error) => state.session.fail(id, error),
        }
        drop(state);
        self.flush();
    }

    /// Moves bytes until the connection is of no use, or `shutdown` fires; then every stream ends.
    ///
    /// Requests that arrive are handed to `on_arrival`.
    pub(crate) async fn drive(
        self,
        (mut reader, mut writer): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
        shutdown: CancellationToken,
        mut on_arrival: impl FnMut(Arrival),
    ) {
        let halves = (&mut reader, &mut writer);
        let outcome = self.exchange(halves, &shutdown, &mut on_arrival).await;
        let reason = match outcome {
            Ok(()) => "the connection was closed".to_owned(),
            Err(error) => error.message().to_owned(),
        };
        lock(&self.0.state).session.close(ErrorKind::Unavailable, reason);
        self.dispatch(&mut on_arrival);
        // A word of farewell if it costs no waiting.
        let _ = writer.shutdown().now_or_never();
    }

    async fn exchange(
        &self,
        (reader, writer): (&mut (impl AsyncRead + Unpin), &mut (impl AsyncWrite + Unpin)),
        shutdown: &CancellationToken,
        on_arrival: &mut impl FnMut(Arrival),
    ) -> Result<()> {
        let mut incoming = BytesMut::with_capacity(READ_BYTES);
        let mut outgoing = BytesMut::with_capacity(WRITE_BYTES);
        let (mut is_flushed, mut was_idle) = (true, true);
        let mut watches = FuturesUnordered::<Watch>::new();
        let mut leave_by: Option<Instant> = None;
        let timer = tokio::time::sleep_until(Instant::now());
        tokio::pin!(timer);
        loop {
            let (is_closed, is_idle, is_awaited) = {
                let State { session, watches: new, .. } = &mut *lock(&self.0.state);
                watches.extend(new.drain(..));
                if outgoing.is_empty() {
                    session.transmit(&mut outgoing, WRITE_BYTES);
                }
                if watches.len() > 2 * session.streams() + WATCHES_SPARE {
                    let running = |watch: &Watch| !watch.is_over.load(Ordering::Relaxed);
                    watches = std::mem::take(&mut watches).into_iter().filter(running).collect();
                }
                let is_idle = session.streams() == 0;
                if is_idle && !was_idle {
                    session.note_use(Instant::now().into_std());
                }
                was_idle = is_idle;
                (session.is_closed(), is_idle, session.has_said_farewell())
            };
            self.dispatch(on_arrival);
            let is_leaving = leave_by.is_some() || *self.0.open.borrow() == Stage::Gone;
            let is_done = is_leaving && is_idle && outgoing.is_empty() && is_flushed;
            // What crosses a server's farewell is refused, and who is refused hears of it: the
            // client goes first, but not at its leisure.
            if is_closed || (is_done && !is_awaited) {
                return Ok(());
            }
            if is_awaited && leave_by.is_none() {
                leave_by = Some(Instant::now() + FLUSH_MAX);
                timer.as_mut().reset(Instant::now() + FLUSH_MAX);
            }
            tokio::select! {
                read = reader.read_buf(&mut incoming) => {
                    if read.map_err(broken)? == 0 {
                        return Ok(());
                    }
                    let now = Instant::now().into_std();
                    lock(&self.0.state).session.receive(&mut incoming, now)?;
                    incoming.reserve(READ_BYTES);
                }
                written = self.write(writer, &mut outgoing, &mut is_flushed),
                    if !outgoing.is_empty() || !is_flushed => {
                        if let Err(error) = written {
                            self.hear_out(reader, &mut incoming).await;
                            return Err(broken(error));
                        }
                    }
                () = self.0.due.notified(), if outgoing.is_empty() => {}
                Some(killed) = watches.next(), if !watches.is_empty() => self.kill(killed),
                () = &mut timer => {
                    let now = Instant::now();
                    if leave_by.is_some_and(|at| now >= at) {
                        return Ok(());
                    }
                    let session = &mut lock(&self.0.state).session;
                    session.on_timeout(now.into_std());
                    // Armed anew only here: what arrives meanwhile costs no timer.
                    let next = session.poll_timeout().map(Instant::from_std);
                    let next = [next, leave_by].into_iter().flatten().min();
                    timer.as_mut().reset(next.unwrap_or(now).max(now + TICK_MIN));
                }
                () = shutdown.cancelled(), if leave_by.is_none() => {
                    leave_by = Some(Instant::now() + FLUSH_MAX);
                    timer.as_mut().reset(Instant::now() + FLUSH_MAX);
                    lock(&self.0.state).session.go_away();
                }
            }
        }
    }

    /// Takes in what the peer said before it could not be written to any more: that may be that
    /// it started nothing.
    async fn hear_out(&self, reader: &mut (impl AsyncRead + Unpin), incoming: &mut BytesMut) {
        let heard = async {
            while reader.read_buf(incoming).await.is_ok_and(|bytes| bytes > 0) {
                let now = Instant::now().into_std();
                if lock(&self.0.state).session.receive(incoming, now).is_err() {
                    return;
                }
            }
        };
        // It ends with what was on its way.
        let _ = tokio::time::timeout(FLUSH_MAX, heard).await;
    }

    /// Writes what is due, and what the transport still holds of it; cancel safe.
    async fn write(
        &self,
        writer: &mut (impl AsyncWrite + Unpin),
        outgoing: &mut BytesMut,
        is_flushed: &mut bool,
    ) -> std::io::Result<()> {
        if !outgoing.is_empty() {
            let bytes = writer.write_buf(outgoing).await? as u64;
            *is_flushed = false;
            self.0.counters.writes.fetch_add(1, Ordering::Relaxed);
            self.0.counters.written_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        if outgoing.is_empty() {
            writer.flush().await?;
            *is_flushed = true;
        }
        Ok(())
    }

    /// Tells everyone what the session has for them.
    fn dispatch(&self, on_arrival: &mut impl FnMut(Arrival)) {
        let mut words = Vec::new();
        {
            let State { session, waiting, running, .. } = &mut *lock(&self.0.state);
            while let Some(event) = session.poll_event() {
                match event {
                    Event::Established => words.push(Word::Stage(Stage::Open)),
                    Event::GoingAway => words.push(Word::Stage(Stage::Gone)),
                    Event::Opened { stream, head, body } => {
                        words.push(Word::Arrival(Arrival { stream, head, body }));
                    }
                    Event::Readable(id) | Event::Writable(id) => {
                        words.extend(waiting.remove(&id).map(Word::Wake));
                    }
                    Event::Stopped(id) => words.extend(running.get(&id).cloned().map(Word::Stop)),
                    Event::Killed(id) => {
                        words.extend(running.remove(&id).map(Word::Kill));
                        words.extend(waiting.remove(&id).map(Word::Wake));
                    }
                }
            }
        }
        // Whoever is told may come back at once: not under the lock.
        for word in words {
            match word {
                Word::Stage(stage) => {
                    self.0.open.send_replace(stage);
                }
                Word::Arrival(arrival) => on_arrival(arrival),
                Word::Wake(waker) => waker.wake(),
                Word::Stop(ctx) => ctx.stop(),
                Word::Kill(ctx) => ctx.kill(),
            }
        }
    }
}

/// What someone has to be told.
enum Word {
    Stage(Stage),
    Arrival(Arrival),
    Wake(Waker),
    Stop(Context),
    Kill(Context),
}

fn broken(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, format!("the connection broke: {error}"))
}

/// A few hundred small messages, or four frames of a large one.
const READ_BYTES: usize = 64 << 10;
const WRITE_BYTES: usize = 64 << 10;

/// Watches of requests that are over are swept out now and then, not one by one.
const WATCHES_SPARE: usize = 64;

/// Keeps a timer that is due from spinning.
const TICK_MIN: Duration = Duration::from_millis(10);
