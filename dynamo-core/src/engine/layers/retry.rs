use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::engine::{Context, Engine, ResponseStream};
use crate::error::{Error, ErrorKind, Result};
use crate::random::Random;
use crate::time::{Clock, SystemClock};

/// When, how often and how fast a request that failed before its stream began is tried again.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// Attempts at one request, the first one included; 1 never retries.
    pub attempts_max: u32,
    /// Running a request twice does no harm: an instance lost before the stream began is a reason
    /// to try again, too. Without it only what [provably](Error::is_retryable) was not started is.
    pub idempotent: bool,
    /// The wait before the first retry, about; it doubles from one to the next. What refused may
    /// ask for a longer one ([`Error::retry_after`]).
    pub backoff_first: Duration,
    /// The longest wait of its own.
    pub backoff_max: Duration,
    /// Retries per hundred requests, so that retries cannot multiply an overload.
    pub budget_percent: u32,
    /// Retries per second that are always there, for callers with few requests.
    pub budget_per_second: u32,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts_max: 3,
            idempotent: false,
            backoff_first: Duration::from_millis(5),
            backoff_max: Duration::from_secs(1),
            budget_percent: 20,
            budget_per_second: 10,
        }
    }
}

impl RetryPolicy {
    /// Tries a request `attempts_max` times at most.
    #[must_use]
    pub fn with_attempts_max(mut self, attempts_max: u32) -> Self {
        self.attempts_max = attempts_max;
        self
    }

    /// Declares that running a request twice does no harm.
    #[must_use]
    pub fn with_idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    /// Waits about `first` before the first retry, and at most about `max` before later ones.
    #[must_use]
    pub fn with_backoff(mut self, first: Duration, max: Duration) -> Self {
        (self.backoff_first, self.backoff_max) = (first, max);
        self
    }

    /// Allows `percent` retries per hundred requests, and `per_second` in any case.
    #[must_use]
    pub fn with_budget(mut self, percent: u32, per_second: u32) -> Self {
        (self.budget_percent, self.budget_per_second) = (percent, per_second);
        self
    }

    /// Tells whether a failure before the stream began allows another attempt.
    fn allows(&self, error: &Error) -> bool {
        error.is_retryable()
            || (self.idempotent
                && matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Overloaded))
    }
}

/// The retries of one caller: a policy and what is left of its budget; cheap to clone.
#[derive(Debug, Clone)]
pub struct Retries {
    policy: RetryPolicy,
    budget: Arc<Mutex<Budget>>,
}

/// A bucket of retries, counted in hundredths: requests and time fill it, retries empty it.
#[derive(Debug)]
struct Budget {
    hundredths: u64,
    filled: Instant,
    random: Random,
}

impl Retries {
    /// Starts with a full budget.
    pub fn new(policy: RetryPolicy) -> Self {
        let filled = SystemClock.now();
        let hundredths = u64::from(policy.budget_per_second) * 100;
        let budget = Budget { hundredths, filled, random: Random::unseeded() };
        Self { policy, budget: Arc::new(Mutex::new(budget)) }
    }

    /// Begins with a request.
    pub fn begin(&self) -> Attempts<'_> {
        let mut budget = self.budget();
        let deposit = u64::from(self.policy.budget_percent);
        budget.hundredths = (budget.hundredths + deposit).min(self.budget_max());
        drop(budget);
        Attempts { retries: self, made: 1 }
    }

    /// Takes one retry out of the budget, if there is one, and says how long to wait before it.
    fn take(&self, made: u32) -> Option<Duration> {
        let now = SystemClock.now();
        let mut budget = self.budget();
        let per_second = u64::from(self.policy.budget_per_second);
        let elapsed = now.saturating_duration_since(budget.filled).as_millis();
        let earned = u64::try_from(elapsed).unwrap_or(u64::MAX).saturating_mul(per_second) / 10;
        if earned > 0 {
            budget.hundredths = budget.hundredths.saturating_add(earned).min(self.budget_max());
            budget.filled = now;
        }
        budget.hundredths = budget.hundredths.checked_sub(100)?;
        let RetryPolicy { backoff_first, backoff_max, .. } = self.policy;
        Some(budget.random.back_off(backoff_first, made - 1, backoff_max))
    }

    fn budget_max(&self) -> u64 {
        100 * u64::from(self.policy.budget_per_second.max(1)) * SECONDS_SAVED
    }

    fn budget(&self) -> std::sync::MutexGuard<'_, Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The attempts at one request.
#[derive(Debug)]
pub struct Attempts<'a> {
    retries: &'a Retries,
    made: u32,
}

impl Attempts<'_> {
    /// Tells whether no attempt follows the one that runs.
    pub fn is_last(&self) -> bool {
        self.made >= self.retries.policy.attempts_max
    }

    /// Waits until the request may be tried again; `retry_after` is how long whoever refused asked
    /// to wait, if that counts.
    ///
    /// Gives `error` back if the request is not to be tried again: the policy does not allow it,
    /// the attempts or the budget are used up, or its deadline would pass.
    ///
    /// # Cancel safety
    /// Dropping the future uses up the attempt.
    pub async fn again(
        &mut self,
        ctx: &Context,
        error: Error,
        retry_after: Option<Duration>,
    ) -> Result<()> {
        if self.is_last() || !self.retries.policy.allows(&error) || ctx.is_killed() {
            return Err(error);
        }
        let Some(wait) = self.retries.take(self.made) else { return Err(error) };
        let wait = wait.max(retry_after.unwrap_or_default().min(RETRY_AFTER_MAX));
        if ctx.remaining().is_some_and(|left| left <= wait) {
            return Err(error);
        }
        self.made += 1;
        tracing::debug!(request = %ctx.id(), %error, ?wait, "trying again");
        ctx.bound(async {
            tokio::time::sleep(wait).await;
            Ok(())
        })
        .await
    }
}

