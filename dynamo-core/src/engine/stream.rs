use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Instant;

use futures::Stream;
use tokio::sync::mpsc;

use super::Context;
use super::cancel::Reached;
use crate::error::{Error, Result};
use crate::time::{Clock, SystemClock};

/// The stream that answers a request.
///
/// Ends in exactly one terminal event: complete (`None`), one error (`Some(Err)`, then `None`), or
/// being dropped. It enforces the context itself: a kill or the deadline ends it even if the engine
/// behind it hangs. When it ends, guards put inside are released; when it ends otherwise than
/// complete, its context is killed so that work behind it stops. A stream that nobody polls holds
/// its guards until it is dropped; the work behind it ends at a kill or the deadline all the same.
#[must_use = "dropping the stream cancels the request"]
pub struct ResponseStream<T> {
    live: Option<Live<T>>,
    ctx: Context,
}

/// What is held until the terminal event; the order of fields is the order of release.
struct Live<T> {
    items: Items<T>,
    rest: Box<Rest>,
}

/// What does not depend on the items: apart, so that a stream is small and quick to move.
struct Rest {
    killed: Reached,
    deadline: Option<Pin<Box<tokio::time::Sleep>>>,
    guards: Vec<Box<dyn Send>>,
    told: Vec<Told>,
    span: tracing::Span,
    items_taken: u64,
    first_item: Option<Instant>,
}

/// Who is told how a stream went.
type Told = Box<dyn FnOnce(&Course<'_>) + Send>;

/// How a stream went.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Course<'a> {
    /// How it ended.
    pub ending: Ending<'a>,
    /// How many items were taken.
    pub items: u64,
    /// When the first one was.
    pub first_item: Option<Instant>,
}

/// How a stream ended.
#[derive(Debug, Clone, Copy)]
pub enum Ending<'a> {
    /// The answer is complete.
    Complete,
    /// It failed.
    Failed(&'a Error),
    /// Its reader dropped it first.
    Dropped,
}

type Items<T> = Pin<Box<dyn Stream<Item = Result<T>> + Send>>;

impl<T> ResponseStream<T> {
    /// Wraps `items` so that they obey `ctx`.
    ///
    /// # Panics
    /// If `ctx` has a deadline and the caller is outside a tokio runtime with time enabled.
    pub fn new(ctx: &Context, items: impl Stream<Item = Result<T>> + Send + 'static) -> Self {
        let rest = Rest {
            killed: ctx.kill_reached(),
            deadline: ctx.deadline().map(|at| Box::pin(tokio::time::sleep_until(at.into()))),
            guards: Vec::new(),
            told: Vec::new(),
            span: tracing::Span::none(),
            items_taken: 0,
            first_item: None,
        };
        let live = Live { items: Box::pin(items), rest: Box::new(rest) };
        Self { live: Some(live), ctx: ctx.clone() }
    }

    /// Creates a stream of items that are known already.
    pub fn from_items<I>(ctx: &Context, items: I) -> Self
    where
        I: IntoIterator<Item = T, IntoIter: Send + 'static>,
        T: 'static,
    {
        Self::new(ctx, futures::stream::iter(items.into_iter().map(Ok)))
    }

    /// Creates a stream fed through a sender, with room for `capacity` items.
    ///
    /// The sender may live on another task or thread; it waits while the stream is full.
    ///
    /// # Panics
    /// If `capacity` is 0.
    pub fn channel(ctx: &Context, capacity: usize) -> (ResponseSender<T>, Self)
    where
        T: Send + 'static,
    {
        let (items, mut receiver) = mpsc::channel(capacity);
        let terminal = Terminal::default();
        let sender = ResponseSender { items, terminal: Arc::clone(&terminal), ctx: ctx.clone() };
        let items = futures::stream::poll_fn(move |cx| {
            receiver.poll_recv(cx).map(|item| match item {
                Some(item) => Some(Ok(item)),
                None => match terminal.lock().unwrap_or_else(PoisonError::into_inner).take() {
                    Some(Ok(())) => None,
                    Some(Err(error)) => Some(Err(error)),
                    // A producer that vanishes must not look like a complete answer.
                    None => Some(Err(Error::internal("engine dropped the stream before its end"))),
                },
            })
        });
        (sender, Self::new(ctx, items))
    }

