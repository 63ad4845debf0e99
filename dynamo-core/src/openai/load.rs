use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::engine::OpenAiEngine;
use super::gauges::{self, RankLoad};
use super::http::Http;
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::{BlockSize, InstanceId, LoadReport, WorkerId};
use crate::time::{Clock, SystemClock};

/// How an [`EngineLoad`] looks at an engine's metrics.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EngineLoadConfig {
    /// Where the metrics are. TensorRT-LLM has more at `/prometheus/metrics`.
    pub path: String,
    /// The time from one look to the next.
    pub interval: Duration,
    /// How long a look may take.
    pub look_max: Duration,
    /// How long what was seen is reported while nothing newer can be seen.
    pub believed_max: Duration,
    /// Tokens of the blocks that reports count in: those of the requests' hashes. What an engine
    /// tells in tokens, or in blocks whose size it tells, is counted in these.
    pub block_size: BlockSize,
}

impl Default for EngineLoadConfig {
    fn default() -> Self {
        Self {
            path: PATH.into(),
            interval: INTERVAL,
            look_max: LOOK_MAX,
            believed_max: BELIEVED_MAX,
            block_size: BlockSize::DEFAULT,
        }
    }
}

impl EngineLoadConfig {
    /// Looks at `path`.
    #[must_use]
    pub fn with_path(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }

    /// Looks every `interval`.
    #[must_use]
    pub const fn with_interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Gives up a look that takes longer.
    #[must_use]
    pub const fn with_look_max(mut self, look_max: Duration) -> Self {
        self.look_max = look_max;
        self
    }

    /// Reports nothing once what was seen is older.
    #[must_use]
    pub const fn with_believed_max(mut self, believed_max: Duration) -> Self {
        self.believed_max = believed_max;
        self
    }

    /// Reports the cache in blocks of so many tokens.
    #[must_use]
    pub const fn with_block_size(mut self, block_size: BlockSize) -> Self {
        self.block_size = block_size;
        self
    }
}

/// How busy an engine says it is, for a [`LoadPublisher`](crate::server::LoadPublisher): its metrics
/// are looked at now and then, until this is shut down or its last clone dropped.
///
/// The names of vLLM, SGLang and TensorRT-LLM are known (`docs/openai-engine.md`). Each rank of a
/// data-parallel engine has a report of its own. An engine that cannot be asked, or tells no load,
/// is reported as it was for [`believed_max`](EngineLoadConfig::believed_max), and not at all from
/// then on: that it does not answer says neither busy nor idle. The tokens still to be prefilled are
/// told by none of them, and left open.
///
/// ```
/// use dynamo_core::openai::{EngineLoad, EngineLoadConfig, OpenAiConfig, OpenAiEngine};
/// use dynamo_core::protocol::{InstanceId, LoadReport};
/// use dynamo_core::server::{LoadPublisher, LoadPublisherConfig};
/// use dynamo_core::{Result, Runtime};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// let component = Runtime::in_process().namespace("demo")?.component("vllm")?;
/// let engine = OpenAiEngine::new(OpenAiConfig::new("http://127.0.0.1:8000", "smol"))?;
/// let load = EngineLoad::start(&engine, InstanceId(1), EngineLoadConfig::default());
/// let (publisher, its) = (component.publisher(LoadReport::EVENT)?, load.clone());
/// let publisher =
///     LoadPublisher::start(publisher, move || its.report(0), LoadPublisherConfig::default());
/// // As long as the engine serves.
/// publisher.shutdown().await;
/// load.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "dropping it stops the looks"]
pub struct EngineLoad {
    instance: InstanceId,
    believed_max: Duration,
    seen: watch::Receiver<Seen>,
    task: Arc<Task>,
}

#[derive(Debug)]
struct Task {
    tasks: TaskTracker,
    shutdown: CancellationToken,
    _shutdown_on_drop: DropGuard,
}

/// What was seen last.
#[derive(Debug, Default)]
struct Seen {
    ranks: BTreeMap<u32, RankLoad>,
    at: Option<Instant>,
    /// Why the last look has shown nothing.
    problem: Option<Arc<Error>>,
}

