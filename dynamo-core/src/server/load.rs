use std::time::{Duration, Instant};

use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::event_plane::Publisher;
use crate::protocol::LoadReport;
use crate::time::{Clock, SystemClock};

/// How often a worker says how busy it is.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LoadPublisherConfig {
    /// The time from one look at the worker to the next, and so from one report to the next while
    /// they differ; 1 ms at least.
    pub interval: Duration,
    /// How long a report that has not changed stands before it is said again. What routers hear
    /// counts for less and less, so a part of the time for which they believe it
    /// (`dynamo_router::RouterConfig::report_max`).
    pub repeat_every: Duration,
}

impl Default for LoadPublisherConfig {
    fn default() -> Self {
        Self { interval: INTERVAL, repeat_every: REPEAT_EVERY }
    }
}

impl LoadPublisherConfig {
    /// Looks at the worker every `interval`.
    #[must_use]
    pub const fn with_interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Says what has not changed again after so long.
    #[must_use]
    pub const fn with_repeat_every(mut self, repeat_every: Duration) -> Self {
        self.repeat_every = repeat_every;
        self
    }
}

/// Publishes how busy a worker is, until it is shut down or dropped.
///
/// Each report is the state, not what has changed: one that is lost costs nothing but time. Each
/// data-parallel rank is a worker of its own, with a publisher of its own. Routers hear it by
/// `dynamo_router::LoadFeed`.
///
/// ```
/// use dynamo_core::event_plane::Delivery;
/// use dynamo_core::protocol::{InstanceId, LoadReport, WorkerId};
/// use dynamo_core::server::{LoadPublisher, LoadPublisherConfig};
/// use dynamo_core::{Result, Runtime};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// let component = Runtime::in_process().namespace("demo")?.component("llm")?;
/// let mut reports = component.subscriber::<LoadReport>(LoadReport::EVENT).await?;
///
/// let worker = WorkerId::new(InstanceId(1));
/// let source = move || LoadReport { requests_waiting: 3, ..LoadReport::idle(worker) };
/// let publisher = component.publisher(LoadReport::EVENT)?;
/// let publisher = LoadPublisher::start(publisher, source, LoadPublisherConfig::default());
/// let Some(Delivery::Event { value }) = reports.recv().await else { panic!() };
/// assert_eq!(value.requests_waiting, 3);
/// publisher.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "dropping the publisher stops it"]
pub struct LoadPublisher {
    tasks: TaskTracker,
    shutdown: CancellationToken,
    _shutdown_on_drop: DropGuard,
}