    /// Turns each item into what `map` makes of it; guards and context stay.
    pub fn map<U>(
        mut self,
        mut map: impl FnMut(T) -> Result<U> + Send + 'static,
    ) -> ResponseStream<U>
    where
        T: 'static,
    {
        let live = self.live.take().map(|Live { items, rest }| {
            let items = futures::StreamExt::map(items, move |item| map(item?));
            Live { items: Box::pin(items), rest }
        });
        ResponseStream { live, ctx: self.ctx.clone() }
    }

    /// Puts `guard` inside the stream: it is released when the stream ends or is dropped.
    pub fn with_guard(mut self, guard: impl Send + 'static) -> Self {
        if let Some(live) = &mut self.live {
            live.rest.guards.push(Box::new(guard));
        }
        self
    }

    /// Polls the stream inside `span`.
    pub fn in_span(mut self, span: tracing::Span) -> Self {
        if let Some(live) = &mut self.live {
            live.rest.span = span;
        }
        self
    }

    /// Tells `told` how the stream went, once it has ended and before its guards are released.
    pub fn on_end(mut self, told: impl FnOnce(&Course<'_>) + Send + 'static) -> Self {
        if let Some(live) = &mut self.live {
            live.rest.told.push(Box::new(told));
        }
        self
    }

    /// Returns the context that the stream obeys.
    pub fn context(&self) -> &Context {
        &self.ctx
    }

    /// Receives the next item; `None` after the terminal event.
    ///
    /// # Cancel safety
    /// Cancel safe: no item is lost.
    pub async fn next(&mut self) -> Option<Result<T>> {
        futures::StreamExt::next(self).await
    }

    /// Receives all items up to the end, or the error that ended the stream.
    ///
    /// # Cancel safety
    /// Not cancel safe: items received so far are dropped with the future.
    pub async fn collect(mut self) -> Result<Vec<T>> {
        let mut items = Vec::new();
        while let Some(item) = self.next().await {
            items.push(item?);
        }
        Ok(items)
    }

    fn end(&mut self, ending: Ending<'_>) {
        let Some(mut live) = self.live.take() else { return };
        let rest = &mut live.rest;
        let (items, first_item) = (rest.items_taken, rest.first_item);
        let _in_span = rest.span.clone().entered();
        for told in std::mem::take(&mut rest.told) {
            told(&Course { ending, items, first_item });
        }
        drop(live);
        if !matches!(ending, Ending::Complete) {
            self.ctx.kill();
        }
    }
}

impl<T> Stream for ResponseStream<T> {
    type Item = Result<T>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some(Live { items, rest }) = &mut this.live else { return Poll::Ready(None) };
        // A look at the context is cheap; being woken by it is arranged for only when waiting.
        let terminal = match this.ctx.check() {
            Err(error) => Some(Err(error)),
            Ok(()) => match rest.span.in_scope(|| items.as_mut().poll_next(cx)) {
                Poll::Ready(Some(Ok(item))) => {
                    rest.items_taken += 1;
                    // The time is of interest only to those who are told.
                    if rest.items_taken == 1 && !rest.told.is_empty() {
                        rest.first_item = Some(SystemClock.now());
                    }
                    return Poll::Ready(Some(Ok(item)));
                }
                Poll::Ready(terminal) => terminal,
                Poll::Pending => {
                    let is_due =
                        |at: &mut Pin<Box<tokio::time::Sleep>>| at.as_mut().poll(cx).is_ready();
                    if rest.deadline.as_mut().is_some_and(is_due) {
                        Some(Err(this.ctx.deadline_error()))
                    } else if Pin::new(&mut rest.killed).poll(cx).is_ready() {
                        Some(Err(this.ctx.cancelled_error()))
                    } else {
                        return Poll::Pending;
                    }
                }
            },
        };
        this.end(match &terminal {
            Some(Err(error)) => Ending::Failed(error),
            _ => Ending::Complete,
        });
        Poll::Ready(terminal)
    }
}

impl<T> Drop for ResponseStream<T> {
    fn drop(&mut self) {
        self.end(Ending::Dropped);
    }
}

impl<T> fmt::Debug for ResponseStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseStream")
            .field("ctx", &self.ctx)
            .field("ended", &self.live.is_none())
            .finish_non_exhaustive()
    }
}

/// The producing end of [`ResponseStream::channel`].
///
/// Dropping it without [`finish`](Self::finish) or [`fail`](Self::fail) ends the stream with an
/// [`Internal`](crate::ErrorKind::Internal) error: a producer that panics never looks complete.
pub struct ResponseSender<T> {
    items: mpsc::Sender<T>,
    terminal: Terminal,
    ctx: Context,
}

