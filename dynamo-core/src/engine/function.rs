use std::fmt;
use std::future::Future;
use std::marker::PhantomData;

use super::{Context, Engine, ResponseStream};
use crate::error::Result;

/// Makes an [`Engine`] of an async function or closure.
///
/// # Examples
/// ```
/// use dynamo_core::{Context, ResponseStream, engine_fn};
///
/// let double = engine_fn(|ctx: Context, n: u32| async move {
///     Ok(ResponseStream::from_items(&ctx, [2 * n]))
/// });
/// ```
pub fn engine_fn<Req, Resp, F, Fut>(function: F) -> FnEngine<Req, Resp, F>
where
    F: Fn(Context, Req) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<ResponseStream<Resp>>> + Send,
    Req: Send + 'static,
    Resp: Send + 'static,
{
    FnEngine { function, types: PhantomData }
}

/// The engine that [`engine_fn`] makes.
pub struct FnEngine<Req, Resp, F> {
    function: F,
    types: PhantomData<fn(Req) -> Resp>,
}

impl<Req, Resp, F, Fut> Engine for FnEngine<Req, Resp, F>
where
    F: Fn(Context, Req) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<ResponseStream<Resp>>> + Send,
    Req: Send + 'static,
    Resp: Send + 'static,
{
    type Request = Req;
    type Response = Resp;

    async fn generate(&self, ctx: Context, request: Req) -> Result<ResponseStream<Resp>> {
        (self.function)(ctx, request).await
    }
}

impl<Req, Resp, F> fmt::Debug for FnEngine<Req, Resp, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FnEngine").finish_non_exhaustive()
    }
}
