use std::mem;
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;
use futures::FutureExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::connection::{Arrival, Asked, Connection, Stage, State};
use super::{FLUSH_MAX, lock};
use crate::engine::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::wire::session::Event;

/// What moves the bytes of a connection, and tells everyone what has come of it.
pub(super) struct Driver<R, W, F> {
    connection: Connection,
    reader: R,
    writer: W,
    on_arrival: F,
    incoming: BytesMut,
    outgoing: BytesMut,
    /// The transport holds nothing of what was written.
    is_flushed: bool,
    /// The transport takes no more; the peer may have said why.
    is_unwritable: bool,
    was_idle: bool,
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
    /// When what is left after a shutdown is given up.
    leave_by: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    words: Vec<Word>,
}

/// A driver, at work in a task of its own and now and then in that of whoever has something for it.
pub(super) struct Handle<R, W, F>(Mutex<Option<Shift<R, W, F>>>);

struct Shift<R, W, F> {
    driver: Driver<R, W, F>,
    /// Wakes the driver's own task: whoever drives in between waits for nothing.
    waker: Option<Waker>,
    /// What came of it in somebody else's task.
    outcome: Option<Result<()>>,
    has_given_way: bool,
}

/// A [`Handle`], whatever it moves.
pub(super) trait Drive: Send + Sync {
    /// Moves bytes here and now, unless that is being done; tells whether it did.
    fn drive_now(&self) -> bool;
}

impl<R, W, F> Handle<R, W, F>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    F: FnMut(Arrival),
{
    pub(super) fn new(driver: Driver<R, W, F>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(Shift {
            driver,
            waker: None,
            outcome: None,
            has_given_way: false,
        }))))
    }

    /// Moves bytes in the driver's own task; completes when the connection is of no use.
    pub(super) fn poll(&self, cx: &mut TaskContext<'_>) -> Poll<Result<()>> {
        let mut shift = lock(&self.0);
        let Some(Shift { driver, waker, outcome, has_given_way }) = &mut *shift else {
            return Poll::Ready(Ok(()));
        };
        if waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        if let Some(outcome) = outcome.take() {
            return Poll::Ready(outcome);
        }
        // With many streams whoever is ready to run goes first, once for each time this is woken:
        // all of them share what is written then.
        *has_given_way = !*has_given_way && driver.has_many();
        if *has_given_way && pin!(tokio::task::yield_now()).poll(cx).is_pending() {
            return Poll::Pending;
        }
        driver.poll(cx)
    }

    /// Returns the driver, for its end.
    pub(super) fn take(&self) -> Option<Driver<R, W, F>> {
        lock(&self.0).take().map(|shift| shift.driver)
    }
}

impl<R, W, F> Drive for Handle<R, W, F>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
    F: FnMut(Arrival) + Send,
{
    fn drive_now(&self) -> bool {
        let Ok(mut shift) = self.0.try_lock() else { return false };
        let Some(Shift { driver, waker: Some(waker), outcome, .. }) = &mut *shift else {
            return false;
        };
        if outcome.is_none()
            && let Poll::Ready(ended) = driver.poll(&mut TaskContext::from_waker(waker))
        {
            *outcome = Some(ended);
            waker.wake_by_ref();
        }
        true
    }
}

/// What someone has to be told.
enum Word {
    Stage(Stage),
    Arrival(Arrival),
    Wake(Waker),
    Stop(Context),
    Kill(Context),
    Idle(Arc<Notify>),
}

impl<R, W, F> Driver<R, W, F>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    F: FnMut(Arrival),
{
    pub(super) fn new(
        connection: Connection,
        (reader, writer): (R, W),
        shutdown: CancellationToken,
        on_arrival: F,
    ) -> Self {
        Self {
            connection,
            reader,
            writer,
            on_arrival,
            incoming: BytesMut::with_capacity(READ_BYTES),
            outgoing: BytesMut::with_capacity(WRITE_BYTES),
            is_flushed: true,
            is_unwritable: false,
            was_idle: true,
            shutdown: Box::pin(shutdown.cancelled_owned()),
            leave_by: None,
            timer: Box::pin(tokio::time::sleep_until(Instant::now())),
            words: Vec::new(),
        }
    }

    /// Tells whether streams share what is written.
    fn has_many(&self) -> bool {
        lock(&self.connection.0.state).session.streams() > 1
    }

