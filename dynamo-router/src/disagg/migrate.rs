//! An answer in parts: what is lost in the middle goes on as a request for the rest.

use std::sync::{Arc, Mutex, PoisonError};

use dynamo_core::engine::Ending;
use dynamo_core::engine::layers::Migrate;
use dynamo_core::protocol::{GenerateChunk, GenerateRequest};
use dynamo_core::{Context, Engine, ResponseStream, Result};
use futures::StreamExt;

use super::failure::Interrupted;
use super::journey::Journey;
use super::part::Part;

/// Begins the answer, and returns the stream of all its parts.
///
/// What fails before the first chunk fails the request; what fails behind it is followed by a part
/// that is asked for with what was delivered, wherever it is cheapest then.
pub(super) async fn answer(
    journey: &Arc<Journey>,
    ctx: &Context,
    request: GenerateRequest,
) -> Result<ResponseStream<GenerateChunk>> {
    let first = Part::begin(journey, ctx.child(), request.clone()).await?;
    let parts = Parts { journey: Arc::clone(journey), first: Mutex::new(Some(first)) };
    let migrate = Migrate::new(parts, journey.engine.config.moves());
    let chunks = migrate.generate(ctx.clone(), request).await?;
    let (noted, ended, mut tokens) = (Arc::clone(journey), Arc::clone(journey), 0);
    let chunks = StreamExt::map(chunks, move |chunk| match chunk {
        Ok(mut chunk) => {
            tokens += chunk.token_ids.len();
            noted.report(|report| report.chunk(&chunk));
            chunk.usage = chunk.usage.filter(|_| chunk.finish.is_some());
            Ok(chunk)
        }
        Err(cause) => Err(Interrupted::error(tokens, cause)),
    });
    // The stream itself obeys kill and deadline, and drops what is behind it.
    Ok(ResponseStream::new(ctx, chunks).on_end(move |course| {
        if let Ending::Failed(error) = course.ending {
            ended.report(|report| report.failed(error));
        }
    }))
}

/// Answers for a request and for what is left of it.
struct Parts {
    journey: Arc<Journey>,
    /// The first part, begun already.
    first: Mutex<Option<ResponseStream<GenerateChunk>>>,
}

impl Engine for Parts {
    type Request = GenerateRequest;
    type Response = GenerateChunk;

    async fn generate(
        &self,
        ctx: Context,
        request: GenerateRequest,
    ) -> Result<ResponseStream<GenerateChunk>> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(first) = first {
            return Ok(first);
        }
        self.journey.report(|report| report.moved());
        Part::begin(&self.journey, ctx, request).await
    }
}
