//! One worker after the other, until one has begun to answer.

use std::pin::pin;
use std::time::Duration;

use dynamo_core::protocol::{GenerateChunk, GenerateRequest, InstanceId, Stage, WorkerId};
use dynamo_core::{Context, Error, ErrorKind, ResponseStream, Result};

use super::Pool;
use super::journey::{Journey, Role};
use crate::load::Booking;
use crate::router::{Decision, Preference};

/// A worker's first chunk, the rest of its stream, and the booking.
pub(super) struct Answering {
    pub(super) chunk: GenerateChunk,
    pub(super) stream: ResponseStream<GenerateChunk>,
    pub(super) decision: Decision,
}

/// What is asked of a pool.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) role: Role,
    pub(super) request: &'a GenerateRequest,
    /// Where the worker should rather be.
    pub(super) near: Option<&'a Preference<'a>>,
}

impl Journey {
    /// Sends a request to the best worker and waits for its first chunk; the first one may be
    /// `weighed` already, and is taken if nobody has to wait for a turn.
    ///
    /// A worker that failed before its first chunk is left out and the next best one is tried: a
    /// generation has no effect outside the graph, so it may start twice.
    pub(super) async fn ask(
        &self,
        ctx: &Context,
        asked: Asked<'_>,
        weighed: Option<Decision>,
    ) -> Result<Answering> {
        let Asked { role, request, .. } = asked;
        let pool = self.pool(role);
        let mut failed = self.tried(|tried| tried.of(role).clone());
        let mut weighed = weighed.filter(|_| pool.queue().is_none());
        let mut last: Option<Error> = None;
        for _ in 0..self.engine.config.attempts() {
            let mut decision = match weighed.take() {
                Some(decision) => {
                    pool.router.sent(request, self.session, &decision);
                    decision
                }
                None => self.choose(ctx, asked, &failed, &mut last).await?,
            };
            self.report(|report| report.chose(role, &decision));
            let instance = decision.worker.instance;
            let error = match self.first_chunk(ctx, pool, request, &mut decision).await {
                Ok((chunk, stream)) => return Ok(Answering { chunk, stream, decision }),
                Err(error) => error,
            };
            if error.is_retryable() {
                pool.router.refused(request, &decision);
            }
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

    /// Books the request on the best worker that has not failed it, once it is its turn.
    async fn choose(
        &self,
        ctx: &Context,
        Asked { role, request, near }: Asked<'_>,
        failed: &[InstanceId],
        last: &mut Option<Error>,
    ) -> Result<Decision> {
        let pool = self.pool(role);
        let chosen = pool.route(ctx, request, &self.constraints(failed, near)).await;
        let Err(error) = chosen else { return chosen };
        match last.take() {
            // Nobody is left: what was said by the last who was says more.
            Some(last) if error.kind() == ErrorKind::Unavailable => Err(last),
            Some(last) => Err(sooner(Some(last), error)),
            // Who failed an earlier part of the answer may be back, and is better than nobody.
            None if error.kind() == ErrorKind::Unavailable && !failed.is_empty() => {
                pool.route(ctx, request, &self.constraints(&[], near)).await
            }
            None => Err(error),
        }
    }

    async fn first_chunk(
        &self,
        ctx: &Context,
        pool: &Pool,
        request: &GenerateRequest,
        decision: &mut Decision,
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
        let (chunk, stream) = ctx.bound(heard(&mut decision.booking, patience, asked)).await?;
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
    booking: &mut Booking,
    patience: Duration,
    word: impl Future<Output = Result<T>>,
) -> Result<T> {
    let instance = booking.worker().instance;
    let word = kept(booking, tokio::time::timeout(patience, word));
    word.await.unwrap_or_else(|_| {
        let message = format!("instance {instance} said nothing for {patience:?}");
        Err(Error::new(ErrorKind::Unavailable, message))
    })
}

/// Waits with a booking that lives on meanwhile, however long its lease is.
pub(super) async fn kept<T>(booking: &mut Booking, wait: impl Future<Output = T>) -> T {
    let renewed_after = (booking.lease() / 4).max(RENEWED_AFTER_MIN);
    let mut wait = pin!(wait);
    loop {
        match tokio::time::timeout(renewed_after, &mut wait).await {
            Ok(over) => return over,
            Err(_) => booking.progress(0),
        }
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

/// A lease that is shorter still is not what anybody wants, and a timer that never waits is worse.
const RENEWED_AFTER_MIN: Duration = Duration::from_millis(1);
