use std::future::{Future, poll_fn};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::frame::{Access, Head, Request, STATUS_BYTES, Status};
use super::job::Flight;
use super::pipeline::Pipeline;
use super::queue::{Next, Notice, Queue, Work};
use super::stream::{Arrival, STALL_MAX, recv, recv_memory, send, send_memory, within};
use crate::backend::Operation;
use crate::backend::connection::broken;
use crate::descriptor::Ranges;
use crate::error::{Error, ErrorKind, Result};
use crate::inbound::Inbound;
use crate::memory::Right;
use crate::peer::PeerAddress;
use crate::vocabulary::Priority;
use crate::wire::protocol;

/// The connections to one peer, and what waits for them.
///
/// Each lane takes the next stripe of whatever is most urgent; jobs of one priority take turns. A
/// lane asks for a stripe before the one ahead of it has arrived.
pub(super) struct Lanes {
    own: Arc<Inbound>,
    peer: Arc<PeerAddress>,
    pub(super) lanes_max: usize,
    queue: Mutex<Queue>,
    /// Something is queued.
    due: Notify,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// What has been asked of the peer and not been answered.
enum Asked {
    Stripe(Flight),
    Notice(oneshot::Sender<Result<()>>),
}

impl Lanes {
    pub(super) fn new(
        own: &Arc<Inbound>,
        peer: &Arc<PeerAddress>,
        lanes_max: usize,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            own: Arc::clone(own),
            peer: Arc::clone(peer),
            lanes_max,
            queue: Mutex::default(),
            due: Notify::new(),
            tasks: tasks.clone(),
            shutdown: shutdown.clone(),
        })
    }

    /// Queues work, unless the agent has shut down.
    pub(super) fn push(self: &Arc<Self>, work: Work, priority: Priority) {
        let _unwanted = {
            let mut queue = self.lock();
            if queue.is_closed {
                drop(queue);
                return work.fail(&Error::shut_down());
            }
            queue.push(work, priority);
            self.call(&mut queue);
            queue.sweep()
        };
    }

    /// Gives up what is queued, and all that is yet to come: the agent shuts down.
    fn close(&self) {
        let left = {
            let mut queue = self.lock();
            queue.is_closed = true;
            queue.drain()
        };
        left.into_iter().for_each(|work| work.fail(&Error::shut_down()));
    }

    /// Tells whether the peer was not reached, a moment ago.
    pub(super) fn is_away(&self) -> bool {
        let queue = self.lock();
        queue.connected == 0 && queue.retry_at.is_some_and(|at| Instant::now() < at)
    }

    /// Tells whether no lane is left.
    pub(super) fn is_asleep(&self) -> bool {
        self.lock().lanes == 0
    }

    /// Calls a lane for what is queued: an idle one, or one more.
    fn call(self: &Arc<Self>, queue: &mut Queue) {
        if queue.idle > 0 {
            self.due.notify_one();
        } else if queue.lanes < self.lanes_max {
            queue.lanes += 1;
            let lanes = Arc::clone(self);
            self.tasks.spawn(async move {
                let shutdown = lanes.shutdown.clone();
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => lanes.close(),
                    () = lanes.lane() => {}
                }
            });
        }
    }

    /// One lane, until it has been idle for long or the peer cannot be reached.
    async fn lane(self: &Arc<Self>) {
        loop {
            let retry_at = self.lock().retry_at;
            if let Some(at) = retry_at {
                tokio::time::sleep_until(at).await;
            }
            match self.connect().await {
                Ok(stream) => {
                    {
                        let mut queue = self.lock();
                        (queue.failures, queue.retry_at) = (0, None);
                        queue.connected += 1;
                    }
                    let ended = self.drive(&stream).await;
                    self.lock().connected -= 1;
                    if let Err(error) = ended {
                        tracing::debug!(%error, peer = self.peer.name, "lane broke");
                    }
                }
                Err(error) => self.unreachable(&error),
            }
            let mut queue = self.lock();
            if queue.is_empty() {
                queue.lanes -= 1;
                return;
            }
        }
    }

    async fn connect(&self) -> Result<TcpStream> {
        let address = self.peer.tcp.ok_or_else(|| {
            Error::new(ErrorKind::BackendUnavailable, "peer offers no TCP address")
        })?;
        let unreachable =
            || Error::new(ErrorKind::Unreachable, format!("cannot connect to {address}"));
        let stream = within(CONNECT_MAX, TcpStream::connect(address)).await;
        let stream = stream.map_err(|error| unreachable().with_source(error))?;
        stream.set_nodelay(true).map_err(|error| unreachable().with_source(error))?;
        let hello = Request::Hello(self.own.hello(&self.peer));
        send(&stream, &hello.encode()).await?;
        answer(&stream, CONNECT_MAX).await??;
        Ok(stream)
    }

    /// Gives up what is queued, unless another lane has a connection.
    fn unreachable(&self, error: &Error) {
        let given_up = {
            let mut queue = self.lock();
            queue.retry_at = Some(Instant::now() + BACK_OFF * (1 << queue.failures.min(7)));
            queue.failures += 1;
            if queue.connected > 0 { Vec::new() } else { queue.drain() }
        };
        given_up.into_iter().for_each(|work| work.fail(error));
    }

    /// Asks and takes answers, at the same time; ends when it has been idle for long.
    async fn drive(self: &Arc<Self>, stream: &TcpStream) -> Result<()> {
        let asked = Pipeline::new(ASKED_MAX);
        let answer = async {
            while let Some(next) = asked.next().await {
                match next {
                    Asked::Stripe(flight) => receive(stream, flight).await?,
                    Asked::Notice(settle) => {
                        // Nobody waits for a notification that was dropped.
                        let _ = settle.send(answer(stream, STALL_MAX).await?);
                    }
                }
            }
            Ok(())
        };
        let ask = async {
            loop {
                asked.room().await;
                let Some(next) = self.next(stream, &asked).await? else { return Ok(()) };
                asked.push(ask(stream, next).await?);
            }
        };
        asked.run(ask, answer).await
    }

    /// Waits for something to ask; `None` when there was nothing for long. Fails if the peer leaves
    /// meanwhile.
    async fn next(
        self: &Arc<Self>,
        stream: &TcpStream,
        asked: &Pipeline<Asked>,
    ) -> Result<Option<Next>> {
        loop {
            let due = {
                let mut queue = self.lock();
                if let Some(next) = queue.next() {
                    if !queue.is_empty() {
                        self.call(&mut queue);
                    }
                    return Ok(Some(next));
                }
                queue.idle += 1;
                self.due.notified()
            };
            let _idle = Idle(self);
            let mut due = std::pin::pin!(tokio::time::timeout(IDLE_MAX, due));
            let woken = poll_fn(|cx| {
                // Looked at first: what is due would be lost on a connection that has ended.
                if asked.is_idle()
                    && let Poll::Ready(ended) = poll_end(stream, cx)
                {
                    return Poll::Ready(Err(ended));
                }
                due.as_mut().poll(cx).map(Ok)
            });
            if woken.await?.is_err() {
                return Ok(None);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a lane among those that have nothing to do, until it is dropped.
struct Idle<'a>(&'a Lanes);

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        self.0.lock().idle -= 1;
    }
}