/// Tries requests again that failed before their stream began.
///
/// A [`Client`](crate::Client) does this by itself; the layer is for other engines. What fails in
/// mid-stream is not tried again: that takes a request that can be resumed.
#[derive(Debug, Clone)]
pub struct Retry<E> {
    engine: E,
    retries: Retries,
}

impl<E> Retry<E> {
    /// Puts retries by `policy` around `engine`.
    pub fn new(engine: E, policy: RetryPolicy) -> Self {
        Self { engine, retries: Retries::new(policy) }
    }
}

impl<E: Engine<Request: Clone>> Engine for Retry<E> {
    type Request = E::Request;
    type Response = E::Response;

    async fn generate(
        &self,
        ctx: Context,
        request: E::Request,
    ) -> Result<ResponseStream<E::Response>> {
        let ctx = ctx.with_attempts();
        let mut attempts = self.retries.begin();
        while !attempts.is_last() {
            match self.engine.generate(ctx.child(), request.clone()).await {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    let retry_after = error.retry_after();
                    attempts.again(&ctx, error, retry_after).await?;
                }
            }
        }
        self.engine.generate(ctx.child(), request).await
    }
}

/// Nobody waits longer on a peer's word.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// The budget of so many seconds can be saved up.
const SECONDS_SAVED: u64 = 10;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::engine::engine_fn;

    /// An engine that fails its first `failures` calls with `error`, and how often it was called.
    fn failing(
        failures: u32,
        error: impl Fn() -> Error + Send + Sync + 'static,
    ) -> (Arc<AtomicU32>, impl Engine<Request = u32, Response = u32>) {
        let calls = Arc::<AtomicU32>::default();
        let counted = Arc::clone(&calls);
        let engine = engine_fn(move |ctx: Context, n: u32| {
            let fails = counted.fetch_add(1, Ordering::Relaxed) < failures;
            let outcome =
                if fails { Err(error()) } else { Ok(ResponseStream::from_items(&ctx, [n])) };
            async move { outcome }
        });
        (calls, engine)
    }

    fn refused() -> Error {
        Error::new(ErrorKind::Unavailable, "draining").unprocessed()
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_started_is_tried_again_until_it_is() {
        let (calls, engine) = failing(2, refused);
        let retry = Retry::new(engine, RetryPolicy::default());
        let items = retry.generate(Context::new(), 7).await.unwrap().collect().await.unwrap();
        assert_eq!((items, calls.load(Ordering::Relaxed)), (vec![7], 3));
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_have_an_end_and_the_last_error_is_told() {
        let (calls, engine) = failing(u32::MAX, refused);
        let retry = Retry::new(engine, RetryPolicy::default().with_attempts_max(4));
        let error = retry.generate(Context::new(), 7).await.unwrap_err();
        assert_eq!((error.message(), calls.load(Ordering::Relaxed)), ("draining", 4));
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_have_started_is_tried_again_only_if_that_does_no_harm() {
        let lost = || Error::new(ErrorKind::Unavailable, "connection lost");
        for (idempotent, calls_expected) in [(false, 1), (true, 2)] {
            let (calls, engine) = failing(1, lost);
            let policy = RetryPolicy { idempotent, ..RetryPolicy::default() };
            let outcome = Retry::new(engine, policy).generate(Context::new(), 7).await;
            assert_eq!(
                (outcome.is_ok(), calls.load(Ordering::Relaxed)),
                (idempotent, calls_expected)
            );
        }
        let (calls, engine) = failing(1, || Error::internal("boom"));
        let policy = RetryPolicy::default().with_idempotent();
        assert!(Retry::new(engine, policy).generate(Context::new(), 7).await.is_err());
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn retries_are_a_share_of_the_requests() {
        let (calls, engine) = failing(u32::MAX, refused);
        let retry = Retry::new(engine, RetryPolicy::default().with_budget(20, 0));
        for _ in 0..1000 {
            retry.generate(Context::new(), 7).await.unwrap_err();
        }
        // A retry per five requests, as long as no time passes that would earn more.
        assert_eq!(calls.load(Ordering::Relaxed), 1000 + 200);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_refuses_says_when_to_come_back_but_not_past_the_deadline() {
        let after = Duration::from_secs(2);
        let full =
            move || Error::new(ErrorKind::Overloaded, "full").unprocessed().with_retry_after(after);
        let (_, engine) = failing(1, full);
        let retry = Retry::new(engine, RetryPolicy::default());
        let before = tokio::time::Instant::now();
        assert!(retry.generate(Context::new(), 7).await.is_ok());
        assert!(before.elapsed() >= after);

        let (calls, engine) = failing(1, full);
        let retry = Retry::new(engine, RetryPolicy::default());
        let ctx = Context::new().with_timeout(Duration::from_secs(1));
        assert_eq!(retry.generate(ctx, 7).await.unwrap_err().kind(), ErrorKind::Overloaded);
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_killed_request_is_not_tried_again() {
        let (calls, engine) = failing(u32::MAX, refused);
        let retry = Retry::new(engine, RetryPolicy::default().with_attempts_max(1000));
        let ctx = Context::new();
        let killed = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            ctx.kill();
        };
        let (outcome, ()) = tokio::join!(retry.generate(ctx.clone(), 7), killed);
        assert!(outcome.is_err() && calls.load(Ordering::Relaxed) < 1000);
    }
}
