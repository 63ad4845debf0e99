//! Prefill here, decode there: an engine over two pools.
//!
//! ```text
//! route prefill ─► first token + ticket ─► route decode ─► pull ─► tokens …
//!                  │ the prefill stream stays open: it holds the staged blocks │
//! ```
//!
//! The hold is a guard that lives in the prefill *stream*. Whatever ends the request, a finished
//! pull, an error, the client hanging up or this process dying, ends that stream and with it the
//! hold.

mod flow;
mod report;

use std::fmt;
use std::sync::Arc;

use dynamo_core::protocol::{GenerateChunk, GenerateRequest, InstanceId, Stage};
use dynamo_core::{Client, Context, Engine, Error, ErrorKind, ResponseStream, Result};
use futures::stream;

pub use report::{DisaggReport, Observer, Outcome};

use crate::router::{Constraints, Decision, KvRouter};
use flow::Flow;
use report::Report;

/// Workers of one role, and the router before them.
#[derive(Debug, Clone)]
pub struct Pool {
    /// Calls the workers.
    pub client: Client<GenerateRequest, GenerateChunk>,
    /// Chooses among them.
    pub router: KvRouter,
}

/// Serves requests by a prefill worker and then a decode worker; cheap to clone.
#[derive(Clone)]
pub struct PrefillDecode {
    prefill: Pool,
    decode: Pool,
    attempts_max: usize,
    observer: Arc<dyn Observer>,
}

impl PrefillDecode {
    /// Creates the engine over two pools.
    pub fn new(prefill: Pool, decode: Pool) -> Self {
        Self {
            prefill,
            decode,
            attempts_max: ATTEMPTS_MAX,
            observer: Arc::new(|_: &DisaggReport| {}),
        }
    }

    /// Tells `observer` how each request went, exactly once.
    #[must_use]
    pub fn with_observer(mut self, observer: impl Observer) -> Self {
        self.observer = Arc::new(observer);
        self
    }

    /// Tries at most this many workers for each half of a request.
    #[must_use]
    pub fn with_attempts_max(mut self, attempts_max: usize) -> Self {
        self.attempts_max = attempts_max.max(1);
        self
    }
}

/// A worker that is gone is noticed at the first try; the third worker in a row that fails is no
/// accident.
const ATTEMPTS_MAX: usize = 3;

impl Engine for PrefillDecode {
    type Request = GenerateRequest;
    type Response = GenerateChunk;

    async fn generate(
        &self,
        ctx: Context,
        request: GenerateRequest,
    ) -> Result<ResponseStream<GenerateChunk>> {
        let clock = Arc::clone(self.prefill.router.clock());
        let mut report = Report::new(&ctx, &request, Arc::clone(&self.observer), clock);
        match self.start(&ctx, request, &mut report).await {
            Ok(first) => {
                let flow = Flow::new(self.clone(), ctx.clone(), report, first);
                let items = stream::unfold(flow, |mut flow| async move {
                    flow.next().await.map(|item| (item, flow))
                });
                Ok(ResponseStream::new(&ctx, items))
            }
            Err(error) => {
                report.failed(&error);
                Err(error)
            }
        }
    }
}

/// A prefill worker's first chunk, and what holds its blocks.
struct Prefilled {
    request: GenerateRequest,
    chunk: GenerateChunk,
    stream: ResponseStream<GenerateChunk>,
    decision: Decision,
}

impl PrefillDecode {
    /// Routes the prefill and waits for its first token.
    async fn start(
        &self,
        ctx: &Context,
        request: GenerateRequest,
        report: &mut Report,
    ) -> Result<Prefilled> {
        if request.stage != Stage::Full {
            // A ticket is made by a server; one that comes from outside is never redeemed.
            let message = format!("request {} comes with a stage of its own", ctx.id());
            return Err(Error::invalid(message));
        }
        let request = request.with_stage(Stage::Prefill);
        let called = call(&self.prefill, ctx, &request, self.attempts_max, |decision| {
            report.prefill(decision);
        });
        let Called { chunk, stream, mut decision } = called.await?;
        self.prefill.router.observe_first_token(&mut decision);
        if let Some(usage) = &chunk.usage {
            let (worker, predicted) = (decision.worker, decision.cached_tokens);
            let block_size = request.blocks.block_size();
            self.prefill.router.observe_usage(worker, predicted, block_size, usage);
        }
        report.first_token(&chunk);
        Ok(Prefilled { request, chunk, stream, decision })
    }
}

/// A worker's first chunk, the rest of its stream, and the booking.
struct Called {
    chunk: GenerateChunk,
    stream: ResponseStream<GenerateChunk>,
    decision: Decision,
}

/// Sends `request` to the best worker of `pool` and waits for its first chunk.
///
/// A worker that failed before its first chunk is left out and the next best one is tried: a
/// generation has no effect outside the graph, so it may start twice.
async fn call(
    pool: &Pool,
    ctx: &Context,
    request: &GenerateRequest,
    attempts_max: usize,
    mut on_decision: impl FnMut(&Decision),
) -> Result<Called> {
    let mut failed: Vec<InstanceId> = Vec::new();
    loop {
        let candidates = pool.client.candidates();
        if candidates.is_empty() {
            let message = format!("no instance serves {}", pool.client.endpoint());
            return Err(Error::new(ErrorKind::Unavailable, message).unprocessed());
        }
        // Whoever is left out was named in the log; the others serve.
        let _ = pool.router.set_workers(&candidates);
        let constraints = Constraints::default().with_exclude(&failed);
        let decision = pool.router.route(request, &constraints)?;
        on_decision(&decision);
        let instance = decision.worker.instance;
        let attempt = async {
            let mut stream = pool.client.direct(instance, ctx.clone(), request.clone()).await?;
            match stream.next().await {
                Some(chunk) => Ok((chunk?, stream)),
                None => Err(Error::internal(format!("instance {instance} answered nothing"))),
            }
        };
        match ctx.bound(attempt).await {
            Ok((chunk, stream)) => return Ok(Called { chunk, stream, decision }),
            Err(error) => {
                failed.push(instance);
                let others = candidates.iter().any(|candidate| !failed.contains(&candidate.id));
                if !others || failed.len() >= attempts_max || !is_worth_another(&error) {
                    return Err(error);
                }
                tracing::debug!(%error, %instance, "trying another worker");
            }
        }
    }
}

/// Tells failures of the worker from failures of the request.
fn is_worth_another(error: &Error) -> bool {
    let of_the_worker =
        matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Closed | ErrorKind::Overloaded);
    of_the_worker || error.is_retryable()
}

impl fmt::Debug for PrefillDecode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrefillDecode")
            .field("prefill", &self.prefill)
            .field("decode", &self.decode)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
