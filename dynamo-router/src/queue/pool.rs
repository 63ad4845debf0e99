use dynamo_core::protocol::{
    BlockSize, FinishReason, GenerateChunk, GenerateRequest, InstanceId, Usage, WorkerId,
};
use dynamo_core::{Client, Context, Engine, ErrorKind, ResponseStream, Result};

use super::config::QueueConfig;
use super::routed::QueuedRouter;
use crate::choose::{RouteExplain, SessionKey};
use crate::router::{Constraints, Decision, KvRouter};

/// Workers that prefill and decode, and the queue before them: an engine that waits for a worker,
/// asks it, and has the router learn from its answer; cheap to clone.
///
/// The first chunk with a token shows how fast the worker prefills, the others how fast it decodes,
/// and the usage in the last one whether what the router knows of its cache is true. What provably
/// was not started is tried again with another worker, and the rest of an answer that was lost goes
/// elsewhere if it can ([`Migrate`](dynamo_core::engine::layers::Migrate) around it). A request that is
/// asked for an early end while it waits is answered: without a token.
///
/// # Examples
/// ```
/// use std::sync::Arc;
///
/// use dynamo_core::protocol::{
///     BlockSize, CacheNamespace, FinishReason, GenerateChunk, GenerateRequest, Sampling,
/// };
/// use dynamo_core::time::SystemClock;
/// use dynamo_core::{Context, Engine, Priority, ResponseStream, Result, Runtime, engine_fn};
/// use dynamo_router::{KvRouter, QueueConfig, QueuePolicy, QueuedPool, RouterConfig};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// let endpoint = Runtime::in_process().namespace("demo")?.component("llm")?.endpoint("generate")?;
/// let worker = engine_fn(|ctx: Context, request: GenerateRequest| async move {
///     let token_ids = request.token_ids.iter().rev().copied().collect();
///     let finish = Some(FinishReason::Length);
///     Ok(ResponseStream::from_items(&ctx, [GenerateChunk { token_ids, finish, ..Default::default() }]))
/// });
/// let _serving = endpoint.serve(worker).await?;
///
/// let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
/// let config = QueueConfig::default().with_policy(QueuePolicy::Wspt).with_room(1_000, 4_000_000);
/// let pool = QueuedPool::new(endpoint.client().await?, router, config);
///
/// let (namespace, prompt) = (CacheNamespace::model("m"), vec![1, 2, 3]);
/// let request = GenerateRequest::new(namespace, BlockSize::DEFAULT, prompt, Sampling::default());
/// let urgent = Context::new().with_priority(Priority::HIGHEST);
/// let answer: Vec<_> = pool.generate(urgent, request).await?.collect().await?;
/// assert_eq!(answer[0].token_ids, [3, 2, 1]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct QueuedPool {
    client: Client<GenerateRequest, GenerateChunk>,
    router: QueuedRouter,
}

impl QueuedPool {
    /// Puts a queue before `router`, which chooses among the instances that `client` calls.
    pub fn new(
        client: Client<GenerateRequest, GenerateChunk>,
        router: KvRouter,
        config: QueueConfig,
    ) -> Self {
        let router = QueuedRouter::for_client(router, &client, config);
        Self { client, router }
    }

    /// Returns the queue.
    pub fn queue(&self) -> &QueuedRouter {
        &self.router
    }
}

impl QueuedPool {
    /// Begins an answer as [`generate`](Engine::generate) does, and says why it is where it is.
    ///
    /// # Cancel safety
    /// Cancel safe: dropping the future ends what it began.
    pub async fn begin(&self, ctx: Context, request: GenerateRequest) -> Result<Begun> {
        let lost = ctx.tried();
        let mut failed: Vec<InstanceId> = Vec::new();
        loop {
            let decision = match self.choose(&ctx, &request, &lost, &failed).await {
                // Neither killed nor late: only an early end is asked for.
                Err(error) if error.kind() == ErrorKind::Cancelled && ctx.check().is_ok() => {
                    let stream = ResponseStream::from_items(&ctx, [nothing(&request)]);
                    return Ok(Begun { chosen: None, stream });
                }
                decision => decision?,
            };
            let WorkerId { instance, rank } = decision.worker;
            let ranked = ctx.clone().with_rank(rank);
            let error = match self.client.direct(instance, ranked, request.clone()).await {
                Ok(stream) => return Ok(self.heard(decision, stream, request.blocks.block_size())),
                Err(error) => error,
            };
            if error.is_retryable() {
                self.router.router().refused(&request, &decision);
            }
            failed.push(instance);
            let candidates = self.client.candidates();
            let is_left = candidates.iter().any(|candidate| !failed.contains(&candidate.id));
            if !is_left || failed.len() >= ATTEMPTS_MAX || !error.is_retryable() {
                return Err(error);
            }
            tracing::debug!(%error, %instance, "trying another worker");
        }
    }

