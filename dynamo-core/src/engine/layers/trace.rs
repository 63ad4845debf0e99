use tracing::field::{Empty, display};
use tracing::{Instrument, Span};

use crate::engine::{Context, Ending, Engine, ResponseStream};
use crate::error::Result;
use crate::protocol::TraceContext;
use crate::time::{Clock, SystemClock};

/// Runs an engine inside a `tracing` span named `engine`, one step further in the request's trace.
///
/// The span has the fields `name`, `request`, `trace` and `span`; at its end `outcome` (`complete`,
/// `dropped` or the kind of the error), `items`, and `first_item_us` if there was one. A
/// [`Client`](crate::Client) and an instance have spans of their own; this is for what a graph puts
/// between them.
#[derive(Debug, Clone)]
pub struct Trace<E> {
    engine: E,
    name: String,
}

impl<E> Trace<E> {
    /// Puts spans with the field `name` around `engine`.
    pub fn new(engine: E, name: impl Into<String>) -> Self {
        Self { engine, name: name.into() }
    }
}

impl<E: Engine> Engine for Trace<E> {
    type Request = E::Request;
    type Response = E::Response;

    async fn generate(
        &self,
        mut ctx: Context,
        request: E::Request,
    ) -> Result<ResponseStream<E::Response>> {
        let span = tracing::info_span!(
            "engine",
            name = %self.name, request = %ctx.id(), trace = Empty, span = Empty,
            outcome = Empty, items = Empty, first_item_us = Empty
        );
        if let Some(trace) = ctx.trace().map(TraceContext::child) {
            trace.record(&span);
            ctx = ctx.with_trace(trace);
        }
        let started = SystemClock.now();
        let stream = self.engine.generate(ctx, request).instrument(span.clone()).await;
        let stream = stream.inspect_err(|error| {
            span.record("outcome", error.kind().as_str());
        })?;
        let own = span.clone();
        Ok(stream.in_span(span).on_end(move |course| note(&own, started, course)))
    }
}

fn note(span: &Span, started: std::time::Instant, course: &crate::engine::Course<'_>) {
    span.record(
        "outcome",
        match course.ending {
            Ending::Complete => "complete",
            Ending::Dropped => "dropped",
            Ending::Failed(error) => error.kind().as_str(),
        },
    );
    span.record("items", course.items);
    if let Some(first) = course.first_item {
        let waited = first.saturating_duration_since(started);
        span.record("first_item_us", display(waited.as_micros()));
    }
}
