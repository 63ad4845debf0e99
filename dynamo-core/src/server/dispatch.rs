use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::{FutureExt, StreamExt};

use super::inflight::Inflight;
use crate::engine::{Context, Engine, ResponseStream};
use crate::error::{Error, Result};

/// Puts the server's rules around a user's engine: admission, deadline, cancellation, and a panic
/// that fails one request only.
#[derive(Debug)]
pub(super) struct Dispatch<E> {
    pub(super) engine: E,
    pub(super) inflight: Arc<Inflight>,
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
        let guard = self.inflight.admit(&ctx)?;
        let start = AssertUnwindSafe(self.engine.generate(ctx.clone(), request)).catch_unwind();
        let items = ctx.bound(async { start.await.unwrap_or_else(|p| Err(panicked(&*p))) }).await?;
        let items = AssertUnwindSafe(items)
            .catch_unwind()
            .map(|item| item.unwrap_or_else(|payload| Err(panicked(&*payload))));
        Ok(ResponseStream::new(&ctx, items).with_guard(guard))
    }
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