/// Waits for the end of a connection over which nothing is to come.
fn poll_end(stream: &TcpStream, cx: &mut Context<'_>) -> Poll<Error> {
    let mut byte = [0];
    let mut peeked = ReadBuf::new(&mut byte);
    stream.poll_peek(cx, &mut peeked).map(|peeked| match peeked {
        Ok(0) => broken(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) => protocol("an answer to nothing"),
        Err(error) => broken(error),
    })
}

/// Asks the peer; a write goes out whole.
async fn ask(stream: &TcpStream, next: Next) -> Result<Asked> {
    match next {
        Next::Notice(Notice { payload, settle }) => {
            send(stream, &Request::Notify(payload).encode()).await?;
            Ok(Asked::Notice(settle))
        }
        Next::Stripe(flight) => {
            let operation = &flight.job.operation;
            let ranges = Ranges::unchecked(flight.stripe.remote());
            let Operation { remote_id: region, token, is_checked, .. } = **operation;
            let access = Access { region, token, ranges, is_checked };
            operation.begin();
            match operation.right {
                Right::Read => send(stream, &Request::Read(access).encode()).await?,
                Right::Write => {
                    let (head, memory) =
                        (Request::Write(access).encode(), operation.local.memory());
                    send_memory(stream, &head, memory, flight.stripe.local(), is_checked).await?;
                }
            }
            Ok(Asked::Stripe(flight))
        }
    }
}

/// Takes the answer for a stripe.
async fn receive(stream: &TcpStream, flight: Flight) -> Result<()> {
    if let Err(error) = answer(stream, STALL_MAX).await? {
        flight.failed(error);
        return Ok(());
    }
    let Operation { right, local, is_checked, .. } = &*flight.job.operation;
    if *right == Right::Read {
        let (nothing, places) = (&mut BytesMut::new(), flight.stripe.local());
        let arrival = recv_memory(stream, nothing, local.memory(), places, *is_checked).await?;
        if let Arrival::Corrupted(error) = arrival {
            flight.failed(error);
            return Ok(());
        }
    }
    flight.arrived();
    Ok(())
}

/// Receives what the owner answers; fails if the connection does.
async fn answer(stream: &TcpStream, patience: Duration) -> Result<Status> {
    let mut head = [0; STATUS_BYTES];
    recv(stream, &mut head, patience).await?;
    let head = Head::decode(head)?;
    let mut reason = vec![0; head.reason_bytes];
    recv(stream, &mut reason, STALL_MAX).await?;
    Ok(head.status(&reason))
}

/// A host that is there answers within this even over long distance.
const CONNECT_MAX: Duration = Duration::from_secs(3);

/// Half of what a server waits, so that a lane in use is not closed at that moment.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// Stripes asked for ahead of the one that is arriving: the way there costs no time then.
const ASKED_MAX: usize = 2;

/// How soon a peer that could not be reached is tried again; twice as long each time, at most 1.28 s.
const BACK_OFF: Duration = Duration::from_millis(10);
