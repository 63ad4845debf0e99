use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;
use std::task::{self, Poll};
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use tokio::time::{Sleep, sleep_until};

use crate::engine::{Context, Engine, ResponseStream};
use crate::error::{Error, ErrorKind, Result};
use crate::time::{Clock, SystemClock};

/// How long an answer may take, as a whole and in its parts; nothing is bounded by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TimeoutPolicy {
    /// From the call to the end of the stream. It is a deadline that travels with the request.
    pub total: Option<Duration>,
    /// From the call to the first item, or to the end of a stream without one.
    pub first_item: Option<Duration>,
    /// How long the reader may have to wait for an item after the first one, or for the end.
    pub between_items: Option<Duration>,
}

impl TimeoutPolicy {
    /// Bounds the whole answer.
    #[must_use]
    pub fn with_total(mut self, total: Duration) -> Self {
        self.total = Some(total);
        self
    }

    /// Bounds the time to the first item.
    #[must_use]
    pub fn with_first_item(mut self, first_item: Duration) -> Self {
        self.first_item = Some(first_item);
        self
    }

    /// Bounds the wait for each item after the first one.
    #[must_use]
    pub fn with_between_items(mut self, between_items: Duration) -> Self {
        self.between_items = Some(between_items);
        self
    }
}

/// Which bound of a [`TimeoutPolicy`] was exceeded: the source of the error that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exceeded {
    /// The answer was not complete in this time.
    Total(Duration),
    /// There was no item in this time.
    FirstItem(Duration),
    /// There was no further item in this time.
    BetweenItems(Duration),
}

impl Exceeded {
    /// Returns the bound that made `error`, if it was one.
    pub fn of(error: &Error) -> Option<Self> {
        error.source()?.downcast_ref().copied()
    }

    fn error(self, ctx: &Context) -> Error {
        Error::new(ErrorKind::DeadlineExceeded, format!("request {}", ctx.id())).with_source(self)
    }
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Total(bound) => write!(f, "no end within {bound:?}"),
            Self::FirstItem(bound) => write!(f, "no first item within {bound:?}"),
            Self::BetweenItems(bound) => write!(f, "no further item within {bound:?}"),
        }
    }
}

impl StdError for Exceeded {}

/// Ends answers that take too long with [`DeadlineExceeded`](ErrorKind::DeadlineExceeded), and
/// kills the work behind them; the error's source is the [`Exceeded`] bound.
///
/// The bounds live with the stream. An item that is there is always delivered first: a reader that
/// takes its time is not the engine's fault.
#[derive(Debug, Clone)]
pub struct Timeout<E> {
    engine: E,
    policy: TimeoutPolicy,
}

impl<E> Timeout<E> {
    /// Bounds the answers of `engine` by `policy`.
    pub fn new(engine: E, policy: TimeoutPolicy) -> Self {
        Self { engine, policy }
    }
}

impl<E: Engine> Engine for Timeout<E> {
    type Request = E::Request;
    type Response = E::Response;

