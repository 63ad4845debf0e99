use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};

use crate::engine::{Context, Engine, ResponseStream};
use crate::error::{Error, Result};
use crate::time::{Clock, SystemClock};

/// When a second copy of a request is sent, and how many may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct HedgePolicy {
    /// How long the first copy is waited for.
    pub delay: HedgeDelay,
    /// Second copies per hundred requests, so that they cannot multiply an overload.
    pub budget_percent: u32,
}

/// How long the first copy is waited for before a second one is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HedgeDelay {
    /// Always as long.
    Fixed(Duration),
    /// The time in which 95 of a hundred of the last 256 first items came. Nothing is sent twice
    /// until 32 of them are known.
    Learned,
}

impl Default for HedgePolicy {
    fn default() -> Self {
        Self { delay: HedgeDelay::Learned, budget_percent: 5 }
    }
}

impl HedgePolicy {
    /// Waits for the first copy as long as `delay` says.
    #[must_use]
    pub fn with_delay(mut self, delay: HedgeDelay) -> Self {
        self.delay = delay;
        self
    }

    /// Allows `percent` second copies per hundred requests.
    #[must_use]
    pub fn with_budget(mut self, percent: u32) -> Self {
        self.budget_percent = percent;
        self
    }
}

/// Sends a second copy of a request whose first item is late, and goes on with the copy that is
/// first to have one (or to end).
///
/// Only for requests that may run twice. The copies are attempts that know of each other, so that
/// a [`Client`](crate::Client) sends the second one to another instance. The loser is killed. The
/// failure of one copy is not the outcome while the other runs; a failure before the second copy
/// is sent is: to try again is for [`Retry`](super::Retry).
///
/// The call returns when there is a first item: an error of it means that no item was produced.
#[derive(Debug, Clone)]
pub struct Hedge<E> {
    engine: E,
    policy: HedgePolicy,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// What is left to send twice, in hundredths.
    budget: u64,
    sent: u64,
    observed: Observed,
}

impl<E> Hedge<E> {
    /// Puts hedging by `policy` around `engine`.
    pub fn new(engine: E, policy: HedgePolicy) -> Self {
        Self { engine, policy, state: Arc::default() }
    }

    /// Returns how many second copies were sent.
    pub fn sent(&self) -> u64 {
        self.state().sent
    }

    /// Returns how long the first copy is waited for; `None` while that is not known.
    pub fn delay(&self) -> Option<Duration> {
        match self.policy.delay {
            HedgeDelay::Fixed(delay) => Some(delay),
            HedgeDelay::Learned => self.state().observed.p95,
        }
    }

    fn begin(&self) {
        let mut state = self.state();
        let deposit = u64::from(self.policy.budget_percent);
        state.budget = (state.budget + deposit).min(HUNDREDTHS_SAVED);
    }

    /// Takes a second copy out of the budget.
    fn take(&self) -> bool {
        let mut state = self.state();
        let Some(left) = state.budget.checked_sub(100) else { return false };
        state.budget = left;
        state.sent += 1;
        true
    }

    /// Notes when the first item came. Where the second copy won, the first one would have taken
    /// longer still: what is learned errs towards sending more, and the budget says how many.
    fn observe(&self, since: Instant) {
        let took = SystemClock.now().saturating_duration_since(since);
        self.state().observed.push(took);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E: Engine<Request: Clone>> Hedge<E> {
    async fn race(&self, ctx: &Context, request: E::Request) -> Result<Begun<E::Response>> {
        let (first_ctx, second_ctx) = (ctx.child(), ctx.child());
        let Some(delay) = self.delay() else { return self.copy(first_ctx, request).await };
        let mut first = pin!(self.copy(first_ctx.clone(), request.clone()));
        tokio::select! {
            biased;
            begun = &mut first => return begun,
            () = tokio::time::sleep(delay) => {}
        }
        if !self.take() {
            return first.await;
        }
        tracing::debug!(request = %ctx.id(), ?delay, "sending a second copy");
        let mut second = pin!(self.copy(second_ctx.clone(), request));
        let (begun, loser) = tokio::select! {
            biased;
            begun = &mut first => match begun {
                Ok(begun) => (begun, second_ctx),
                Err(error) => return second.await.map_err(|other| telling(error, other)),
            },
            begun = &mut second => match begun {
                Ok(begun) => (begun, first_ctx),
                Err(other) => return first.await.map_err(|error| telling(error, other)),
            },
        };
        loser.kill();
        Ok(begun)
    }

    async fn copy(&self, ctx: Context, request: E::Request) -> Result<Begun<E::Response>> {
        let mut rest = self.engine.generate(ctx, request).await?;
        let first = rest.next().await.transpose()?;
        Ok(Begun { first, rest })
    }
}

/// An answer whose first item has come, or that had none.
struct Begun<T> {
    first: Option<T>,
    rest: ResponseStream<T>,
}

impl<E: Engine<Request: Clone>> Engine for Hedge<E> {
    type Request = E::Request;
    type Response = E::Response;

    async fn generate(
        &self,
        ctx: Context,
        request: E::Request,
    ) -> Result<ResponseStream<E::Response>> {
        let since = SystemClock.now();
        self.begin();
        let ctx = ctx.with_attempts();
        let Begun { first, rest } = ctx.bound(self.race(&ctx, request)).await?;
        self.observe(since);
        let items = stream::iter(first.map(Ok)).chain(rest);
        Ok(ResponseStream::new(&ctx, items))
    }
}

/// Returns the first copy's error, unless the other one says that something may have started.
fn telling(error: Error, other: Error) -> Error {
    if error.is_retryable() && !other.is_retryable() { other } else { error }
}

/// The first-item times that were seen last.
#[derive(Debug, Default)]
struct Observed {
    times: Vec<Duration>,
    next: usize,
    p95: Option<Duration>,
}

impl Observed {
    fn push(&mut self, took: Duration) {
        match self.times.get_mut(self.next) {
            Some(oldest) => *oldest = took,
            None => self.times.push(took),
        }
        self.next = (self.next + 1) % TIMES_MAX;
        if self.times.len() >= TIMES_MIN && self.next.is_multiple_of(TIMES_BETWEEN) {
            let mut sorted = self.times.clone();
            sorted.sort_unstable();
            self.p95 = sorted.get(sorted.len() * 95 / 100).copied();
        }
    }
}

/// How many times are remembered, how many it takes to say anything, and after how many more the
/// answer is made anew.
const TIMES_MAX: usize = 256;
const TIMES_MIN: usize = 32;
const TIMES_BETWEEN: usize = 16;
/// Ten second copies can be saved up.
const HUNDREDTHS_SAVED: u64 = 1000;

#[cfg(test)]
mod tests;
