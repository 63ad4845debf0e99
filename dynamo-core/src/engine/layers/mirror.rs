use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engine::{Context, Engine, Priority, ResponseStream};
use crate::error::{Error, ErrorKind, Result};
use crate::random::Random;

/// Which requests are copied, and what the copies may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MirrorPolicy {
    /// Copies per thousand requests; 1000 copies all.
    pub share_thousandths: u32,
    /// How many copies run at once; requests beyond are not copied.
    pub running_max: usize,
    /// How long a copy may run.
    pub timeout: Duration,
}

impl Default for MirrorPolicy {
    fn default() -> Self {
        Self { share_thousandths: 10, running_max: 16, timeout: Duration::from_secs(60) }
    }
}

impl MirrorPolicy {
    /// Copies so many of a thousand requests.
    #[must_use]
    pub fn with_share_thousandths(mut self, share_thousandths: u32) -> Self {
        self.share_thousandths = share_thousandths;
        self
    }

    /// Lets so many copies run at once.
    #[must_use]
    pub fn with_running_max(mut self, running_max: usize) -> Self {
        self.running_max = running_max;
        self
    }

    /// Lets a copy run so long.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

/// Copies a share of the requests to a second engine, whose answers are read and dropped.
///
/// The answer comes from the primary engine alone: the shadow neither delays, fails nor changes it.
/// A copy has the id, the metadata and the trace of its request, the lowest priority and a deadline
/// of its own; it ends neither with the request nor for its sake. A copy that fails or panics is
/// forgotten.
///
/// The copies are tasks of this layer: [`shutdown`](Self::shutdown) ends and joins them, dropping
/// the layer kills them.
pub struct Mirror<P, S> {
    primary: P,
    shadow: Arc<S>,
    policy: MirrorPolicy,
    random: Mutex<Random>,
    room: Arc<Semaphore>,
    copies: TaskTracker,
    gone: CancellationToken,
}

impl<P, S> Mirror<P, S> {
    /// Copies requests at `primary` to `shadow` by `policy`.
    pub fn new(primary: P, shadow: S, policy: MirrorPolicy) -> Self {
        Self {
            primary,
            shadow: Arc::new(shadow),
            policy,
            random: Mutex::new(Random::unseeded()),
            room: Arc::new(Semaphore::new(policy.running_max.min(Semaphore::MAX_PERMITS))),
            copies: TaskTracker::new(),
            gone: CancellationToken::new(),
        }
    }

    /// Returns how many copies run.
    pub fn running(&self) -> usize {
        self.copies.len()
    }

    /// Kills the copies that run, waits until they have ended, and makes no more; the primary goes
    /// on.
    ///
    /// # Cancel safety
    /// Cancel safe: the copies end also if nobody waits.
    pub async fn shutdown(&self) {
        self.gone.cancel();
        self.copies.close();
        self.copies.wait().await;
    }

    /// Returns the room for a copy if the request is to be copied.
    fn sample(&self) -> Option<OwnedSemaphorePermit> {
        if self.gone.is_cancelled() {
            return None;
        }
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        let is_drawn = random.next_u64() % 1000 < u64::from(self.policy.share_thousandths);
        drop(random);
        if is_drawn { Arc::clone(&self.room).try_acquire_owned().ok() } else { None }
    }
}

impl<P, S> Mirror<P, S>
where
    P: Engine<Request: Clone>,
    S: Engine<Request = P::Request>,
{
    fn copy(&self, ctx: &Context, request: &P::Request) {
        // A copy needs a runtime to run on; the primary may do without.
        let (Some(room), Ok(runtime)) = (self.sample(), Handle::try_current()) else { return };
        let (shadow, request) = (Arc::clone(&self.shadow), request.clone());
        let ctx = detached(ctx).with_timeout(self.policy.timeout);
        let gone = self.gone.clone();
        let copy = async move {
            let outcome = tokio::select! {
                biased;
                () = gone.cancelled() => Err(Error::new(ErrorKind::Closed, "mirror")),
                outcome = ctx.bound(drain(&*shadow, &ctx, request)) => outcome,
            };
            if let Err(error) = outcome {
                ctx.kill();
                tracing::debug!(request = %ctx.id(), %error, "the copy of a request failed");
            }
            drop(room);
        };
        drop(self.copies.spawn_on(copy, &runtime));
    }
}

async fn drain<S: Engine>(shadow: &S, ctx: &Context, request: S::Request) -> Result<()> {
    let mut items = shadow.generate(ctx.child(), request).await?;
    while let Some(item) = items.next().await {
        drop(item?);
    }
    Ok(())
}

/// Returns a context that says what `ctx` says and does not end with it.
fn detached(ctx: &Context) -> Context {
    let detached = Context::with_id(ctx.id().clone()).with_priority(Priority::LOWEST);
    let detached = ctx.trace().cloned().into_iter().fold(detached, Context::with_trace);
    let pairs = ctx.metadata().iter();
    pairs.fold(detached, |detached, (key, value)| detached.with_metadata(key, value))
}

impl<P, S> Engine for Mirror<P, S>
where
    P: Engine<Request: Clone>,
    S: Engine<Request = P::Request>,
{
    type Request = P::Request;
    type Response = P::Response;

    async fn generate(
        &self,
        ctx: Context,
        request: P::Request,
    ) -> Result<ResponseStream<P::Response>> {
        self.copy(&ctx, &request);
        self.primary.generate(ctx, request).await
    }
}

impl<P, S> Drop for Mirror<P, S> {
    fn drop(&mut self) {
        self.gone.cancel();
    }
}

impl<P, S> fmt::Debug for Mirror<P, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mirror")
            .field("policy", &self.policy)
            .field("running", &self.running())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::StreamExt;
    use tokio::sync::Notify;

