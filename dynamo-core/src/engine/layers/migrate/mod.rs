//! Goes on elsewhere with an answer that was lost in mid-stream.

mod generate;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::stream;

pub use generate::GenerateProgress;

use crate::engine::{Context, Engine, ResponseStream};
use crate::error::{Error, ErrorKind, Result};
use crate::random::Random;

/// A request whose answer can be resumed behind what was delivered of it.
pub trait Resumable: Send + Sized + 'static {
    /// One item of the answer.
    type Item: Send + 'static;
    /// What was delivered so far.
    type Progress: Progress<Request = Self, Item = Self::Item>;

    /// Returns the progress of an answer that has not begun; `None` if this request's answer
    /// cannot be resumed.
    fn progress(&self) -> Option<Self::Progress>;
}

/// What was delivered of an answer, and how to ask for the rest.
///
/// # Contract
/// Whatever the items of the parts were, what passed [`deliver`](Self::deliver) reads like one
/// answer that was never interrupted.
pub trait Progress: Send + 'static {
    /// The request that is resumed.
    type Request;
    /// One item of its answer.
    type Item;

    /// Takes note of `item`, which the caller gets next, and makes it what it would be if the
    /// answer had not been interrupted.
    fn deliver(&mut self, item: &mut Self::Item);

    /// Says what is left to ask for, now that the answer was lost. What is delivered from here on
    /// answers that.
    fn rest(&mut self) -> Rest<Self::Request, Self::Item>;
}

/// What is left of an answer that was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rest<Req, Item> {
    /// This request asks for it.
    Ask(Req),
    /// Nothing but perhaps a last item that needs no engine: the end alone was lost.
    Nothing(Option<Item>),
}

/// How often and how fast a lost answer is asked for again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MigratePolicy {
    /// Attempts in a row that may bring no item; each item starts the count again.
    pub attempts_max: u32,
    /// Moves of one answer in all, so that a request that breaks whatever serves it cannot break
    /// everything.
    pub moves_max: u32,
    /// The wait before the first move after an item, about; it doubles from one to the next. What
    /// refused may ask for a longer one ([`Error::retry_after`]).
    pub backoff_first: Duration,
    /// The longest wait of its own.
    pub backoff_max: Duration,
}

impl Default for MigratePolicy {
    fn default() -> Self {
        Self {
            attempts_max: 3,
            moves_max: 16,
            backoff_first: Duration::from_millis(5),
            backoff_max: Duration::from_secs(1),
        }
    }
}

impl MigratePolicy {
    /// Allows `attempts_max` attempts in a row that bring no item.
    #[must_use]
    pub fn with_attempts_max(mut self, attempts_max: u32) -> Self {
        self.attempts_max = attempts_max;
        self
    }

    /// Allows `moves_max` moves of one answer in all.
    #[must_use]
    pub fn with_moves_max(mut self, moves_max: u32) -> Self {
        self.moves_max = moves_max;
        self
    }

    /// Waits about `first` before the first move after an item, and at most about `max`.
    #[must_use]
    pub fn with_backoff(mut self, first: Duration, max: Duration) -> Self {
        (self.backoff_first, self.backoff_max) = (first, max);
        self
    }
}

/// Asks for the rest of an answer that is lost, so that its reader sees one answer.
///
/// The engine inside has to reach other instances: a [`Client`](crate::Client), or what wraps one.
/// The parts are attempts that know of each other, so that a client does not ask again who was lost.
///
/// An answer moves on when an instance is lost ([`Unavailable`](ErrorKind::Unavailable)) and when
/// a part was provably [not started](Error::is_retryable). It moves once for an
/// [`Internal`](ErrorKind::Internal) failure, which may be the instance's or the request's doing.
/// Everything else is the caller's, and so is what fails when the attempts are used up or the
/// deadline would pass. A request that [cannot be resumed](Resumable::progress) is passed through.
///
/// What is delivered may move once it is delivered *here*: items that were lost on the way are made
/// again, none is seen twice.
pub struct Migrate<E> {
    engine: Arc<E>,
    policy: MigratePolicy,
}

impl<E> Migrate<E> {
    /// Puts migration by `policy` around `engine`.
    pub fn new(engine: E, policy: MigratePolicy) -> Self {
        Self { engine: Arc::new(engine), policy }
    }
}

