use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use futures::StreamExt;

use super::bound::Bound;
use super::connection::{Arrival, Connection};
use crate::engine::{Context, DynEngine, SharedEngine};
use crate::error::{Error, Result};

/// Runs one request and sends its answer.
///
/// It is kept small, because it is moved into a task for each request.
pub(crate) fn answer(
    connection: Connection,
    arrival: Arrival,
    bound: Arc<Bound>,
) -> impl Future<Output = ()> + Send {
    let Arrival { stream, ctx, asked, body, codec } = arrival;
    // Also of a task that never runs.
    let ending = Ending { connection, stream, outcome: None };
    async move {
        let connection = &ending.connection;
        let outcome = match bound.find(&asked.key, asked.incarnation) {
            Ok(_) if asked.is_probe => {
                connection.accept(stream);
                Ok(())
            }
            Ok(ingress) => match ingress.encoded(codec) {
                Ok(engine) => run(connection, stream, &ctx, engine, body).await,
                Err(error) => Err(error.unprocessed()),
            },
            Err(error) => Err(error),
        };
        ending.settle(outcome);
    }
}

/// Ends the answer when it is dropped: whatever becomes of the task, the client is told.
struct Ending {
    connection: Connection,
    stream: u32,
    outcome: Option<Result<()>>,
}

impl Ending {
    fn settle(mut self, outcome: Result<()>) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(outcome) = self.outcome.take() {
            self.connection.settle(self.stream, outcome);
            self.connection.push();
        } else {
            let error = Error::internal("the task of the request ended before its answer");
            self.connection.settle(self.stream, Err(error));
            // Nothing is moved in the middle of a panic, or while a runtime is taken down.
            self.connection.flush();
        }
    }
}

async fn run(
    connection: &Connection,
    stream: u32,
    ctx: &Context,
    engine: &SharedEngine<Bytes, Bytes>,
    body: Bytes,
) -> Result<()> {
    let items = engine.generate_dyn(ctx.clone(), body).await?;
    connection.accept(stream);
    // What is ready goes out together, and at the latest when the engine has nothing ready.
    let mut items = items.ready_chunks(ITEMS_AT_ONCE);
    loop {
        let mut next = items.next();
        let next = match futures::poll!(&mut next) {
            Poll::Ready(next) => next,
            Poll::Pending => {
                connection.push();
                next.await
            }
        };
        let Some(ready) = next else { return Ok(()) };
        let is_burst = ready.len() == ITEMS_AT_ONCE;
        let has_room = connection.send(stream, ready)?;
        if is_burst || !has_room {
            connection.flush();
        }
        if !has_room {
            // A client that does not read holds the engine, to the deadline or its kill.
            Box::pin(ctx.bound(connection.room(stream))).await?;
        }
    }
}

/// One lock for a burst; a client that stops to read is noticed after as many.
const ITEMS_AT_ONCE: usize = 32;
