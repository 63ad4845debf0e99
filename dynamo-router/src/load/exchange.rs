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

use super::replicas::{Shares, Statement, Teller, Wire};
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

    /// Returns how long a statement stands before it is said again: one or two may be lost.
    pub(super) fn repeat_every(&self) -> Duration {
        self.ttl / 4
    }
}

/// Tells other routers over the same workers what one has booked, and lets it see what they have,
/// until it is shut down or dropped.
///
/// To be started wherever several routers serve one fleet: none sees the bookings of the others
/// otherwise, and a burst that comes to all of them goes to the same worker.
///
/// Each message is the state, not what has changed: one that is lost, late or repeated costs
/// nothing but time. Who ends says that it has nothing booked, and forgets the others. What is
/// booked on a worker that a router does not know yet counts there within a quarter of the
/// [`ttl`](ExchangeConfig::ttl) once it does.
///
/// ```
/// use std::collections::BTreeMap;
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// use dynamo_core::discovery::{Address, Instance};
/// use dynamo_core::name::{EndpointPath, Name};
/// use dynamo_core::protocol::{BlockSize, CacheNamespace, GenerateRequest, InstanceId, Sampling};
/// use dynamo_core::time::SystemClock;
/// use dynamo_core::{Result, Runtime};
/// use dynamo_router::{BookingExchange, Constraints, ExchangeConfig, KvRouter, RouterConfig};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// # let (namespace, component) = (Name::new("demo")?, Name::new("llm")?);
/// # let endpoint = EndpointPath { namespace, component, endpoint: Name::new("generate")? };
/// # let worker = |id| Instance {
/// #     id: InstanceId(id),
/// #     incarnation: 0,
/// #     endpoint: endpoint.clone(),
/// #     address: Address(String::new()),
/// #     labels: BTreeMap::new(),
/// # };
/// # let request = GenerateRequest::new(
/// #     CacheNamespace::model("m"), BlockSize::DEFAULT, vec![7; 64], Sampling::default(),
/// # );
/// // Two front ends; each may as well be a process of its own, over NATS.
/// let component = Runtime::in_process().namespace("demo")?.component("llm")?;
/// let routers = [(); 2].map(|()| KvRouter::new(RouterConfig::default(), Arc::new(SystemClock)));
/// let mut exchanges = Vec::new();
/// for router in &routers {
///     router.set_workers(&[worker(1), worker(2)])?;
///     let config = ExchangeConfig::default();
///     exchanges.push(BookingExchange::start(router, &component, config).await?);
/// }
///
/// let first = routers[0].route(&request, &Constraints::default())?;
/// while routers[1].load(first.worker).requests == 0 {
///     tokio::time::sleep(Duration::from_millis(1)).await;
/// }
/// let second = routers[1].route(&request, &Constraints::default())?;
/// assert_ne!(first.worker, second.worker, "the other one's booking makes its worker the busier one");
///
/// for exchange in exchanges {
///     exchange.shutdown().await;
/// }
/// # Ok(())
/// # }
/// ```
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
        let now = SystemClock.now();
        let (teller, shares) = (Teller::new(&config, now), Shares::new(config.router, ttl));
        let exchange = Exchange {
            see_at: now + config.repeat_every(),
            config,
            router,
            changed,
            _noticed,
            publisher,
            listener,
            teller,
            shares,
        };
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
    teller: Teller,
    shares: Shares,
    /// When the router is to see again what all others have booked.
    see_at: Instant,
}

impl Exchange {
    async fn run(mut self, stop: CancellationToken) {
        loop {
            let (due, has_changed) = (self.due(), self.teller.has_changed());
            tokio::select! {
                () = stop.cancelled() => break,
                delivery = self.listener.recv() => match delivery {
                    None => break,
                    Some(Delivery::Event { value }) => {
                        let said = Statement::from_wire(value);
                        let changed = self.shares.hear(said, SystemClock.now());
                        self.see(changed);
                    }
                    // What is lost comes again, whole.
                    Some(_) => {}
                },
                () = self.changed.notified(), if !has_changed => self.teller.changed(),
                () = tokio::time::sleep_until(due.into()) => self.tick(SystemClock.now()),
            }
        }
        let last = self.teller.end(SystemClock.now());
        self.publish(&last);
        self.router.forget_others();
    }

    /// Returns when there is something to do next.
    fn due(&self) -> Instant {
        let silent = self.shares.next_silent();
        [Some(self.see_at), silent].into_iter().flatten().fold(self.teller.due(), Instant::min)
    }

    /// Does what is due.
    fn tick(&mut self, now: Instant) {
        if let Some(said) = self.teller.tell(now, || self.router.booked()) {
            self.publish(&said);
        }
        let changed = self.shares.forget_silent(now);
        self.see(changed);
        if now >= self.see_at {
            // Who has come since knows of nothing that was said before.
            self.router.set_others(self.shares.sums());
            self.see_at = now + self.config.repeat_every();
        }
    }

    fn publish(&self, said: &Wire) {
        if let Err(error) = self.publisher.publish(said) {
            tracing::debug!(%error, "what is booked could not be told");
        }
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