impl<E> Clone for Migrate<E> {
    fn clone(&self) -> Self {
        Self { engine: Arc::clone(&self.engine), policy: self.policy }
    }
}

impl<E> fmt::Debug for Migrate<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Migrate").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl<E> Engine for Migrate<E>
where
    E: Engine<Request: Resumable<Item = E::Response>>,
{
    type Request = E::Request;
    type Response = E::Response;

    async fn generate(
        &self,
        ctx: Context,
        request: E::Request,
    ) -> Result<ResponseStream<E::Response>> {
        let Some(progress) = request.progress() else {
            return self.engine.generate(ctx, request).await;
        };
        let ctx = ctx.with_attempts();
        let mut answer = Answer {
            engine: Arc::clone(&self.engine),
            policy: self.policy,
            ctx: ctx.clone(),
            progress,
            part: None,
            last: None,
            attempts: 0,
            moves: 0,
            is_suspect: false,
        };
        if let Err(error) = answer.ask(request).await {
            answer.resume(error).await?;
        }
        let items = stream::unfold(answer, |mut answer| async move {
            let item = answer.next().await?;
            Some((item, answer))
        });
        Ok(ResponseStream::new(&ctx, items))
    }
}

/// An answer in parts.
struct Answer<E: Engine<Request: Resumable>> {
    engine: Arc<E>,
    policy: MigratePolicy,
    ctx: Context,
    progress: <E::Request as Resumable>::Progress,
    /// The part that is being read; none at the end.
    part: Option<ResponseStream<E::Response>>,
    /// What is left to deliver once there is no part.
    last: Option<E::Response>,
    /// Attempts since the last item.
    attempts: u32,
    moves: u32,
    /// It has met an internal failure already.
    is_suspect: bool,
}

impl<E> Answer<E>
where
    E: Engine<Request: Resumable<Item = E::Response>>,
{
    async fn next(&mut self) -> Option<Result<E::Response>> {
        loop {
            let Some(part) = &mut self.part else { return self.last.take().map(Ok) };
            match part.next().await {
                Some(Ok(mut item)) => {
                    self.progress.deliver(&mut item);
                    self.attempts = 0;
                    return Some(Ok(item));
                }
                Some(Err(error)) => {
                    self.part = None;
                    if let Err(error) = self.resume(error).await {
                        return Some(Err(error));
                    }
                }
                None => self.part = None,
            }
        }
    }

    /// Goes on after `error`, or gives it back.
    async fn resume(&mut self, mut error: Error) -> Result<()> {
        while self.allows(&error) {
            let request = match self.progress.rest() {
                Rest::Ask(request) => request,
                Rest::Nothing(last) => {
                    self.last = last;
                    return Ok(());
                }
            };
            if self.attempts >= self.policy.attempts_max || self.moves >= self.policy.moves_max {
                break;
            }
            error = self.wait(error).await?;
            self.moves += 1;
            tracing::info!(request = %self.ctx.id(), %error, moves = self.moves, "moving on");
            match self.ask(request).await {
                Ok(()) => return Ok(()),
                Err(next) => error = next,
            }
        }
        Err(error)
    }

    async fn ask(&mut self, request: E::Request) -> Result<()> {
        self.attempts += 1;
        let start = self.engine.generate(self.ctx.child(), request);
        self.part = Some(self.ctx.bound(start).await?);
        Ok(())
    }

    fn allows(&mut self, error: &Error) -> bool {
        if self.ctx.check().is_err() {
            return false;
        }
        match error.kind() {
            _ if error.is_retryable() => true,
            ErrorKind::Unavailable => true,
            ErrorKind::Internal => !std::mem::replace(&mut self.is_suspect, true),
            _ => false,
        }
    }

    /// Waits before the next attempt, or gives `error` back if the deadline would pass.
    async fn wait(&mut self, error: Error) -> Result<Error> {
        let (first, max) = (self.policy.backoff_first, self.policy.backoff_max);
        let wait = Random::unseeded().back_off(first, self.attempts, max);
        let wait = wait.max(error.retry_after().unwrap_or_default());
        if self.ctx.remaining().is_some_and(|left| left <= wait) {
            return Err(error);
        }
        let waited = async {
            tokio::time::sleep(wait).await;
            Ok(error)
        };
        self.ctx.bound(waited).await
    }
}

#[cfg(test)]
mod tests;