    /// Chooses among those that have not `failed`; who was `lost` with an earlier part of the answer
    /// may be back, and is better than nobody.
    async fn choose(
        &self,
        ctx: &Context,
        request: &GenerateRequest,
        lost: &[InstanceId],
        failed: &[InstanceId],
    ) -> Result<Decision> {
        let constraints = Constraints::default().with_session(SessionKey::of(ctx, request));
        let constraints = constraints.with_priority(ctx.priority());
        let out = [lost, failed].concat();
        let chosen = self.router.route(ctx, request, &constraints.with_exclude(&out)).await;
        match chosen {
            Err(error) if error.kind() == ErrorKind::Unavailable && !lost.is_empty() => {
                let constraints = constraints.with_exclude(failed);
                self.router.route(ctx, request, &constraints).await
            }
            chosen => chosen,
        }
    }

    /// Has the router learn from what the worker says.
    fn heard(
        &self,
        decision: Decision,
        stream: ResponseStream<GenerateChunk>,
        block_size: BlockSize,
    ) -> Begun {
        let chosen = Some(decision.explain.clone());
        let router = self.router.router().clone();
        let mut hearing = Hearing { router, decision, block_size, has_begun: false };
        let stream = stream.map(move |chunk| {
            hearing.hear(&chunk);
            Ok(chunk)
        });
        Begun { chosen, stream }
    }
}

impl Engine for QueuedPool {
    type Request = GenerateRequest;
    type Response = GenerateChunk;

    async fn generate(
        &self,
        ctx: Context,
        request: GenerateRequest,
    ) -> Result<ResponseStream<GenerateChunk>> {
        Ok(self.begin(ctx, request).await?.stream)
    }
}

/// An answer that has begun.
#[derive(Debug)]
#[non_exhaustive]
pub struct Begun {
    /// Who answers and why; nobody if the request was to end before there was a worker for it.
    pub chosen: Option<RouteExplain>,
    /// The answer; the load is booked as long as it lasts.
    pub stream: ResponseStream<GenerateChunk>,
}

/// An answer on its way, and the booking that lasts as long.
struct Hearing {
    router: KvRouter,
    decision: Decision,
    block_size: BlockSize,
    has_begun: bool,
}

impl Hearing {
    fn hear(&mut self, chunk: &GenerateChunk) {
        let Self { router, decision, .. } = self;
        let tokens = chunk.token_ids.len();
        let begins = !self.has_begun && (tokens > 0 || chunk.finish.is_some());
        if begins {
            self.has_begun = true;
            router.observe_first_token(decision);
        }
        decision.booking.progress(tokens);
        if let (Some(_), Some(usage)) = (chunk.finish, &chunk.usage) {
            let (worker, indexed) = (decision.worker, decision.indexed_tokens);
            router.observe_usage(worker, indexed, self.block_size, usage);
        }
    }
}

/// The answer to a request that was to end before it began.
fn nothing(request: &GenerateRequest) -> GenerateChunk {
    let prompt_tokens = u32::try_from(request.token_ids.len()).unwrap_or(u32::MAX);
    let usage = Some(Usage { prompt_tokens, ..Usage::default() });
    GenerateChunk { finish: Some(FinishReason::Length), usage, ..GenerateChunk::default() }
}

/// The third worker in a row that fails is no accident.
const ATTEMPTS_MAX: usize = 3;

#[cfg(test)]
mod tests;
