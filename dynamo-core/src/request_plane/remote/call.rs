use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, Wake, ready};

use bytes::Bytes;
use futures::Stream;

use super::connection::Connection;
use crate::engine::{Context, Listening, ResponseStream};
use crate::error::{Error, Result};
use crate::wire::head::Head;

/// Sends one request over `connection`; returns its answer once the engine has
/// given it.
pub(super) async fn call(
    connection: &Connection,
    ctx: &Context,
    head: &Head,
    request: Bytes,
) -> Result<ResponseStream<Bytes>> {
    ctx.check()?;
    let id = connection.open(head, request)?;
    let notice = Notice { connection: connection.clone(), id, ctx: ctx.clone() };
    let items = Items {
        connection: connection.clone(),
        id,
        ready: VecDeque::new(),
        end: None,
        _notice: ctx.listen(Arc::new(notice).into()),
    };
    ctx.bound(connection.started(id)).await?;
    Ok(ResponseStream::new(ctx, items))
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
