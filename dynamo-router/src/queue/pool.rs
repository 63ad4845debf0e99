use std::fmt;

use dynamo_core::protocol::{GenerateRequest, InstanceId, WorkerId};
use dynamo_core::{Client, Context, Engine, Message, ResponseStream, Result};

use super::config::QueueConfig;
use super::routed::QueuedRouter;
use crate::choose::SessionKey;
use crate::router::{Constraints, Decision, KvRouter};

/// Workers that prefill and decode, and the queue before them: an engine that waits for a worker,
/// asks it, and learns its speed from the first item of its answer; cheap to clone.
///
/// What provably was not started is tried again with another worker.
///
/// # Examples
/// ```
/// use std::sync::Arc;
///
/// use dynamo_core::protocol::{BlockSize, CacheNamespace, GenerateRequest, Sampling};
/// use dynamo_core::time::SystemClock;
/// use dynamo_core::{Context, Engine, Priority, ResponseStream, Result, Runtime, engine_fn};
/// use dynamo_router::{KvRouter, QueueConfig, QueuePolicy, QueuedPool, RouterConfig};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// let endpoint = Runtime::in_process().namespace("demo")?.component("llm")?.endpoint("generate")?;
/// let worker = engine_fn(|ctx: Context, request: GenerateRequest| async move {
///     Ok(ResponseStream::from_items(&ctx, [request.token_ids.len()]))
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
/// assert_eq!(pool.generate(urgent, request).await?.collect().await?, [3]);
/// # Ok(())
/// # }
/// ```
pub struct QueuedPool<Resp> {
    client: Client<GenerateRequest, Resp>,
    router: QueuedRouter,
}

impl<Resp: Message> QueuedPool<Resp> {
    /// Puts a queue before `router`, which chooses among the instances that `client` calls.
    pub fn new(
        client: Client<GenerateRequest, Resp>,
        router: KvRouter,
        config: QueueConfig,
    ) -> Self {
        let of = client.clone();
        Self { client, router: QueuedRouter::new(router, move || of.candidates(), config) }
    }

    /// Returns the queue.
    pub fn queue(&self) -> &QueuedRouter {
        &self.router
    }

    /// Puts the booking into the stream, and takes note of the first item.
    fn observed(&self, stream: ResponseStream<Resp>, decision: Decision) -> ResponseStream<Resp> {
        let router = self.router.router().clone();
        let (mut decision, mut is_first) = (decision, true);
        stream.map(move |item| {
            if std::mem::take(&mut is_first) {
                router.observe_first_token(&mut decision);
            } else {
                // It goes on; how many tokens an item has only its type knows.
                decision.booking.progress(0);
            }
            Ok(item)
        })
    }
}

impl<Resp: Message> Engine for QueuedPool<Resp> {
    type Request = GenerateRequest;
    type Response = Resp;

    async fn generate(
        &self,
        ctx: Context,
        request: GenerateRequest,
    ) -> Result<ResponseStream<Resp>> {
        let session = SessionKey::of(&ctx, &request);
        let mut failed: Vec<InstanceId> = Vec::new();
        loop {
            let constraints = Constraints::default().with_exclude(&failed).with_session(session);
            let decision = self.router.route(&ctx, &request, &constraints).await?;
            let WorkerId { instance, rank } = decision.worker;
            let ctx = ctx.clone().with_rank(rank);
            let error = match self.client.direct(instance, ctx, request.clone()).await {
                Ok(stream) => return Ok(self.observed(stream, decision)),
                Err(error) => error,
            };
            failed.push(instance);
            let candidates = self.client.candidates();
            let is_left = candidates.iter().any(|candidate| !failed.contains(&candidate.id));
            if !is_left || failed.len() >= ATTEMPTS_MAX || !error.is_retryable() {
                return Err(error);
            }
            tracing::debug!(%error, %instance, "trying another worker");
        }
    }
}

/// The third worker in a row that fails is no accident.
const ATTEMPTS_MAX: usize = 3;

impl<Resp> Clone for QueuedPool<Resp> {
    fn clone(&self) -> Self {
        Self { client: self.client.clone(), router: self.router.clone() }
    }
}

impl<Resp> fmt::Debug for QueuedPool<Resp> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuedPool")
            .field("client", &self.client)
            .field("queue", &self.router)
            .finish()
    }
}

#[cfg(test)]
mod tests;