    use super::*;
    use crate::engine::engine_fn;

    /// An engine that answers with the request and its double.
    fn double() -> impl Engine<Request = u32, Response = u32> {
        engine_fn(
            |ctx: Context, n: u32| async move { Ok(ResponseStream::from_items(&ctx, [n, 2 * n])) },
        )
    }

    fn all() -> MirrorPolicy {
        MirrorPolicy::default().with_share_thousandths(1000)
    }

    async fn ask(engine: &impl Engine<Request = u32, Response = u32>) {
        let answer = engine.generate(Context::new(), 7).await.unwrap();
        assert_eq!(answer.collect().await.unwrap(), [7, 14]);
    }

    #[tokio::test]
    async fn the_shadow_sees_the_whole_request_and_its_answer_is_read_to_the_end() {
        let (read, done) = (Arc::<AtomicUsize>::default(), Arc::new(Notify::new()));
        let (counted, notify) = (Arc::clone(&read), Arc::clone(&done));
        let shadow = engine_fn(move |ctx: Context, n: u32| {
            assert_eq!((n, ctx.priority()), (7, Priority::LOWEST));
            assert_eq!((ctx.id().as_str(), &*ctx.metadata()["user"]), ("7f3", "ada"));
            assert!(ctx.deadline().is_some());
            let (counted, notify) = (Arc::clone(&counted), Arc::clone(&notify));
            async move {
                let items = futures::stream::iter(0..10).map(move |n| {
                    if counted.fetch_add(1, Ordering::Relaxed) == 9 {
                        notify.notify_one();
                    }
                    Ok(n)
                });
                Ok(ResponseStream::new(&ctx, items))
            }
        });
        let mirror = Mirror::new(double(), shadow, all());
        let ctx = Context::with_id("7f3".into()).with_metadata("user", "ada");
        // The caller goes away at once: that is no reason for the shadow to stop.
        drop(mirror.generate(ctx, 7).await.unwrap());
        tokio::time::timeout(Duration::from_secs(20), done.notified()).await.unwrap();
        assert_eq!(read.load(Ordering::Relaxed), 10);
    }

    #[tokio::test]
    async fn whatever_the_shadow_does_the_answer_is_the_primarys_and_at_once() {
        let calls = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&calls);
        let shadow = engine_fn(move |ctx: Context, _: u32| {
            let call = counted.fetch_add(1, Ordering::Relaxed);
            async move {
                match call % 4 {
                    0 => Err(Error::new(ErrorKind::Overloaded, "full")),
                    1 => unreachable!("panics on purpose"),
                    2 => {
                        let error = Err::<String, _>(Error::internal("boom"));
                        Ok(ResponseStream::new(&ctx, futures::stream::iter([error])))
                    }
                    _ => std::future::pending().await,
                }
            }
        });
        let mirror = Mirror::new(double(), shadow, all().with_running_max(4));
        for _ in 0..100 {
            ask(&mirror).await;
            tokio::task::yield_now().await;
        }
        // In the end all the room is taken by those that hang.
        assert_eq!((calls.load(Ordering::Relaxed), mirror.running()), (16, 4));
        mirror.shutdown().await;
        assert_eq!(mirror.running(), 0);
        ask(&mirror).await;
        assert_eq!(calls.load(Ordering::Relaxed), 16, "none after the shutdown");
    }

    #[tokio::test(start_paused = true)]
    async fn a_share_is_copied_and_a_copy_that_hangs_ends_at_its_timeout_or_with_the_layer() {
        let contexts = Arc::<Mutex<Vec<Context>>>::default();
        let noted = Arc::clone(&contexts);
        let shadow = engine_fn(move |ctx: Context, _: u32| {
            noted.lock().unwrap().push(ctx);
            std::future::pending::<Result<ResponseStream<u32>>>()
        });
        let policy = MirrorPolicy::default().with_share_thousandths(100).with_running_max(1000);
        let mirror = Mirror::new(double(), shadow, policy.with_timeout(Duration::from_secs(9)));
        for _ in 0..1000 {
            ask(&mirror).await;
        }
        let running = mirror.running();
        assert!((50..=150).contains(&running), "{running} of 1000");
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(mirror.running(), 0);

        while mirror.running() == 0 {
            ask(&mirror).await;
        }
        tokio::task::yield_now().await;
        let copies = mirror.copies.clone();
        drop(mirror);
        copies.close();
        copies.wait().await;
        assert!(contexts.lock().unwrap().last().unwrap().is_killed());
    }
}