impl EngineLoad {
    /// Starts to look at the metrics of `engine`, which serves as `instance`.
    ///
    /// # Panics
    /// If called outside a tokio runtime.
    pub fn start(engine: &OpenAiEngine, instance: InstanceId, config: EngineLoadConfig) -> Self {
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let (sees, seen) = watch::channel(Seen::default());
        let believed_max = config.believed_max;
        let (look, stop) = (Look { http: engine.http().clone(), config }, shutdown.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = look.again_and_again(&sees) => {}
            }
        });
        tasks.close();
        let _shutdown_on_drop = shutdown.clone().drop_guard();
        let task = Arc::new(Task { tasks, shutdown, _shutdown_on_drop });
        Self { instance, believed_max, seen, task }
    }

    /// Returns how busy a data-parallel rank was when it was last seen, or `None` if that was never,
    /// or too long ago.
    pub fn report(&self, rank: u32) -> Option<LoadReport> {
        let worker = WorkerId { instance: self.instance, rank };
        self.seen.borrow().report(worker, SystemClock.now(), self.believed_max)
    }

    /// Returns the ranks that the engine has told of, in order; none before the first look.
    pub fn ranks(&self) -> Vec<u32> {
        self.seen.borrow().ranks.keys().copied().collect()
    }

    /// Returns why the last look has shown nothing, if it has not.
    pub fn problem(&self) -> Option<Arc<Error>> {
        self.seen.borrow().problem.clone()
    }

    /// Stops looking, and joins the task.
    ///
    /// # Cancel safety
    /// Cancel safe; the task ends all the same.
    pub async fn shutdown(&self) {
        self.task.shutdown.cancel();
        self.task.tasks.wait().await;
    }
}

struct Look {
    http: Http,
    config: EngineLoadConfig,
}

impl Look {
    async fn again_and_again(&self, sees: &watch::Sender<Seen>) {
        loop {
            let looked = self.look().await;
            sees.send_modify(|seen| seen.see(looked, SystemClock.now()));
            tokio::time::sleep(self.config.interval.max(INTERVAL_MIN)).await;
        }
    }

    async fn look(&self) -> Result<BTreeMap<u32, RankLoad>> {
        let Self { http, config } = self;
        let page = http.get(&config.path, PAGE_BYTES_MAX, config.look_max).await?;
        let ranks = gauges::ranks(&page, config.block_size);
        if ranks.is_empty() {
            let message = format!("{} of {} tells no load", config.path, http.url());
            return Err(Error::new(ErrorKind::Protocol, message));
        }
        Ok(ranks)
    }
}

impl Seen {
    fn see(&mut self, looked: Result<BTreeMap<u32, RankLoad>>, now: Instant) {
        match looked {
            Ok(ranks) => *self = Self { ranks, at: Some(now), problem: None },
            Err(error) => {
                if self.problem.is_none() {
                    tracing::warn!(%error, "load of an engine is not known");
                }
                self.problem = Some(Arc::new(error));
            }
        }
    }

    fn report(&self, worker: WorkerId, now: Instant, believed_max: Duration) -> Option<LoadReport> {
        let age = now.saturating_duration_since(self.at?);
        let load = self.ranks.get(&worker.rank).filter(|_| age <= believed_max)?;
        Some(LoadReport {
            worker,
            requests_running: load.running,
            requests_waiting: load.waiting,
            prefill_tokens: None,
            blocks_active: load.blocks_active,
            blocks_total: load.blocks_total,
        })
    }
}

const PATH: &str = "/metrics";

/// As often as publishers look at it; a page is tens of kilobytes.
const INTERVAL: Duration = Duration::from_millis(250);
const INTERVAL_MIN: Duration = Duration::from_millis(1);

/// A server that computes in the process that answers is slow to do so.
const LOOK_MAX: Duration = Duration::from_secs(1);

/// A few looks may fail. Routers believe the last report for a while more.
const BELIEVED_MAX: Duration = Duration::from_secs(2);

/// A page of many ranks with all their histograms is a few hundred kilobytes.
const PAGE_BYTES_MAX: usize = 8 << 20;

#[cfg(test)]
mod tests;
