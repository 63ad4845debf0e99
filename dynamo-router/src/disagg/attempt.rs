//! One worker after the other, until one has begun to answer.

use std::time::Duration;

use dynamo_core::protocol::{GenerateChunk, GenerateRequest, InstanceId, Stage, WorkerId};
use dynamo_core::{Context, Error, ErrorKind, ResponseStream, Result};

use super::Pool;
use super::journey::{Journey, Role};
use crate::router::{Constraints, Decision};

/// A worker's first chunk, the rest of its stream, and the booking.
pub(super) struct Answering {
    pub(super) chunk: GenerateChunk,
    pub(super) stream: ResponseStream<GenerateChunk>,
    pub(super) decision: Decision,
}

impl Journey {
    /// Sends `request` to the best worker and waits for its first chunk; the first one may be
    /// `booked` already.
    ///
    /// A worker that failed before its first chunk is left out and the next best one is tried: a
    /// generation has no effect outside the graph, so it may start twice.
    pub(super) async fn ask(
        &self,
        ctx: &Context,
        role: Role,
        request: &GenerateRequest,
        mut booked: Option<Decision>,
    ) -> Result<Answering> {
        let pool = self.pool(role);
        let mut failed = self.tried(|tried| tried.of(role).clone());
        let mut last: Option<Error> = None;
        for _ in 0..self.engine.config.attempts() {
            let decision = match booked.take() {
                Some(decision) => {
                    pool.router.sent(request, None, &decision);
                    Ok(decision)
                }
                None => pool.route(request, &failed),
            };
            let decision = match (decision, last.take()) {
                (Ok(decision), former) => {
                    last = former;
                    decision
                }
                (Err(_), Some(last)) => return Err(last),
                // Who failed an earlier part of the answer may be back, and is better than nobody.
                (Err(_), None) => pool.route(request, &[])?,
            };
            self.report(|report| report.chose(role, &decision));
            let instance = decision.worker.instance;
            let error = match self.first_chunk(ctx, pool, request, &decision).await {
                Ok((chunk, stream)) => return Ok(Answering { chunk, stream, decision }),
                Err(error) => error,
            };
            if is_of_the_ticket(request, &error) {
                return Err(error);
            }
            failed.push(instance);
            let goes_on = self.tried(|tried| {
                tried.failed(role, instance, &error);
                tried.blames_worker(ctx, &error)
            });
            if !goes_on {
                return Err(error);
            }
            tracing::debug!(request = %ctx.id(), %error, %instance, "trying another worker");
            last = Some(sooner(last, error));
        }
        Err(last.unwrap_or_else(|| Error::internal("no worker was asked")))
    }

    async fn first_chunk(
        &self,
        ctx: &Context,
        pool: &Pool,
        request: &GenerateRequest,
        decision: &Decision,
    ) -> Result<(GenerateChunk, ResponseStream<GenerateChunk>)> {
        let WorkerId { instance, rank } = decision.worker;
        let expected = Duration::try_from_secs_f64(decision.explain.chosen.ttft_s);
        let silence_max = self.engine.config.silence_max;
        let patience = silence_max.saturating_add(expected.unwrap_or_default());
        // In a box: what waits around it would each have a copy of its size.
        let asked = Box::pin(async {
            let ctx = ctx.clone().with_rank(rank);
            let mut stream = pool.client.direct(instance, ctx, request.clone()).await?;
            match stream.next().await {
                Some(chunk) => Ok((chunk?, stream)),
                None => Err(Error::internal(format!("instance {instance} answered nothing"))),
            }
        });
        let (chunk, stream) = ctx.bound(heard(instance, patience, asked)).await?;
        if request.stage == Stage::Prefill && !is_prefilled(&chunk) {
            let message =
                format!("instance {instance} gave neither an end nor a token and a ticket");
            return Err(Error::internal(message));
        }
        Ok((chunk, stream))
    }
}

/// Waits for what a worker says, and gives it up if that takes too long.
pub(super) async fn heard<T>(
    instance: InstanceId,
    patience: Duration,
    word: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::time::timeout(patience, word).await.unwrap_or_else(|_| {
        let message = format!("instance {instance} said nothing for {patience:?}");
        Err(Error::new(ErrorKind::Unavailable, message))
    })
}

impl Pool {
    /// Books `request` on the best worker that is not excluded, to be sent there.
    pub(super) fn route(
        &self,
        request: &GenerateRequest,
        exclude: &[InstanceId],
    ) -> Result<Decision> {
        let decision = self.weigh(request, exclude)?;
        self.router.sent(request, None, &decision);
        Ok(decision)
    }

    /// Books `request` on the best worker that is not excluded; it may yet go elsewhere.
    pub(super) fn weigh(
        &self,
        request: &GenerateRequest,
        exclude: &[InstanceId],
    ) -> Result<Decision> {
        let candidates = self.client.candidates();
        if candidates.is_empty() {
            let message = format!("no instance serves {}", self.client.endpoint());
            return Err(Error::new(ErrorKind::Unavailable, message).unprocessed());
        }
        // Whoever is left out was named in the log; the others serve.
        let _ = self.router.set_workers(&candidates);
        self.router.weigh(request, &Constraints::default().with_exclude(exclude))
    }
}

/// The answer is over, or one token stands between it and a decode worker.
fn is_prefilled(chunk: &GenerateChunk) -> bool {
    chunk.finish.is_some() || (chunk.ticket.is_some() && chunk.token_ids.len() == 1)
}

/// A ticket that one decode worker finds stale, taken, of another version or of another model is
/// no better at the next one, and a pull that took too long takes as long there.
fn is_of_the_ticket(request: &GenerateRequest, error: &Error) -> bool {
    let is_ticket = matches!(
        error.kind(),
        ErrorKind::NotFound
            | ErrorKind::Conflict
            | ErrorKind::Protocol
            | ErrorKind::InvalidArgument
            | ErrorKind::DeadlineExceeded
    );
    is_ticket && matches!(request.stage, Stage::Decode { .. })
}

/// Of two refusals for want of room the one that ends first, else the later failure.
pub(super) fn sooner(former: Option<Error>, error: Error) -> Error {
    let is_overload = |error: &Error| error.kind() == ErrorKind::Overloaded;
    match former {
        Some(former)
            if is_overload(&former)
                && is_overload(&error)
                && former.retry_after().is_some_and(|former| {
                    error.retry_after().is_none_or(|later| former < later)
                }) =>
        {
            former
        }
        _ => error,
    }
}
