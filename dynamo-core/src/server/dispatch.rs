use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use futures::{FutureExt, StreamExt, stream};
use tracing::field::Empty;
use tracing::{Instrument, Span};

use super::canary::Activity;
use super::inflight::Inflight;
use super::totals::ServerTotals;
use crate::engine::{Context, Engine, ResponseStream};
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::TraceContext;
use crate::time::{Clock, SystemClock};

/// Puts the server's rules around a user's engine: admission, deadline, cancellation, and a panic
/// that fails one request only.
#[derive(Debug)]
pub(super) struct Dispatch<E> {
    pub(super) engine: E,
    pub(super) inflight: Arc<Inflight>,
    pub(super) totals: Arc<ServerTotals>,
    pub(super) activity: Option<Arc<Activity>>,
}

impl<E: Engine> Engine for Dispatch<E> {
    type Request = E::Request;
    type Response = E::Response;

    async fn generate(
        &self,
        ctx: Context,
        request: E::Request,
    ) -> Result<ResponseStream<E::Response>> {
        let (totals, started) = (Arc::clone(&self.totals), SystemClock.now());
        let span = self.span(&ctx);
        match self.start(ctx, request, &span).instrument(span.clone()).await {
            Ok(stream) => Ok(stream.in_span(span).on_end(move |course| {
                totals.measures.ended(started, course);
            })),
            Err(error) => {
                totals.measures.refused(&error);
                Err(error)
            }
        }
    }
}

impl<E: Engine> Dispatch<E> {
    async fn start(
        &self,
        ctx: Context,
        request: E::Request,
        span: &Span,
    ) -> Result<ResponseStream<E::Response>> {
        // Work whose deadline has passed, or whose client has gone, never starts.
        ctx.check()?;
        let inflight = Arc::clone(&self.inflight);
        let mut served = inflight.context(&ctx);
        if let Some(trace) = ctx.trace().map(TraceContext::child) {
            served = served.with_trace(trace);
            trace.record(span);
        }
        let permit = inflight.admit(&served).await?;
        let start = AssertUnwindSafe(self.engine.generate(served.clone(), request)).catch_unwind();
        let start = async { start.await.unwrap_or_else(|p| Err(panicked(&*p))) };
        // An engine that was killed may say so in its own way.
        let start = served.bound(start).await;
        let items = start.map_err(|error| if inflight.is_gone() { went_away() } else { error })?;
        let mut items = AssertUnwindSafe(items)
            .catch_unwind()
            .map(|item| item.unwrap_or_else(|payload| Err(panicked(&*payload))));
        let activity = self.activity.clone();
        let mut killed = served.kill_reached();
        let items = stream::poll_fn(move |cx| {
            // Also of a stream that is always ready.
            if inflight.is_gone() {
                return Poll::Ready(Some(Err(went_away())));
            }
            match items.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(item))) => {
                    activity.as_deref().into_iter().for_each(Activity::note);
                    Poll::Ready(Some(Ok(item)))
                }
                Poll::Ready(_) if inflight.is_gone() => Poll::Ready(Some(Err(went_away()))),
                Poll::Ready(end) => Poll::Ready(end),
                // A stream of another context may not notice.
                Poll::Pending => match Pin::new(&mut killed).poll(cx) {
                    Poll::Ready(()) if inflight.is_gone() => Poll::Ready(Some(Err(went_away()))),
                    _ => Poll::Pending,
                },
            }
        });
        Ok(ResponseStream::new(&ctx, items).with_guard(permit))
    }

    fn span(&self, ctx: &Context) -> Span {
        let ServerTotals { endpoint, instance, .. } = &*self.totals;
        let span = tracing::info_span!(
            "serve", %endpoint, %instance, request = %ctx.id(),
            trace = Empty, span = Empty, parent = Empty
        );
        if let Some(trace) = ctx.trace().filter(|_| !span.is_disabled()) {
            span.record(
                "parent",
                tracing::field::display(format_args!("{:016x}", trace.span_id())),
            );
        }
        span
    }
}

/// What a client is told whose work the instance ended.
fn went_away() -> Error {
    Error::new(ErrorKind::Unavailable, "instance went away before it had answered")
}

fn panicked(payload: &(dyn Any + Send)) -> Error {
    Error::panicked("engine", payload)
}
