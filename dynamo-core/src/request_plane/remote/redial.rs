use std::sync::Arc;

use bytes::Bytes;

use super::engine::RemoteEngine;
use crate::discovery::Instance;
use crate::engine::{Context, Engine, ResponseStream};
use crate::error::{Error, Result};

/// How a plane reaches instances.
pub(crate) trait Reach: Send + Sync + 'static {
    /// Returns the way to `instance`, over the connection to its process that there is, or that is
    /// made for it.
    fn reach(&self, instance: &Instance) -> impl Future<Output = Result<RemoteEngine>> + Send;
}

/// One instance, over whatever connection there is to its process.
///
/// A server ends a connection that nobody uses, and a request may cross its word. It was provably
/// not started then, and goes out again over the next connection; nobody has to know.
pub(crate) struct Redial<R> {
    plane: Arc<R>,
    instance: Instance,
    first: RemoteEngine,
}

impl<R: Reach> Redial<R> {
    /// Dials `instance`.
    pub(crate) async fn dial(plane: &Arc<R>, instance: &Instance) -> Result<Self> {
        let first = plane.reach(instance).await?;
        Ok(Self { plane: Arc::clone(plane), instance: instance.clone(), first })
    }

    /// Asks whether `instance` is there; no engine runs.
    pub(crate) async fn probe(plane: &Arc<R>, instance: &Instance) -> Result<()> {
        for _ in 0..REDIALS_MAX {
            let engine = plane.reach(instance).await?;
            match engine.probe().await {
                Err(error) if has_crossed(&engine, &error) => {}
                outcome => return outcome,
            }
        }
        plane.reach(instance).await?.probe().await
    }
}

impl<R: Reach> Engine for Redial<R> {
    type Request = Bytes;
    type Response = Bytes;

    async fn generate(&self, ctx: Context, request: Bytes) -> Result<ResponseStream<Bytes>> {
        let mut next = None;
        for _ in 0..REDIALS_MAX {
            let engine = next.as_ref().unwrap_or(&self.first);
            match engine.generate(ctx.clone(), request.clone()).await {
                Err(error) if has_crossed(engine, &error) => {}
                outcome => return outcome,
            }
            next = Some(ctx.bound(self.plane.reach(&self.instance)).await?);
        }
        next.as_ref().unwrap_or(&self.first).generate(ctx, request).await
    }
}

/// Tells whether a request failed because its connection ended, before it was started.
fn has_crossed(engine: &RemoteEngine, error: &Error) -> bool {
    error.is_retryable() && engine.is_gone()
}

/// One that meets a farewell each time it is made anew is better asked for elsewhere.
const REDIALS_MAX: usize = 2;