impl LoadPublisher {
    /// Starts to publish what `source` returns: at once, whenever that has changed since, and again
    /// when it has not for a while.
    ///
    /// `source` is called every [`interval`](LoadPublisherConfig::interval), and must not block. One
    /// that may not know returns `Option<LoadReport>`: of `None` nothing is said, and what was said
    /// before fades. A report that cannot be published is tried again at the next call.
    ///
    /// # Panics
    /// If called outside a tokio runtime.
    pub fn start<R: Into<Option<LoadReport>>>(
        publisher: Publisher<LoadReport>,
        source: impl Fn() -> R + Send + 'static,
        config: LoadPublisherConfig,
    ) -> Self {
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let stop = shutdown.clone();
        tasks.spawn(async move {
            let mut teller = Teller { publisher, repeat_every: config.repeat_every, said: None };
            let interval = config.interval.max(INTERVAL_MIN);
            while !stop.is_cancelled() {
                if let Some(report) = source().into() {
                    teller.tell(report, SystemClock.now());
                }
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(interval) => {}
                }
            }
        });
        Self { tasks, _shutdown_on_drop: shutdown.clone().drop_guard(), shutdown }
    }

    /// Stops, saying nothing more, and joins the task: what was said last fades.
    ///
    /// # Cancel safety
    /// Cancel safe; the task ends all the same.
    pub async fn shutdown(self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

struct Teller {
    publisher: Publisher<LoadReport>,
    repeat_every: Duration,
    /// The last report, and when it was published.
    said: Option<(LoadReport, Instant)>,
}

impl Teller {
    /// Publishes `report`, unless that was just said.
    fn tell(&mut self, report: LoadReport, now: Instant) {
        if let Some((last, at)) = &self.said
            && *last == report
            && now.saturating_duration_since(*at) < self.repeat_every
        {
            return;
        }
        match self.publisher.publish(&report) {
            Ok(()) => self.said = Some((report, now)),
            Err(error) => {
                tracing::debug!(worker = %report.worker, %error, "load could not be told");
                self.said = None;
            }
        }
    }
}

/// A router's own bookings are known at once; what they miss shows a few decode steps later.
const INTERVAL: Duration = Duration::from_millis(250);
const INTERVAL_MIN: Duration = Duration::from_millis(1);
/// A fifth of the time for which routers believe a report.
const REPEAT_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::event_plane::{Delivery, EventPlane, MemoryEventPlane, Subscriber, Topic};
    use crate::name::Name;
    use crate::protocol::{InstanceId, WorkerId};

    async fn plane() -> (Publisher<LoadReport>, Subscriber<LoadReport>) {
        let name = |name| Name::new(name).unwrap();
        let topic =
            Topic { namespace: name("n"), component: name("c"), event: name(LoadReport::EVENT) };
        let plane: Arc<dyn EventPlane> = Arc::new(MemoryEventPlane::default());
        let listener = Subscriber::new(plane.subscribe(&topic).await.unwrap());
        (Publisher::new(plane, topic), listener)
    }

    fn report(requests_waiting: u32) -> LoadReport {
        LoadReport { requests_waiting, ..LoadReport::idle(WorkerId::new(InstanceId(1))) }
    }

    async fn hear(listener: &mut Subscriber<LoadReport>) -> LoadReport {
        match listener.recv().await {
            Some(Delivery::Event { value }) => value,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_changed_is_said_at_the_next_look_and_what_has_not_now_and_then() {
        let (publisher, mut listener) = plane().await;
        let waiting = Arc::new(AtomicU32::new(3));
        let said = Arc::clone(&waiting);
        let source = move || report(said.load(Ordering::Relaxed));
        let config = LoadPublisherConfig::default();
        let LoadPublisherConfig { interval, repeat_every } = config;
        let started = SystemClock.now();
        let publisher = LoadPublisher::start(publisher, source, config);
        assert_eq!(hear(&mut listener).await, report(3));
        assert_eq!(SystemClock.now() - started, Duration::ZERO, "at once");
        waiting.store(4, Ordering::Relaxed);
        assert_eq!(hear(&mut listener).await, report(4));
        let changed = SystemClock.now() - started;
        assert!((interval..2 * interval).contains(&changed), "{changed:?}");
        assert_eq!(hear(&mut listener).await, report(4));
        let repeated = SystemClock.now() - started - changed;
        assert!((repeat_every..repeat_every + interval).contains(&repeated), "{repeated:?}");

        waiting.store(5, Ordering::Relaxed);
        publisher.shutdown().await;
        // The plane is gone with its publisher: what was said before would be heard.
        assert_eq!(listener.recv().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_said_while_the_source_does_not_know() {
        let (publisher, mut listener) = plane().await;
        let looks = AtomicU32::new(0);
        let source = move || (looks.fetch_add(1, Ordering::Relaxed) >= 3).then(|| report(1));
        let config = LoadPublisherConfig::default();
        let started = SystemClock.now();
        let publisher = LoadPublisher::start(publisher, source, config.clone());
        assert_eq!(hear(&mut listener).await, report(1));
        assert!(SystemClock.now() - started >= 3 * config.interval);
        publisher.shutdown().await;
    }

    #[tokio::test]
    async fn a_report_that_could_not_be_published_is_said_at_the_next_look() {
        #[derive(Debug, Default)]
        struct Fails(AtomicU32);

        #[async_trait::async_trait]
        impl EventPlane for Fails {
            fn publish(&self, topic: &Topic, _: bytes::Bytes) -> crate::Result<()> {
                let times = self.0.fetch_add(1, Ordering::Relaxed);
                (times > 0).then_some(()).ok_or_else(|| crate::Error::internal(topic.to_string()))
            }

            async fn subscribe(
                &self,
                topic: &Topic,
            ) -> crate::Result<Box<dyn crate::event_plane::RawSubscriber>> {
                Err(crate::Error::internal(topic.to_string()))
            }
        }

        let name = |name| Name::new(name).unwrap();
        let topic = Topic { namespace: name("n"), component: name("c"), event: name("e") };
        let plane = Arc::new(Fails::default());
        let publisher = Publisher::new(Arc::clone(&plane) as Arc<dyn EventPlane>, topic);
        let mut teller = Teller { publisher, repeat_every: REPEAT_EVERY, said: None };
        let now = SystemClock.now();
        (0..4).for_each(|_| teller.tell(report(1), now));
        assert_eq!(plane.0.load(Ordering::Relaxed), 2, "one that failed, and one that did not");
    }
}
