use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dynamo_core::event_plane::{Delivery, Subscriber};
use dynamo_core::protocol::LoadReport;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::router::KvRouter;

/// Lets a router hear what workers report of their load, until it is shut down or dropped.
///
/// Workers report by a [`LoadPublisher`](dynamo_core::server::LoadPublisher). A report counts from
/// when it is heard, so clocks need not agree; one that is lost costs nothing but time. What is said
/// of workers that the router does not know, or of ranks that their instance does not have, is
/// ignored and takes up no room.
///
/// ```
/// use std::sync::Arc;
///
/// use dynamo_core::protocol::LoadReport;
/// use dynamo_core::time::SystemClock;
/// use dynamo_core::{Result, Runtime};
/// use dynamo_router::{KvRouter, LoadFeed, RouterConfig};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// let component = Runtime::in_process().namespace("demo")?.component("llm")?;
/// let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
/// let reports = component.subscriber(LoadReport::EVENT).await?;
/// let feed = LoadFeed::start(router, reports);
/// // As long as the router serves.
/// feed.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "dropping the feed stops it"]
pub struct LoadFeed {
    heard: Arc<Heard>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    _shutdown_on_drop: DropGuard,
}

/// What became of the reports that a feed has heard.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) taken_total: AtomicU64,
    pub(super) ignored_total: AtomicU64,
}

impl LoadFeed {
    /// Starts to feed `router`.
    ///
    /// # Panics
    /// If called outside a tokio runtime.
    pub fn start(router: KvRouter, mut reports: Subscriber<LoadReport>) -> Self {
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let (heard, stop) = (Arc::new(Heard::default()), shutdown.clone());
        let counts = Arc::clone(&heard);
        tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    delivery = reports.recv() => match delivery {
                        None => return,
                        Some(Delivery::Event { value }) => counts.take(&router, &value),
                        // What was lost is said again.
                        Some(_) => {}
                    }
                }
            }
        });
        Self { heard, tasks, _shutdown_on_drop: shutdown.clone().drop_guard(), shutdown }
    }

    /// Stops the feed and joins its task; what was heard fades.
    ///
    /// # Cancel safety
    /// Cancel safe; the task ends all the same.
    pub async fn shutdown(self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    pub(super) fn heard(&self) -> &Arc<Heard> {
        &self.heard
    }
}

impl Heard {
    fn take(&self, router: &KvRouter, report: &LoadReport) {
        let is_taken = router.report(report, router.clock().now());
        let count = if is_taken { &self.taken_total } else { &self.ignored_total };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