    /// Moves bytes until nothing moves; completes when the connection is of no use.
    pub(super) fn poll(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<()>> {
        // Whatever is queued from here on wakes this task again.
        self.connection.0.due.register(cx.waker());
        if self.poll_time(cx) {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..ROUNDS_MAX {
            match self.poll_write(cx) {
                Ok(false) => {}
                Ok(true) => return Poll::Ready(Ok(())),
                Err(error) => {
                    self.is_unwritable = true;
                    return Poll::Ready(Err(broken(error)));
                }
            }
            match pin!(self.reader.read_buf(&mut self.incoming)).poll(cx).map_err(broken)? {
                Poll::Ready(0) => return Poll::Ready(Ok(())),
                Poll::Ready(_) => self.take_in()?,
                Poll::Pending => return Poll::Pending,
            }
        }
        // Others get their turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes in what the peer said before it could not be written to any more: that may be that
    /// it started nothing.
    async fn hear_out(&mut self) {
        let heard = async {
            while self.reader.read_buf(&mut self.incoming).await.is_ok_and(|bytes| bytes > 0) {
                if self.take_in().is_err() {
                    return;
                }
            }
        };
        // It ends with what was on its way.
        let _ = tokio::time::timeout(FLUSH_MAX, heard).await;
    }

    /// Ends every stream that is left, because of `reason`.
    pub(super) async fn end(mut self, reason: String) {
        if self.is_unwritable {
            self.hear_out().await;
        }
        lock(&self.connection.0.state).session.close(ErrorKind::Unavailable, reason);
        self.dispatch();
        // A word of farewell if it costs no waiting.
        let _ = self.writer.shutdown().now_or_never();
    }

    /// Does what is due by the clock, and begins to leave at a shutdown; tells whether the time to
    /// leave is up.
    fn poll_time(&mut self, cx: &mut TaskContext<'_>) -> bool {
        if self.leave_by.is_none() && self.shutdown.as_mut().poll(cx).is_ready() {
            lock(&self.connection.0.state).session.go_away();
            self.leave();
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if self.leave_by.is_some_and(|at| now >= at) {
                return true;
            }
            let next = {
                let session = &mut lock(&self.connection.0.state).session;
                session.on_timeout(now.into_std());
                // Armed anew only here: what arrives meanwhile costs no timer.
                let next = session.poll_timeout().map(Instant::from_std);
                next.map(|next| next.min(now + session.timeout_max()))
            };
            let next = [next, self.leave_by].into_iter().flatten().min();
            self.timer.as_mut().reset(next.unwrap_or(now).max(now + TICK_MIN));
            self.dispatch();
        }
        false
    }

    /// Gives what is left a moment.
    fn leave(&mut self) {
        let leave_by = Instant::now() + FLUSH_MAX;
        self.leave_by = Some(leave_by);
        self.timer.as_mut().reset(leave_by);
    }

    /// Writes what is due as far as the transport takes it; tells whether nothing is left to do.
    fn poll_write(&mut self, cx: &mut TaskContext<'_>) -> std::io::Result<bool> {
        loop {
            let (is_closed, is_idle, is_awaited) = {
                let state = &mut *lock(&self.connection.0.state);
                let session = &mut state.session;
                if self.outgoing.is_empty() {
                    session.transmit(&mut self.outgoing, WRITE_BYTES);
                }
                let is_idle = session.streams() == 0;
                if is_idle && !self.was_idle {
                    session.note_use(Instant::now().into_std());
                    self.words.extend(state.on_idle.clone().map(Word::Idle));
                }
                self.was_idle = is_idle;
                let (is_closed, is_awaited) = (session.is_closed(), session.has_said_farewell());
                collect(state, &mut self.words);
                (is_closed, is_idle, is_awaited)
            };
            self.tell();
            if is_closed {
                return Ok(true);
            }
            // What crosses a server's farewell is refused, and who is refused hears of it: the
            // client goes first, but not at its leisure.
            if is_awaited && self.leave_by.is_none() {
                self.leave();
            }
            if self.outgoing.is_empty() {
                if !self.is_flushed {
                    self.is_flushed = pin!(self.writer.flush()).poll(cx)?.is_ready();
                }
                return Ok(is_idle && self.is_flushed && !is_awaited && self.is_leaving());
            }
            let write = pin!(self.writer.write_buf(&mut self.outgoing)).poll(cx)?;
            let Poll::Ready(bytes) = write else { return Ok(false) };
            self.is_flushed = false;
            let counters = &self.connection.0.counters;
            counters.writes.fetch_add(1, Ordering::Relaxed);
            counters.written_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// Tells whether the connection ends behind the streams it has.
    fn is_leaving(&self) -> bool {
        self.leave_by.is_some() || *self.connection.0.open.borrow() == Stage::Gone
    }

    /// Takes in what has arrived.
    fn take_in(&mut self) -> Result<()> {
        let taken = {
            let state = &mut *lock(&self.connection.0.state);
            let taken = state.session.receive(&mut self.incoming, Instant::now().into_std());
            // A stream may end before the next write.
            self.was_idle &= state.session.streams() == 0;
            collect(state, &mut self.words);
            taken
        };
        self.incoming.reserve(READ_BYTES);
        self.tell();
        taken
    }

    /// Tells everyone what the session has for them.
    fn dispatch(&mut self) {
        collect(&mut lock(&self.connection.0.state), &mut self.words);
        self.tell();
    }

    /// Whoever is told may come back at once: not under the lock.
    fn tell(&mut self) {
        let mut words = mem::take(&mut self.words);
        for word in words.drain(..) {
            match word {
                Word::Stage(stage) => {
                    self.connection.0.open.send_replace(stage);
                }
                Word::Arrival(arrival) => (self.on_arrival)(arrival),
                Word::Wake(waker) => waker.wake(),
                Word::Stop(ctx) => ctx.stop(),
                Word::Kill(ctx) => ctx.kill(),
                Word::Idle(on_idle) => on_idle.notify_one(),
            }
        }
        self.words = words;
    }
}

/// Collects whom to tell what the session has for them.
fn collect(state: &mut State, words: &mut Vec<Word>) {
    let State { session, waiting, running, .. } = state;
    while let Some(event) = session.poll_event() {
        match event {
            Event::Established => words.push(Word::Stage(Stage::Open)),
            Event::GoingAway => words.push(Word::Stage(Stage::Gone)),
            Event::Opened { stream, head, body } => {
                let (asked, ctx) = Asked::read(*head);
                running.insert(stream, ctx.clone());
                let codec = session.codec();
                words.push(Word::Arrival(Arrival { stream, ctx, asked, body, codec }));
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

fn broken(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, format!("the connection broke: {error}"))
}

/// A few hundred small messages, or four frames of a large one.
const READ_BYTES: usize = 64 << 10;
const WRITE_BYTES: usize = 64 << 10;

/// Reads at once, beyond which other tasks come first.
const ROUNDS_MAX: usize = 32;

/// Keeps a timer that is due from spinning.
const TICK_MIN: Duration = Duration::from_millis(10);
