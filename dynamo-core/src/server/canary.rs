use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::listing::Listing;
use crate::engine::{Context, Engine, Priority};
use crate::error::{Error, Result};
use crate::time::{Clock, SystemClock};

/// A request that shows whether an engine still works, asked when nothing else shows it.
///
/// An engine that fails it, or does not answer in time, is taken out of discovery, and put back as
/// its next incarnation once it answers again. Requests that run are left alone.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Canary<Req> {
    /// What is asked; one item, or a complete answer without one, is a sign of life.
    pub request: Req,
    /// How long no item may have come from the engine before it is asked; one that is full then
    /// hangs with all that it runs.
    pub after: Duration,
    /// How long the answer may take.
    pub within: Duration,
}

impl<Req> Canary<Req> {
    /// Asks `request` after ten seconds without an item, and waits three for the answer.
    pub const fn new(request: Req) -> Self {
        Self { request, after: Duration::from_secs(10), within: Duration::from_secs(3) }
    }

    /// Asks after so long without an item.
    #[must_use]
    pub const fn with_after(mut self, after: Duration) -> Self {
        self.after = after;
        self
    }

    /// Waits so long for the answer.
    #[must_use]
    pub const fn with_within(mut self, within: Duration) -> Self {
        self.within = within;
        self
    }
}

/// When an engine last gave an item.
#[derive(Debug)]
pub(super) struct Activity {
    start: Instant,
    last_ms: AtomicU64,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self { start: SystemClock.now(), last_ms: AtomicU64::new(0) }
    }

    pub(super) fn note(&self) {
        let elapsed = SystemClock.now().saturating_duration_since(self.start).as_millis();
        self.last_ms.store(u64::try_from(elapsed).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.start + Duration::from_millis(self.last_ms.load(Ordering::Relaxed))
    }
}

/// Asks the canary whenever the engine has been quiet, until the instance leaves.
pub(super) async fn watch<E: Engine<Request: Clone>>(
    engine: Arc<E>,
    canary: Canary<E::Request>,
    activity: Arc<Activity>,
    listing: Arc<Listing>,
) {
    let own = Arc::clone(&listing);
    let asking = async move {
        let mut asked = SystemClock.now();
        loop {
            let since = activity.last().max(asked);
            tokio::time::sleep_until((since + canary.after).into()).await;
            let is_quiet = SystemClock.now() >= activity.last() + canary.after;
            asked = SystemClock.now();
            if is_quiet {
                let request = canary.request.clone();
                let outcome = ask(&*engine, request, canary.within).await;
                // Real work that is served is as good an answer.
                let has_worked = activity.last() >= asked;
                listing.set(if has_worked { Ok(()) } else { outcome }).await;
            } else if !listing.is_healthy() {
                listing.set(Ok(())).await;
            }
        }
    };
    tokio::select! {
        () = own.left() => {}
        () = asking => {}
    }
}

async fn ask<E: Engine>(engine: &E, request: E::Request, within: Duration) -> Result<()> {
    let ctx = Context::new().with_timeout(within).with_priority(Priority::HIGHEST);
    let answer = async {
        match engine.generate(ctx.clone(), request).await?.next().await {
            Some(item) => item.map(drop),
            None => Ok(()),
        }
    };
    match ctx.bound(answer).await {
        Err(error) => Err(Error::new(error.kind(), "canary was not answered").with_source(error)),
        Ok(()) => Ok(()),
    }
}