/// How the stream ends once its last item is taken: beside the queue, so that ending never waits.
type Terminal = Arc<Mutex<Option<Result<()>>>>;

impl<T> ResponseSender<T> {
    /// Sends one item, waiting while the stream is full.
    ///
    /// Fails with [`Cancelled`](crate::ErrorKind::Cancelled) once nobody listens, and at a kill or
    /// the deadline even if the reader has stopped to read.
    ///
    /// # Cancel safety
    /// If the future is dropped, the item was not sent.
    pub async fn send(&self, item: T) -> Result<()> {
        match self.items.try_send(item) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(self.ctx.cancelled_error()),
            Err(mpsc::error::TrySendError::Full(item)) => {
                let sent =
                    async { self.items.send(item).await.map_err(|_| self.ctx.cancelled_error()) };
                self.ctx.bound(sent).await
            }
        }
    }

    /// Sends one item from a thread that may block.
    ///
    /// Fails like [`send`](Self::send).
    ///
    /// # Panics
    /// If called on an async worker thread, or on a thread that knows no tokio runtime (those of
    /// `spawn_blocking` do).
    pub fn send_blocking(&self, item: T) -> Result<()> {
        tokio::runtime::Handle::current().block_on(self.send(item))
    }

    /// Completes the stream once its items are taken.
    pub fn finish(self) {
        self.settle(Ok(()));
    }

    /// Ends the stream with `error` once its items are taken.
    pub fn fail(self, error: Error) {
        self.settle(Err(error));
    }

    /// Ends the stream: complete on `Ok`, with the error on `Err`.
    pub fn settle(self, outcome: Result<()>) {
        *self.terminal.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
    }

    /// Tells whether the stream has ended or was dropped.
    pub fn is_closed(&self) -> bool {
        self.items.is_closed()
    }

    /// Returns the context of the stream.
    pub fn context(&self) -> &Context {
        &self.ctx
    }
}

