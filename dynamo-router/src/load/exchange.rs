use std::sync::Arc;
use std::time::{Duration, Instant};

use dynamo_core::event_plane::{Delivery, Publisher, Subscriber};
use dynamo_core::protocol::WorkerId;
use dynamo_core::random::Random;
use dynamo_core::time::{Clock, SystemClock};
use dynamo_core::{Component, Result};
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::Load;
use super::replicas::{Booked, Shares, Wire};
use crate::router::KvRouter;
use crate::workers::ReleaseListener;

/// How routers over the same workers tell each other what they have booked.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ExchangeConfig {
    /// Who this router is among them; by default a random number.
    pub router: u64,
    /// Has to grow with each start of a router that keeps its number. Otherwise the others take it
    /// for late news until they have forgotten the one before.
    pub epoch: u64,
    /// The time from one message to the next while what is booked changes; 1 ms at least. A message
    /// has about twenty bytes for each worker that anything is booked on.
    pub interval: Duration,
    /// How long the others count what this router has said last; while nothing changes it says so
    /// four times in that time. 40 ms at least.
    pub ttl: Duration,
}

impl Default for ExchangeConfig {
    fn default() -> Self {
        let router = Random::unseeded().next_u64();
        Self { router, epoch: 0, interval: INTERVAL, ttl: TTL }
    }
}

impl ExchangeConfig {
    /// Calls the router `router`, in its `epoch`th start.
    #[must_use]
    pub fn with_router(mut self, router: u64, epoch: u64) -> Self {
        (self.router, self.epoch) = (router, epoch);
        self
    }

    /// Lets `interval` pass between two messages.
    #[must_use]
    pub fn with_interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Counts what others have said for `ttl`; the same for all routers.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }
}

/// Tells other routers over the same workers what one has booked, and lets it see what they have,
/// until it is shut down or dropped.
///
/// Each message is the state, not what has changed: one that is lost, late or repeated costs
/// nothing but time. Who ends says that it has nothing booked, and forgets the others.
#[derive(Debug)]
#[must_use = "dropping the exchange stops it"]
pub struct BookingExchange {
    tasks: TaskTracker,
    shutdown: CancellationToken,
    _shutdown_on_drop: DropGuard,
}

impl BookingExchange {
    /// Starts to exchange what `router` has booked with the routers of `component`'s workers.
    ///
    /// Fails as the event plane does.
    ///
    /// # Panics
    /// If called outside a tokio runtime.
    ///
    /// # Cancel safety
    /// Cancel safe: dropped before it has completed, nothing runs.
    pub async fn start(
        router: &KvRouter,
        component: &Component,
        config: ExchangeConfig,
    ) -> Result<Self> {
        let (publisher, listener) =
            (component.publisher(EVENT)?, component.subscriber::<Wire>(EVENT).await?);
        let (router, changed) = (router.clone(), Arc::new(Notify::new()));
        let notified = Arc::clone(&changed);
        let _noticed = router.on_change(move |_, _| notified.notify_one());
        let (ttl, interval) = (config.ttl.max(TTL_MIN), config.interval.max(INTERVAL_MIN));
        let config = ExchangeConfig { ttl, interval, ..config };
        let shares = Shares::new(config.router, ttl);
        let said = Said { seq: 0, at: SystemClock.now(), loads: Vec::new() };
        let exchange =
            Exchange { config, router, changed, _noticed, publisher, listener, shares, said };
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(exchange.run(shutdown.clone()));
        Ok(Self { tasks, _shutdown_on_drop: shutdown.clone().drop_guard(), shutdown })
    }

    /// Tells the others that nothing is booked any more, forgets them, and joins the task.
    ///
    /// # Cancel safety
    /// Cancel safe; the task ends all the same.
    pub async fn shutdown(self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

struct Exchange {
    config: ExchangeConfig,
    router: KvRouter,
    changed: Arc<Notify>,
    _noticed: ReleaseListener,
    publisher: Publisher<Wire>,
    listener: Subscriber<Wire>,
    shares: Shares,
    said: Said,
}

/// The last message; before the first, nothing at the start.
struct Said {
    seq: u64,
    at: Instant,
    loads: Vec<(WorkerId, Load)>,
}

impl Exchange {
    async fn run(mut self, stop: CancellationToken) {
        let mut has_changed = true;
        loop {
            let due = self.due(has_changed);
            tokio::select! {
                () = stop.cancelled() => break,
                delivery = self.listener.recv() => match delivery {
                    None => break,
                    Some(Delivery::Event { value }) => {
                        let changed = self.shares.hear(Booked::from_wire(value), SystemClock.now());
                        self.see(changed);
                    }
                    // What is lost comes again, whole.
                    Some(_) => {}
                },
                () = self.changed.notified(), if !has_changed => has_changed = true,
                () = tokio::time::sleep_until(due.into()) => {
                    let now = SystemClock.now();
                    if now >= self.message_due(has_changed) {
                        self.tell(self.router.booked(), now);
                        has_changed = false;
                    }
                    let changed = self.shares.forget_silent(now);
                    self.see(changed);
                }
            }
        }
        self.tell(Vec::new(), SystemClock.now());
        self.router.forget_others();
    }

    /// Returns when there is something to do next.
    fn due(&self, has_changed: bool) -> Instant {
        let message = self.message_due(has_changed);
        self.shares.next_silent().map_or(message, |silent| silent.min(message))
    }

    fn message_due(&self, has_changed: bool) -> Instant {
        let wait = if has_changed { self.config.interval } else { self.config.ttl / 4 };
        self.said.at + wait
    }

    /// Says what is booked, unless that has just been said.
    fn tell(&mut self, loads: Vec<(WorkerId, Load)>, now: Instant) {
        if self.said.loads == loads && now < self.message_due(false) {
            return;
        }
        let seq = self.said.seq + 1;
        let ExchangeConfig { router, epoch, .. } = self.config;
        let booked = Booked { router, epoch, seq, loads };
        if let Err(error) = self.publisher.publish(&booked.to_wire()) {
            tracing::debug!(%error, "what is booked could not be told");
        }
        self.said = Said { seq, at: now, loads: booked.loads };
    }

    /// Lets the router see what others have booked.
    fn see(&self, changed: Vec<WorkerId>) {
        if !changed.is_empty() {
            let loads = changed.into_iter().map(|worker| (worker, self.shares.sum(worker)));
            self.router.set_others(loads);
        }
    }
}

/// What these messages are called on the event plane.
const EVENT: &str = "bookings";
/// Shorter than any prefill that is worth to be routed, and fifty small messages a second.
const INTERVAL: Duration = Duration::from_millis(20);
const INTERVAL_MIN: Duration = Duration::from_millis(1);
/// A router that has died is missed by nobody for longer.
const TTL: Duration = Duration::from_secs(2);
const TTL_MIN: Duration = Duration::from_millis(40);

#[cfg(test)]
mod tests;