    async fn generate(
        &self,
        ctx: Context,
        request: E::Request,
    ) -> Result<ResponseStream<E::Response>> {
        let mut bounds = Bounds::new(&ctx, self.policy);
        let start = bounds.inside.bound(self.engine.generate(bounds.inside.clone(), request));
        let started = tokio::select! {
            biased;
            started = start => started,
            error = bounds.item.exceeded(&ctx) => Err(error),
        };
        let mut items = match started {
            Ok(items) => items,
            Err(error) => {
                bounds.inside.kill();
                return Err(bounds.explain(error));
            }
        };
        let items = stream::poll_fn(move |cx| match items.poll_next_unpin(cx) {
            Poll::Ready(Some(Ok(item))) => {
                bounds.item.restart();
                Poll::Ready(Some(Ok(item)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(bounds.explain(error)))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => bounds.item.poll(cx).map(|bound| Some(Err(bound.error(&bounds.ctx)))),
        });
        Ok(ResponseStream::new(&ctx, items))
    }
}

/// The bounds of one answer.
struct Bounds {
    ctx: Context,
    /// What the engine works in: it carries the bound of the whole as its deadline.
    inside: Context,
    total: Option<Duration>,
    item: ItemBound,
}

impl Bounds {
    fn new(ctx: &Context, policy: TimeoutPolicy) -> Self {
        let now = SystemClock.now();
        let inside = match policy.total {
            Some(total) => ctx.child().with_timeout(total),
            None => ctx.child(),
        };
        // A bound beyond the caller's own deadline is none.
        let total = policy.total.filter(|_| inside.deadline() != ctx.deadline());
        let first = policy.first_item.map(Exceeded::FirstItem);
        let item = ItemBound {
            awaited: first,
            timer: policy.first_item.and_then(|bound| timer(now, bound)),
            between: policy.between_items,
        };
        Self { ctx: ctx.clone(), inside, total, item }
    }

    /// Names the bound of the whole if it is what made `error`.
    fn explain(&self, error: Error) -> Error {
        let is_over = self.inside.remaining().is_some_and(|left| left.is_zero());
        match self.total {
            Some(total) if is_over && error.kind() == ErrorKind::DeadlineExceeded => {
                if Exceeded::of(&error).is_some() {
                    return error;
                }
                Exceeded::Total(total).error(&self.ctx)
            }
            _ => error,
        }
    }
}

/// The bound of the item that is awaited.
struct ItemBound {
    awaited: Option<Exceeded>,
    /// Runs out when the awaited item is too late; none until somebody waits.
    timer: Option<Pin<Box<Sleep>>>,
    between: Option<Duration>,
}

impl ItemBound {
    /// An item is there: the next one's time begins once somebody waits for it.
    fn restart(&mut self) {
        self.awaited = self.between.map(Exceeded::BetweenItems);
        self.timer = None;
    }

    fn poll(&mut self, cx: &mut task::Context<'_>) -> Poll<Exceeded> {
        let Some(awaited) = self.awaited else { return Poll::Pending };
        if self.timer.is_none()
            && let Exceeded::BetweenItems(bound) = awaited
        {
            self.timer = timer(SystemClock.now(), bound);
        }
        match &mut self.timer {
            Some(timer) => timer.as_mut().poll(cx).map(|()| awaited),
            None => Poll::Pending,
        }
    }

    async fn exceeded(&mut self, ctx: &Context) -> Error {
        std::future::poll_fn(|cx| self.poll(cx)).await.error(ctx)
    }
}

/// A bound beyond the end of time is none.
fn timer(from: Instant, bound: Duration) -> Option<Pin<Box<Sleep>>> {
    Some(Box::pin(sleep_until(from.checked_add(bound)?.into())))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::engine::engine_fn;

    const SECOND: Duration = Duration::from_secs(1);

    /// An engine whose start and items take the given times, and the context it was last given.
    fn slow(
        start: Duration,
        items: Vec<Duration>,
    ) -> (Arc<Mutex<Context>>, impl Engine<Request = (), Response = usize>) {
        let seen = Arc::new(Mutex::new(Context::new()));
        let noted = Arc::clone(&seen);
        let engine = engine_fn(move |ctx: Context, (): ()| {
            *noted.lock().unwrap() = ctx.clone();
            let items = items.clone();
            async move {
                tokio::time::sleep(start).await;
                let items =
                    stream::iter(items.into_iter().enumerate()).then(|(index, took)| async move {
                        tokio::time::sleep(took).await;
                        Ok(index)
                    });
                Ok(ResponseStream::new(&ctx, items))
            }
        });
        (seen, engine)
    }

    /// Returns how many items came, and what ended the answer, if it did not complete.
    async fn answer(
        engine: &impl Engine<Request = (), Response = usize>,
        ctx: &Context,
    ) -> (usize, Option<Error>) {
        let mut stream = match engine.generate(ctx.clone(), ()).await {
            Ok(stream) => stream,
            Err(error) => return (0, Some(error)),
        };
        let mut count = 0;
        while let Some(item) = stream.next().await {
            match item {
                Ok(_) => count += 1,
                Err(error) => return (count, Some(error)),
            }
        }
        (count, None)
    }

    #[tokio::test(start_paused = true)]
    async fn each_bound_ends_the_answer_says_which_it_was_and_kills_the_work() {
        let all = TimeoutPolicy::default()
            .with_total(10 * SECOND)
            .with_first_item(3 * SECOND)
            .with_between_items(2 * SECOND);
        let cases = [
            (4 * SECOND, vec![SECOND], 0, Exceeded::FirstItem(3 * SECOND)),
            (2 * SECOND, vec![2 * SECOND], 0, Exceeded::FirstItem(3 * SECOND)),
            (SECOND, vec![SECOND, SECOND, 3 * SECOND], 2, Exceeded::BetweenItems(2 * SECOND)),
            (SECOND / 2, vec![SECOND; 20], 9, Exceeded::Total(10 * SECOND)),
        ];
        for (start, items, count, exceeded) in cases {
            let (seen, engine) = slow(start, items);
            let outcome = answer(&Timeout::new(engine, all), &Context::new()).await;
            let error = outcome.1.unwrap();
            assert_eq!((outcome.0, error.kind()), (count, ErrorKind::DeadlineExceeded));
            assert_eq!(Exceeded::of(&error), Some(exceeded));
            assert!(seen.lock().unwrap().is_killed());
        }
        let (_, engine) = slow(11 * SECOND, vec![]);
        let policy = TimeoutPolicy::default().with_total(10 * SECOND);
        let (_, error) = answer(&Timeout::new(engine, policy), &Context::new()).await;
        assert_eq!(Exceeded::of(&error.unwrap()), Some(Exceeded::Total(10 * SECOND)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_keeps_its_times_is_left_alone_and_so_is_the_callers_own_deadline() {
        let policy =
            TimeoutPolicy::default().with_total(60 * SECOND).with_first_item(Duration::MAX);
        let (_, engine) = slow(SECOND, vec![SECOND, SECOND]);
        let engine = Timeout::new(engine, policy);
        let ctx = Context::new();
        assert!(matches!(answer(&engine, &ctx).await, (2, None)));
        assert!(!ctx.is_killed());

        let ctx = Context::new().with_timeout(2 * SECOND);
        let (count, error) = answer(&engine, &ctx).await;
        let error = error.unwrap();
        assert_eq!((count, error.kind()), (0, ErrorKind::DeadlineExceeded));
        assert_eq!(Exceeded::of(&error), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_its_time_costs_the_engine_nothing() {
        let policy = TimeoutPolicy::default().with_between_items(2 * SECOND);
        let (_, engine) = slow(SECOND, vec![SECOND, SECOND, SECOND]);
        let mut stream = Timeout::new(engine, policy).generate(Context::new(), ()).await.unwrap();
        for index in 0..3 {
            tokio::time::sleep(60 * SECOND).await;
            assert_eq!(stream.next().await.unwrap().unwrap(), index);
        }
        assert!(stream.next().await.is_none());
    }
}
