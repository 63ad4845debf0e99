use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::call::call;
use super::connection::Connection;
use crate::discovery::Instance;
use crate::engine::{Context, Engine, ResponseStream};
use crate::error::{Error, Result};
use crate::wire::head::Head;

/// How a plane reaches instances.
pub(crate) trait Reach: Send + Sync + 'static {
    /// Returns the connection to the process of `instance`: the one there is, or one that is made.
    fn reach(&self, instance: &Instance) -> impl Future<Output = Result<Connection>> + Send;
}

/// One instance, over whatever connection there is to its process.
///
/// A server ends a connection that nobody uses, and a request may cross its word. It was provably
/// not started then, and goes out again over the next connection; nobody has to know.
pub(crate) struct RemoteEngine<R> {
    dialer: Arc<R>,
    instance: Instance,
    endpoint: String,
}

impl<R: Reach> RemoteEngine<R> {
    pub(crate) fn new(dialer: &Arc<R>, instance: &Instance) -> Self {
        let endpoint = instance.endpoint.to_string();
        Self { dialer: Arc::clone(dialer), instance: instance.clone(), endpoint }
    }

    /// Makes sure that there is a connection to the instance.
    pub(crate) async fn connect(&self) -> Result<()> {
        self.dialer.reach(&self.instance).await.map(drop)
    }

    /// Asks whether the instance is there; no engine runs.
    pub(crate) async fn probe(&self) -> Result<()> {
        let ctx = Context::new().with_timeout(PROBE_MAX);
        self.ask(&ctx, true, Bytes::new()).await?.collect().await.map(drop)
    }

    async fn ask(
        &self,
        ctx: &Context,
        is_probe: bool,
        request: Bytes,
    ) -> Result<ResponseStream<Bytes>> {
        let mut head = self.head(ctx, is_probe);
        let mut redials = 0;
        loop {
            let connection = ctx.bound(self.dialer.reach(&self.instance)).await?;
            // Reaching it may have taken a while.
            head.remaining = ctx.remaining();
            match call(&connection, ctx, &head, request.clone()).await {
                Err(error) if redials < REDIALS_MAX && has_crossed(&connection, &error) => {
                    redials += 1;
                }
                outcome => return outcome,
            }
        }
    }

    fn head(&self, ctx: &Context, is_probe: bool) -> Head {
        Head {
            instance: self.instance.id.0,
            incarnation: self.instance.incarnation,
            endpoint: self.endpoint.clone(),
            request: ctx.id().as_str().to_owned(),
            priority: ctx.priority().level(),
            is_probe,
            trace: ctx.trace().copied(),
            rank: ctx.rank(),
            remaining: ctx.remaining(),
            metadata: ctx.metadata().clone().into_iter().collect(),
        }
    }
}

impl<R: Reach> Engine for RemoteEngine<R> {
    type Request = Bytes;
    type Response = Bytes;

    async fn generate(&self, ctx: Context, request: Bytes) -> Result<ResponseStream<Bytes>> {
        self.ask(&ctx, false, request).await
    }
}

/// Tells whether a request failed because its connection ended, before it was started.
fn has_crossed(connection: &Connection, error: &Error) -> bool {
    error.is_retryable() && !connection.is_open()
}

/// One that meets a farewell each time it is made anew is better asked for elsewhere.
const REDIALS_MAX: usize = 2;

/// An instance that is there says so within this.
const PROBE_MAX: Duration = Duration::from_secs(3);