impl<T> fmt::Debug for ResponseSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseSender").field("ctx", &self.ctx).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::error::ErrorKind;

    #[tokio::test]
    async fn a_stream_delivers_its_items_completes_once_and_leaves_the_context_alive() {
        let ctx = Context::new();
        let mut stream = ResponseStream::from_items(&ctx, [1, 2]);
        assert_eq!(stream.next().await.unwrap().unwrap(), 1);
        assert_eq!(stream.next().await.unwrap().unwrap(), 2);
        assert!(stream.next().await.is_none());
        assert!(stream.next().await.is_none());
        drop(stream);
        assert!(!ctx.is_killed());
    }

    #[tokio::test]
    async fn nothing_follows_an_error_and_the_context_is_killed() {
        let ctx = Context::new();
        let items = futures::stream::iter([Ok(1), Err(Error::internal("boom")), Ok(2)]);
        let mut stream = ResponseStream::new(&ctx, items);
        assert_eq!(stream.next().await.unwrap().unwrap(), 1);
        assert_eq!(stream.next().await.unwrap().unwrap_err().kind(), ErrorKind::Internal);
        assert!(stream.next().await.is_none());
        assert!(ctx.is_killed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_hanging_engine_ends_at_the_deadline_or_the_kill() {
        let ctx = Context::new().with_timeout(Duration::from_secs(1));
        let mut stream = ResponseStream::<u8>::new(&ctx, futures::stream::pending());
        let error = stream.next().await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
        assert!(ctx.is_killed() && stream.next().await.is_none());

        let ctx = Context::new();
        let mut stream = ResponseStream::<u8>::new(&ctx, futures::stream::pending());
        ctx.kill();
        assert_eq!(stream.next().await.unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
    }

    #[tokio::test]
    async fn guards_are_released_at_the_end_of_the_stream_or_with_it() {
        let guard = Arc::new(());
        let ctx = Context::new();
        let mut stream = ResponseStream::from_items(&ctx, [1]).with_guard(Arc::clone(&guard));
        assert!(stream.next().await.is_some());
        assert_eq!(Arc::strong_count(&guard), 2);
        assert!(stream.next().await.is_none());
        assert_eq!(Arc::strong_count(&guard), 1);

        let stream = ResponseStream::from_items(&ctx, [1]).with_guard(Arc::clone(&guard));
        drop(stream);
        assert_eq!(Arc::strong_count(&guard), 1);
        assert!(ctx.is_killed());
    }

    #[tokio::test]
    async fn whoever_asked_is_told_once_how_the_stream_ended() {
        let told = Arc::<Mutex<Vec<(String, u64)>>>::default();
        let failing = futures::stream::iter([Ok(1), Err(Error::internal("boom"))]);
        let streams = [
            ResponseStream::from_items(&Context::new(), [1]),
            ResponseStream::new(&Context::new(), failing),
            ResponseStream::new(&Context::new(), futures::stream::pending()),
        ];
        for (at, stream) in streams.into_iter().enumerate() {
            let told = Arc::clone(&told);
            let mut stream = stream.map(Ok).on_end(move |course| {
                let ending = match course.ending {
                    Ending::Complete => "complete".to_owned(),
                    Ending::Failed(error) => error.message().to_owned(),
                    Ending::Dropped => "dropped".to_owned(),
                };
                assert_eq!(course.first_item.is_some(), course.items > 0);
                told.lock().unwrap().push((ending, course.items));
            });
            while at < 2 && stream.next().await.is_some() {}
        }
        let expected = [("complete", 1), ("boom", 1), ("dropped", 0)];
        assert_eq!(*told.lock().unwrap(), expected.map(|(how, items)| (how.to_owned(), items)));
    }

    #[tokio::test]
    async fn a_mapped_stream_keeps_its_guards_and_ends_at_an_error_of_the_map() {
        let (ctx, guard) = (Context::new(), Arc::new(()));
        let stream = ResponseStream::from_items(&ctx, [1, 2, 3]).with_guard(Arc::clone(&guard));
        let map = |n| if n < 3 { Ok(n * 10) } else { Err(Error::internal("three")) };
        let mut stream = stream.map(map);
        assert_eq!(stream.next().await.unwrap().unwrap(), 10);
        assert_eq!(stream.next().await.unwrap().unwrap(), 20);
        assert_eq!(Arc::strong_count(&guard), 2);
        assert_eq!(stream.next().await.unwrap().unwrap_err().message(), "three");
        assert!(stream.next().await.is_none() && ctx.is_killed());
        assert_eq!(Arc::strong_count(&guard), 1);
        assert!(!ResponseStream::from_items(&Context::new(), [1]).map(Ok).context().is_killed());
    }

    #[tokio::test]
    async fn a_sender_that_vanishes_never_looks_complete() {
        let (sender, mut stream) = ResponseStream::channel(&Context::new(), 1);
        sender.send(1).await.unwrap();
        drop(sender);
        assert_eq!(stream.next().await.unwrap().unwrap(), 1);
        assert_eq!(stream.next().await.unwrap().unwrap_err().kind(), ErrorKind::Internal);

        let (sender, mut stream) = ResponseStream::<u8>::channel(&Context::new(), 1);
        sender.finish();
        assert!(stream.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stops_reading_holds_nobody_past_the_kill_or_the_deadline() {
        let ctx = Context::new().with_timeout(Duration::from_secs(1));
        let (sender, unread) = ResponseStream::channel(&ctx, 1);
        sender.send(1).await.unwrap();
        assert_eq!(sender.send(2).await.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
        drop(unread);

        let ctx = Context::new();
        let (sender, mut unread) = ResponseStream::channel(&ctx, 1);
        sender.send(1).await.unwrap();
        let mut waiting = Box::pin(sender.send(2));
        assert!(futures::poll!(&mut waiting).is_pending());
        ctx.kill();
        assert_eq!(waiting.await.unwrap_err().kind(), ErrorKind::Cancelled);
        // Ending does not wait for room.
        sender.fail(Error::internal("out of patience"));
        assert_eq!(unread.next().await.unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
    }

    #[tokio::test]
    async fn a_blocking_sender_waits_for_room_and_ends_with_the_request() {
        let ctx = Context::new();
        let (sender, mut stream) = ResponseStream::channel(&ctx, 1);
        let thread =
            tokio::task::spawn_blocking(move || (0..).find_map(|n| sender.send_blocking(n).err()));
        assert_eq!(stream.next().await.unwrap().unwrap(), 0);
        assert_eq!(stream.next().await.unwrap().unwrap(), 1);
        ctx.kill();
        assert_eq!(thread.await.unwrap().unwrap().kind(), ErrorKind::Cancelled);
    }

    #[tokio::test]
    async fn a_sender_learns_that_the_stream_was_dropped() {
        let (sender, stream) = ResponseStream::channel(&Context::new(), 1);
        drop(stream);
        assert!(sender.is_closed() && sender.context().is_killed());
        assert_eq!(sender.send(1).await.unwrap_err().kind(), ErrorKind::Cancelled);
    }
}
