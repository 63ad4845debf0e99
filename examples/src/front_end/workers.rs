use dynamo_core::protocol::{GenerateChunk, GenerateRequest, InstanceId};
use dynamo_core::{Client, Context, Engine, ResponseStream, Result};
use dynamo_router::QueuedPool;

/// The workers, and who of them is asked.
#[derive(Debug, Clone)]
pub(super) enum Workers {
    Kv(QueuedPool),
    InTurn(Client<GenerateRequest, GenerateChunk>),
}

/// An answer that has begun.
pub(super) struct Begun {
    /// Who answers; nobody if the request was to end before there was a worker for it.
    pub(super) worker: Option<InstanceId>,
    /// Prompt tokens that the router expects it to have cached, if there is a router.
    pub(super) predicted_cached_tokens: Option<usize>,
    pub(super) stream: ResponseStream<GenerateChunk>,
}

impl Workers {
    /// Asks a worker; the attempts of `ctx` are shared with those at other parts of the answer.
    pub(super) async fn begin(&self, ctx: Context, request: GenerateRequest) -> Result<Begun> {
        match self {
            Self::Kv(pool) => {
                let begun = pool.begin(ctx, request).await?;
                let (worker, predicted_cached_tokens) = begun
                    .chosen
                    .map(|why| (why.chosen.worker.instance, why.chosen.cached_tokens))
                    .unzip();
                Ok(Begun { worker, predicted_cached_tokens, stream: begun.stream })
            }
            Self::InTurn(client) => {
                let stream = client.generate(ctx.clone(), request).await?;
                // Who was tried before has refused it.
                let worker = ctx.tried().last().copied();
                Ok(Begun { worker, predicted_cached_tokens: None, stream })
            }
        }
    }
}
