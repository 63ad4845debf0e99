//! Everything that answers a request is an [`Engine`]: a model, a remote client, a router, a
//! prefill/decode pipeline. A graph is a composition of engines.

mod admission;
mod cancel;
mod context;
mod function;
pub mod layers;
mod measure;
mod priority;
mod stream;
#[cfg(feature = "tower")]
pub mod tower;

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;

pub use admission::{Admission, Permit};
#[cfg(any(feature = "tcp", feature = "nats"))]
pub(crate) use cancel::Listening;
pub(crate) use cancel::{Cancellation, Level};
pub use context::{Context, RequestId};
pub use function::{FnEngine, engine_fn};
pub(crate) use measure::{Measures, Names};
pub use priority::Priority;
pub use stream::{Course, Ending, ResponseSender, ResponseStream};

use crate::error::Result;

/// Takes a request in a context and answers it with a stream.
///
/// # Contract
/// - The stream ends in exactly one of: complete (`None`), one `Err`, or being dropped.
/// - An engine should watch [`Context::stopped`] (finish the item, then end) and must release what
///   it holds when [`Context::killed`] fires or the stream is dropped.
/// - An `Err` from `generate` itself means that no item was produced.
///
/// # Examples
/// ```
/// use dynamo_core::{Context, Engine, ResponseStream, Result};
///
/// struct Shout;
///
/// impl Engine for Shout {
///     type Request = String;
///     type Response = String;
///
///     async fn generate(&self, ctx: Context, text: String) -> Result<ResponseStream<String>> {
///         Ok(ResponseStream::from_items(&ctx, [text.to_uppercase()]))
///     }
/// }
/// ```
pub trait Engine: Send + Sync + 'static {
    /// What the engine is asked.
    type Request: Send + 'static;
    /// One item of the answer.
    type Response: Send + 'static;

    /// Starts answering `request`; the items follow in the stream.
    ///
    /// # Cancel safety
    /// Dropping the future abandons the request; nothing is left running.
    fn generate(
        &self,
        ctx: Context,
        request: Self::Request,
    ) -> impl Future<Output = Result<ResponseStream<Self::Response>>> + Send;
}

/// The object-safe twin of [`Engine`], implemented for every engine.
#[async_trait]
pub trait DynEngine<Req, Resp>: Send + Sync + 'static {
    /// Does what [`Engine::generate`] does, behind a boxed future.
    async fn generate_dyn(&self, ctx: Context, request: Req) -> Result<ResponseStream<Resp>>;
}

#[async_trait]
impl<E: Engine> DynEngine<E::Request, E::Response> for E {
    async fn generate_dyn(
        &self,
        ctx: Context,
        request: E::Request,
    ) -> Result<ResponseStream<E::Response>> {
        self.generate(ctx, request).await
    }
}

/// An engine of any kind, shared; itself an [`Engine`].
pub type SharedEngine<Req, Resp> = Arc<dyn DynEngine<Req, Resp>>;

impl<Req: Send + 'static, Resp: Send + 'static> Engine for SharedEngine<Req, Resp> {
    type Request = Req;
    type Response = Resp;

    async fn generate(&self, ctx: Context, request: Req) -> Result<ResponseStream<Resp>> {
        (**self).generate_dyn(ctx, request).await
    }
}
