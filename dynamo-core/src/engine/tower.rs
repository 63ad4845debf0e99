//! Engines as tower services and the other way round, for the edges of a graph.
//!
//! A tower layer ends with the response *future*, which here is the start of the stream: a permit
//! of `ConcurrencyLimit` is given back, and the bound of `Timeout` is over, when the stream begins.
//! What has to last as long as the stream is a [layer](super::layers) of this crate.

use std::error::Error as StdError;
use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{self, Poll};

use tower_service::Service;

use super::{Context, Engine, ResponseStream};
use crate::error::{Error, Result};

/// An engine as a tower service of `(Context, Request)`; clones share the engine.
///
/// It is always ready: an engine says that it has no room as an answer to the request, because
/// only the request tells where it would go.
pub struct EngineService<E>(Arc<E>);

impl<E: Engine> EngineService<E> {
    /// Wraps `engine`.
    pub fn new(engine: E) -> Self {
        Self(Arc::new(engine))
    }
}

impl<E> Clone for EngineService<E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<E> fmt::Debug for EngineService<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineService").finish_non_exhaustive()
    }
}

impl<E: Engine> Service<(Context, E::Request)> for EngineService<E> {
    type Response = ResponseStream<E::Response>;
    type Error = Error;
    type Future = Starting<E::Response>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (ctx, request): (Context, E::Request)) -> Self::Future {
        let engine = Arc::clone(&self.0);
        Starting(Box::pin(async move { engine.generate(ctx, request).await }))
    }
}

/// The start of the stream that an [`EngineService`] answers with.
#[must_use = "futures do nothing unless polled"]
pub struct Starting<T>(Pin<Box<dyn Future<Output = Result<ResponseStream<T>>> + Send>>);

impl<T> Future for Starting<T> {
    type Output = Result<ResponseStream<T>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl<T> fmt::Debug for Starting<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Starting").finish_non_exhaustive()
    }
}

/// A tower service of `(Context, Req)` as an engine: each request waits for a clone of its own to
/// be ready, no longer than its context lives.
///
/// An error of the service that is an [`Error`] passes as it is; any other is
/// [`Internal`](crate::ErrorKind::Internal) with the service's error as its source. Where a layer
/// has errors of its own, `ServiceBuilder::map_err` around it can say what they are here.
pub struct ServiceEngine<S, Req, Resp> {
    /// Services need not be `Sync`: the lock is held for a clone, never for a call.
    service: Mutex<S>,
    types: PhantomData<fn(Req) -> Resp>,
}

impl<S, Req, Resp> ServiceEngine<S, Req, Resp>
where
    S: Service<(Context, Req), Response = ResponseStream<Resp>> + Clone + Send + 'static,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    S::Future: Send,
    Req: Send + 'static,
    Resp: Send + 'static,
{
    /// Wraps `service`.
    pub fn new(service: S) -> Self {
        Self { service: Mutex::new(service), types: PhantomData }
    }
}

impl<S, Req, Resp> Engine for ServiceEngine<S, Req, Resp>
where
    S: Service<(Context, Req), Response = ResponseStream<Resp>> + Clone + Send + 'static,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    S::Future: Send,
    Req: Send + 'static,
    Resp: Send + 'static,
{
    type Request = Req;
    type Response = Resp;

    async fn generate(&self, ctx: Context, request: Req) -> Result<ResponseStream<Resp>> {
        let mut service = self.service.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let given = ctx.clone();
        let start = async move {
            let ready = std::future::poll_fn(|cx| service.poll_ready(cx)).await;
            ready.map_err(from_service)?;
            service.call((given, request)).await.map_err(from_service)
        };
        ctx.bound(start).await
    }
}

impl<S, Req, Resp> fmt::Debug for ServiceEngine<S, Req, Resp> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceEngine").finish_non_exhaustive()
    }
}

fn from_service(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
    match error.into().downcast::<Error>() {
        Ok(error) => *error,
        Err(error) => Error::internal("tower service").with_source(error),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ::tower::limit::ConcurrencyLimitLayer;
    use ::tower::timeout::{TimeoutLayer, error::Elapsed};
    use ::tower::util::BoxCloneService;
    use ::tower::{BoxError, Service as _, ServiceBuilder, ServiceExt, service_fn};

    use super::*;
    use crate::engine::engine_fn;
    use crate::error::ErrorKind;

    /// Answers after `n` seconds, with `n` twice; fails for 13.
    fn echo() -> impl Engine<Request = u64, Response = u64> {
        engine_fn(|ctx: Context, n: u64| async move {
            tokio::time::sleep(Duration::from_secs(n)).await;
            if n == 13 {
                return Err(Error::new(ErrorKind::Overloaded, "full").unprocessed());
            }
            Ok(ResponseStream::from_items(&ctx, [n, n]))
        })
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_is_a_service_and_a_service_an_engine() {
        let mut service = EngineService::new(echo());
        let stream = service.ready().await.unwrap().call((Context::new(), 1)).await.unwrap();
        assert_eq!(stream.collect().await.unwrap(), [1, 1]);

        let engine = ServiceEngine::new(service.clone());
        let stream = engine.generate(Context::new(), 2).await.unwrap();
        assert_eq!(stream.collect().await.unwrap(), [2, 2]);
        let error = engine.generate(Context::new(), 13).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Overloaded && error.is_retryable());
    }

    #[tokio::test(start_paused = true)]
    async fn towers_layers_work_around_an_engine() {
        let service = ServiceBuilder::new()
            .map_err(|error: BoxError| match error.downcast::<Elapsed>() {
                Ok(elapsed) => {
                    Error::new(ErrorKind::DeadlineExceeded, "start").with_source(elapsed)
                }
                Err(other) => from_service(other),
            })
            .layer(TimeoutLayer::new(Duration::from_secs(5)))
            .map_request(|(ctx, n): (Context, u64)| (ctx, n + 1))
            .service(EngineService::new(echo()));
        // Neither Sync nor named: what most applications hold.
        let engine = ServiceEngine::new(BoxCloneService::new(service));
        let stream = engine.generate(Context::new(), 3).await.unwrap();
        assert_eq!(stream.collect().await.unwrap(), [4, 4]);
        let late = engine.generate(Context::new(), 5).await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::DeadlineExceeded);
        let unready = service_fn(|(_, ()): (Context, ())| async {
            Err::<ResponseStream<()>, BoxError>("out of order".into())
        });
        let error = ServiceEngine::new(unready).generate(Context::new(), ()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert_eq!(error.source().map(ToString::to_string).as_deref(), Some("out of order"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_for_the_service_no_longer_than_it_lives() {
        let limited = ServiceBuilder::new()
            .layer(ConcurrencyLimitLayer::new(1))
            .service(EngineService::new(echo()));
        let engine = ServiceEngine::new(limited);
        let mut first = Box::pin(engine.generate(Context::new(), 9));
        assert!(futures::poll!(&mut first).is_pending());
        let ctx = Context::new().with_timeout(Duration::from_secs(1));
        let error = engine.generate(ctx, 1).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
        let (first, second) = tokio::join!(first, engine.generate(Context::new(), 1));
        assert!(first.is_ok() && second.is_ok());
    }
}
