use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Poll;

use futures::{FutureExt, StreamExt, stream};
use tracing::field::Empty;
use tracing::{Instrument, Span};

use super::canary::Activity;
use super::inflight::Inflight;
use crate::engine::{Context, Engine, Measures, Names, ResponseStream};
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::{self, Sample, Source, plain};
use crate::name::EndpointPath;
use crate::protocol::{InstanceId, TraceContext};
use crate::time::{Clock, SystemClock};

/// Puts the server's rules around a user's engine: admission, deadline, cancellation, and a panic
/// that fails one request only.
#[derive(Debug)]
pub(super) struct Dispatch<E> {
    pub(super) engine: E,
    pub(super) served: Arc<Served>,
    pub(super) activity: Option<Arc<Activity>>,
}

/// What is served, and how that goes.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) endpoint: EndpointPath,
    pub(super) instance: InstanceId,
    pub(super) inflight: Arc<Inflight>,
    pub(super) measures: Measures,
}

impl<E: Engine> Engine for Dispatch<E> {
    type Request = E::Request;
    type Response = E::Response;

    async fn generate(
        &self,
        ctx: Context,
        request: E::Request,
    ) -> Result<ResponseStream<E::Response>> {
        let (served, started) = (Arc::clone(&self.served), SystemClock.now());
        let span = self.span(&ctx);
        match self.start(ctx, request, &span).instrument(span.clone()).await {
            Ok(stream) => Ok(stream.in_span(span).on_end(move |course| {
                served.measures.ended(started, course);
            })),
            Err(error) => {
                served.measures.refused(&error);
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
        // A context of the instance's own: ending it is no hang-up of the client.
        let mut served = ctx.child();
        if let Some(trace) = ctx.trace().map(TraceContext::child) {
            served = served.with_trace(trace);
            trace.record(span);
        }
        let inflight = Arc::clone(&self.served.inflight);
        let guard = inflight.admit(&served).await?;
        let start = AssertUnwindSafe(self.engine.generate(served, request)).catch_unwind();
        let start = async { start.await.unwrap_or_else(|p| Err(panicked(&*p))) };
        let mut gone = Box::pin(inflight.gone().clone().cancelled_owned());
        let items = tokio::select! {
            biased;
            () = &mut gone => return Err(went_away()),
            items = ctx.bound(start) => items?,
        };
        let mut items = AssertUnwindSafe(items)
            .catch_unwind()
            .map(|item| item.unwrap_or_else(|payload| Err(panicked(&*payload))));
        let activity = self.activity.clone();
        let items = stream::poll_fn(move |cx| match items.poll_next_unpin(cx) {
            Poll::Ready(Some(Ok(item))) => {
                activity.as_deref().into_iter().for_each(Activity::note);
                Poll::Ready(Some(Ok(item)))
            }
            // The engine was killed, and may say so in its own way.
            Poll::Ready(_) if inflight.gone().is_cancelled() => Poll::Ready(Some(Err(went_away()))),
            Poll::Ready(end) => Poll::Ready(end),
            Poll::Pending => gone.as_mut().poll(cx).map(|()| Some(Err(went_away()))),
        });
        Ok(ResponseStream::new(&ctx, items).with_guard(guard))
    }

    fn span(&self, ctx: &Context) -> Span {
        let Served { endpoint, instance, .. } = &*self.served;
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

impl Source for Served {
    fn collect(&self, samples: &mut Vec<Sample>) {
        let labels =
            [("endpoint", self.endpoint.to_string()), ("instance", self.instance.to_string())];
        self.measures.collect(&NAMES, &labels, samples);
        let admission = self.inflight.admission();
        plain(metrics::SERVER_RUNNING, &labels, admission.running() as u64, samples);
        plain(metrics::SERVER_WAITING, &labels, admission.waiting() as u64, samples);
    }
}

const NAMES: Names = Names {
    requests: metrics::SERVER_REQUESTS,
    items: metrics::SERVER_ITEMS,
    first_item: metrics::SERVER_FIRST_ITEM,
    item_interval: metrics::SERVER_ITEM_INTERVAL,
    request: metrics::SERVER_REQUEST,
};

/// What a client is told whose work the instance ended.
fn went_away() -> Error {
    Error::new(ErrorKind::Unavailable, "instance went away before it had answered")
}

fn panicked(payload: &(dyn Any + Send)) -> Error {
    Error::panicked("engine", payload)
}
