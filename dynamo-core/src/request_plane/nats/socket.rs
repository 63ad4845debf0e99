use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};

use async_nats::connection::State;
use async_nats::message::OutboundMessage;
use async_nats::{Client, Subject};
use futures::SinkExt;
use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::super::remote::lock;
use super::Published;
use crate::wire::link::{Datagram, Link};

/// One end of a link, between the task that receives for all and the one that drives it.
pub(super) struct End {
    link: Mutex<Link>,
    /// Wakes the task that drives it.
    waker: AtomicWaker,
}

impl End {
    pub(super) fn new(link: Link) -> Arc<Self> {
        Arc::new(Self { link: Mutex::new(link), waker: AtomicWaker::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Link> {
        lock(&self.link)
    }

    /// Takes in a datagram; whoever drives the link is to be told.
    pub(super) fn receive(&self, datagram: Datagram) {
        self.lock().receive(datagram, now());
    }

    /// Wakes the task that drives it.
    pub(super) fn wake(&self) {
        self.waker.wake();
    }

    pub(super) fn on_reconnect(&self) {
        self.lock().on_reconnect(now());
        self.waker.wake();
    }

    pub(super) fn on_absent(&self) {
        self.lock().on_absent(now());
        self.waker.wake();
    }
}

/// The way from a link to NATS.
#[derive(Clone)]
pub(super) struct Outlet {
    pub(super) end: Arc<End>,
    pub(super) client: Client,
    /// Where the peer listens.
    pub(super) subject: Subject,
    /// Where NATS says that nobody does.
    pub(super) absence: Subject,
    pub(super) published: Arc<Published>,
}

impl Outlet {
    /// Publishes what is due, as far as there is room.
    fn publish(&mut self, cx: &mut Context<'_>) {
        // What the client would queue while it is away would come late, and twice.
        if self.client.connection_state() != State::Connected {
            return;
        }
        while self.end.lock().is_due() {
            match self.client.poll_ready_unpin(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return self.end.lock().close(),
                Poll::Pending => return,
            }
            let Some(transmit) = self.end.lock().transmit(now()) else { return };
            self.published.datagrams.fetch_add(1, Ordering::Relaxed);
            self.published.bytes.fetch_add(transmit.bytes.len() as u64, Ordering::Relaxed);
            self.published.repeats.fetch_add(u64::from(transmit.is_repeat), Ordering::Relaxed);
            let message = OutboundMessage {
                subject: self.subject.clone(),
                reply: transmit.is_question.then(|| self.absence.clone()),
                payload: transmit.bytes,
                headers: None,
            };
            if let Err(error) = self.client.start_send_unpin(message) {
                // The link repeats it, or gives up.
                tracing::warn!(%error, "datagram not published");
            }
        }
    }
}

/// What a link hands out, as a stream of bytes; polling it also keeps the link's time.
pub(super) struct Reader {
    outlet: Outlet,
    timer: Pin<Box<Sleep>>,
    /// When the timer fires; later needs do not move it.
    armed: Option<Instant>,
}

impl Reader {
    pub(super) fn new(outlet: Outlet) -> Self {
        Self { outlet, timer: Box::pin(tokio::time::sleep_until(Instant::now())), armed: None }
    }

    /// Polls for what `find` finds in the link.
    fn poll_for<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut find: impl FnMut(&mut Link) -> Option<T>,
    ) -> Poll<T> {
        self.outlet.end.waker.register(cx.waker());
        loop {
            let found = find(&mut self.outlet.end.lock());
            self.outlet.publish(cx);
            if let Some(found) = found {
                return Poll::Ready(found);
            }
            let timeout = self.outlet.end.lock().poll_timeout();
            let Some(at) = timeout.map(Instant::from_std) else { return Poll::Pending };
            if self.armed.is_none_or(|armed| at < armed) {
                self.timer.as_mut().reset(at);
                self.armed = Some(at);
            }
            ready!(self.timer.as_mut().poll(cx));
            self.armed = None;
            self.outlet.end.lock().on_timeout(now());
        }
    }

    /// Waits until all that was sent is acknowledged.
    pub(super) async fn flush(&mut self) {
        let is_over =
            |link: &mut Link| (link.is_flushed() || link.closed().is_some()).then_some(());
        std::future::poll_fn(|cx| self.poll_for(cx, is_over)).await;
    }

    /// Ends the link, and says so to the peer if that can be said at once.
    pub(super) async fn close(&mut self) {
        self.outlet.end.lock().close();
        std::future::poll_fn(|cx| {
            self.outlet.publish(cx);
            Poll::Ready(())
        })
        .await;
    }
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.poll_for(cx, |link| {
            let before = out.remaining();
            while out.remaining() > 0
                && let Some(bytes) = link.recv(out.remaining(), now())
            {
                out.put_slice(&bytes);
            }
            if out.remaining() < before {
                return Some(Ok(()));
            }
            link.closed().map(|error| Err(std::io::Error::other(error)))
        })
    }
}

/// What a link takes, as a stream of bytes.
pub(super) struct Writer(pub(super) Outlet);

impl AsyncWrite for Writer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.0.end.waker.register(cx.waker());
        let (taken, closed) = {
            let mut link = self.0.end.lock();
            (link.send(bytes, now()), link.closed())
        };
        self.0.publish(cx);
        match (taken, closed) {
            (_, Some(error)) => Poll::Ready(Err(std::io::Error::other(error))),
            (0, None) => Poll::Pending,
            (taken, None) => Poll::Ready(Ok(taken)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        // Whoever drives the link ends it.
        Poll::Ready(Ok(()))
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}
