use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, Wake, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;

use super::connection::Connection;
use crate::discovery::Instance;
use crate::engine::{Context, Engine, Listening, ResponseStream};
use crate::error::{Error, Result};
use crate::wire::head::Head;

/// One instance behind a connection.
pub(crate) struct RemoteEngine {
    connection: Connection,
    endpoint: String,
    instance: u64,
    incarnation: u64,
}

impl RemoteEngine {
    pub(crate) fn new(connection: Connection, instance: &Instance) -> Self {
        Self {
            connection,
            endpoint: instance.endpoint.to_string(),
            instance: instance.id.0,
            incarnation: instance.incarnation,
        }
    }
}

impl Engine for RemoteEngine {
    type Request = Bytes;
    type Response = Bytes;

    async fn generate(&self, ctx: Context, request: Bytes) -> Result<ResponseStream<Bytes>> {
        self.open(ctx, false, request).await
    }
}

impl RemoteEngine {
    /// Tells whether the connection takes no more requests.
    pub(super) fn is_gone(&self) -> bool {
        !self.connection.is_open()
    }

    /// Asks whether the instance is there; no engine runs.
    pub(crate) async fn probe(&self) -> Result<()> {
        let ctx = Context::new().with_timeout(PROBE_MAX);
        self.open(ctx, true, Bytes::new()).await?.collect().await.map(drop)
    }

    async fn open(
        &self,
        ctx: Context,
        is_probe: bool,
        request: Bytes,
    ) -> Result<ResponseStream<Bytes>> {
        ctx.check()?;
        let head = Head {
            instance: self.instance,
            incarnation: self.incarnation,
            endpoint: self.endpoint.clone(),
            request: ctx.id().as_str().to_owned(),
            priority: ctx.priority().level(),
            is_probe,
            trace: ctx.trace().copied(),
            remaining: ctx.remaining(),
            metadata: ctx.metadata().clone().into_iter().collect(),
        };
        let id = self.connection.open(&head, request)?;
        let notice = Notice { connection: self.connection.clone(), id, ctx: ctx.clone() };
        let items = Items {
            connection: self.connection.clone(),
            id,
            ready: VecDeque::new(),
            end: None,
            _notice: ctx.listen(Arc::new(notice).into()),
        };
        ctx.bound(self.connection.started(id)).await?;
        Ok(ResponseStream::new(&ctx, items))
    }
}

/// Passes on what the caller asks for, even if nobody polls for the answer.
struct Notice {
    connection: Connection,
    id: u32,
    ctx: Context,
}

impl Wake for Notice {
    fn wake(self: Arc<Self>) {
        if self.ctx.is_killed() {
            self.connection.kill(self.id);
        } else {
            self.connection.stop(self.id);
        }
    }
}

/// The items of one answer; dropped before its end, it kills the request.
struct Items {
    connection: Connection,
    id: u32,
    /// Messages that have arrived.
    ready: VecDeque<Bytes>,
    /// How the stream ends behind them, once that is known.
    end: Option<Option<Error>>,
    _notice: Listening,
}

impl Stream for Items {
    type Item = Result<Bytes>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Bytes>>> {
        let this = &mut *self;
        loop {
            if let Some(message) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(message)));
            }
            if let Some(end) = &mut this.end {
                return Poll::Ready(end.take().map(Err));
            }
            match ready!(this.connection.poll_recv(this.id, &mut this.ready, cx)) {
                Some(Ok(())) => {}
                None => this.end = Some(None),
                Some(Err(error)) => this.end = Some(Some(error)),
            }
        }
    }
}

impl Drop for Items {
    fn drop(&mut self) {
        if self.end.is_none() {
            self.connection.kill(self.id);
        }
    }
}

/// An instance that is there says so within this.
const PROBE_MAX: Duration = Duration::from_secs(3);
