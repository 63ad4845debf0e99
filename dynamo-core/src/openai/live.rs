use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::answer::{Reading, Said};
use super::engine::late;
use super::http::{Answer, Http};
use super::sse::Events;
use crate::engine::ResponseSender;
use crate::error::Result;
use crate::protocol::GenerateChunk;

/// An answer that is read.
pub(super) struct Live {
    pub(super) http: Http,
    pub(super) answer: Answer,
    pub(super) reading: Reading,
    /// By when the first item has to be there.
    pub(super) by: Instant,
    /// What the first and each further item may take.
    pub(super) first_max: Duration,
    pub(super) idle_max: Duration,
}

impl Live {
    /// Reads the answer into `items`, until it is over in whatever way.
    ///
    /// The connection is closed unless the answer was read to its end.
    pub(super) async fn run(mut self, items: ResponseSender<GenerateChunk>) {
        let (ctx, http) = (items.context().clone(), self.http.clone());
        let outcome = tokio::select! {
            biased;
            outcome = ctx.bound(self.read(&items)) => Some(outcome),
            () = http.closed() => Some(Err(http.shut_down())),
            () = ctx.stopped() => None,
        };
        let Self { answer, mut reading, .. } = self;
        let outcome = match outcome {
            Some(outcome) => outcome,
            None => {
                // The server is told first: what it makes from here on is for nobody.
                drop(answer);
                tokio::select! {
                    sent = items.send(reading.stop()) => sent,
                    () = http.closed() => Err(http.shut_down()),
                }
            }
        };
        items.settle(outcome);
    }

    async fn read(&mut self, items: &ResponseSender<GenerateChunk>) -> Result<()> {
        let mut events = Events::default();
        while let Some(bytes) = self.bytes().await? {
            events.push(bytes);
            while let Some(event) = events.next()? {
                match self.reading.take(&event)? {
                    Said::Done => return self.end(items).await,
                    Said::Tokens(token_ids) if token_ids.is_empty() => {}
                    Said::Tokens(token_ids) => {
                        items.send(GenerateChunk { token_ids, ..GenerateChunk::default() }).await?;
                    }
                }
                // From here on, not from when it came: a slow reader is not the server's fault.
                (self.by, self.first_max) = (Instant::now() + self.idle_max, self.idle_max);
            }
        }
        items.send(self.reading.end()?).await
    }

    /// Receives the next bytes, or `None` at the end.
    async fn bytes(&mut self) -> Result<Option<bytes::Bytes>> {
        match timeout_at(self.by, self.answer.next()).await {
            Ok(Some(Ok(bytes))) => Ok(Some(bytes)),
            Ok(None) => Ok(None),
            // Nothing that the answer consists of was lost.
            Ok(Some(Err(_))) | Err(_) if self.reading.is_finished() => Ok(None),
            Ok(Some(Err(error))) => Err(error),
            Err(_) => Err(late(&self.http, self.first_max)),
        }
    }

    /// Sends the last chunk once the connection is free for another request, or is known not to be.
    async fn end(&mut self, items: &ResponseSender<GenerateChunk>) -> Result<()> {
        let last = self.reading.end()?;
        let drained = async { while let Some(Ok(_)) = self.answer.next().await {} };
        // Too late for this connection then, but the answer is whole.
        let _ = timeout(DRAINED_MAX, drained).await;
        items.send(last).await
    }
}

/// The end of a body comes with its last event.
const DRAINED_MAX: Duration = Duration::from_millis(200);
