use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Poll;

use futures::{FutureExt, StreamExt, stream};

use super::canary::Activity;
use super::inflight::Inflight;
use crate::engine::{Context, Engine, ResponseStream};
use crate::error::{Error, ErrorKind, Result};

/// Puts the server's rules around a user's engine: admission, deadline, cancellation, and a panic
/// that fails one request only.
#[derive(Debug)]
pub(super) struct Dispatch<E> {
    pub(super) engine: E,
    pub(super) inflight: Arc<Inflight>,
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
        // Work whose deadline has passed, or whose client has gone, never starts.
        ctx.check()?;
        // A context of the instance's own: ending it is no hang-up of the client.
        let served = ctx.child();
        let guard = self.inflight.admit(&served).await?;
        let start = AssertUnwindSafe(self.engine.generate(served, request)).catch_unwind();
        let start = async { start.await.unwrap_or_else(|p| Err(panicked(&*p))) };
        let mut gone = Box::pin(self.inflight.gone().clone().cancelled_owned());
        let items = tokio::select! {
            biased;
            () = &mut gone => return Err(went_away()),
            items = ctx.bound(start) => items?,
        };
        let mut items = AssertUnwindSafe(items)
            .catch_unwind()
            .map(|item| item.unwrap_or_else(|payload| Err(panicked(&*payload))));
        let (inflight, activity) = (Arc::clone(&self.inflight), self.activity.clone());
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
}

/// What a client is told whose work the instance ended.
fn went_away() -> Error {
    Error::new(ErrorKind::Unavailable, "instance went away before it had answered")
}

fn panicked(payload: &(dyn Any + Send)) -> Error {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    tracing::error!(panic = text, "engine panicked");
    Error::internal(format!("engine panicked: {text}"))
}
