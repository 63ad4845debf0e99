//! From one engine to all routers: its events on the event plane.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dynamo_core::Result;
use dynamo_core::event_plane::Publisher;
use dynamo_core::protocol::KvEvent;
use tokio_util::task::TaskTracker;

use super::config::VllmConfig;
use super::feed::VllmEvents;
use super::problem::{Problem, VllmStats};
use super::sink::Sink;
use super::snapshots::BridgeSnapshots;

/// Follows the KV events of one vLLM publisher and publishes them on an event plane, beside the
/// engine, until it is shut down or dropped.
///
/// Routers hear each event with its number, rank by rank, and ask the [`snapshots`](Self::snapshots)
/// where numbers are missing, so nothing is lost for good on the way. What the plane refuses to
/// carry is missing as well. A restart of the engine is a new epoch. A bridge that starts anew knows
/// nothing of the epochs before: it speaks for an instance with another id, or begins with a larger
/// [epoch](VllmConfig::with_epoch).
///
/// ```
/// use dynamo_core::protocol::{BlockSize, CacheNamespace, SnapshotPage};
/// use dynamo_core::{Runtime, ServeOptions};
/// use dynamo_router::events::vllm::{EventBridge, VllmConfig};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> dynamo_core::Result<()> {
/// let component = Runtime::in_process().namespace("demo")?.component("vllm")?;
/// let options = ServeOptions::default();
/// let model = CacheNamespace::model("m");
/// let config =
///     VllmConfig::new(options.instance, "tcp://127.0.0.1:5557", model, BlockSize::DEFAULT)
///         .with_replay("tcp://127.0.0.1:5558");
/// let bridge = EventBridge::connect(config, component.publisher("kv_events")?)?;
/// let endpoint = component.endpoint::<_, SnapshotPage>("kv_snapshot")?;
/// let serving = endpoint.serve_with(bridge.snapshots(), options).await?;
/// bridge.shutdown().await;
/// # drop(serving);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "dropping the bridge stops it"]
pub struct EventBridge {
    events: VllmEvents,
    snapshots: BridgeSnapshots,
    /// Those that put snapshots in order.
    tasks: TaskTracker,
    refused: Arc<AtomicU64>,
}

impl EventBridge {
    /// Connects to a publisher that listens, as [`VllmEvents::connect`] does, and publishes what
    /// happens by `publisher`.
    ///
    /// Fails with [`InvalidArgument`](dynamo_core::ErrorKind::InvalidArgument) if an endpoint is
    /// none.
    ///
    /// # Panics
    /// If called outside a tokio runtime.
    pub fn connect(config: VllmConfig, publisher: Publisher<KvEvent>) -> Result<Self> {
        let (plane, refused) = Plane::new(publisher);
        Ok(Self::new(VllmEvents::connect(config, plane)?, refused))
    }

    /// Listens for a publisher that connects, as [`VllmEvents::bind`] does, and publishes what
    /// happens by `publisher`.
    ///
    /// Fails with [`InvalidArgument`](dynamo_core::ErrorKind::InvalidArgument) if an endpoint is
    /// none, and with [`Unavailable`](dynamo_core::ErrorKind::Unavailable) if it cannot be listened
    /// at.
    ///
    /// # Cancel safety
    /// Cancel safe; nothing has started then.
    pub async fn bind(config: VllmConfig, publisher: Publisher<KvEvent>) -> Result<Self> {
        let (plane, refused) = Plane::new(publisher);
        Ok(Self::new(VllmEvents::bind(config, plane).await?, refused))
    }

    /// Returns an engine that says what there is, to be served as the instance of the
    /// configuration.
    pub fn snapshots(&self) -> BridgeSnapshots {
        self.snapshots.clone()
    }

    /// Returns what came of the publisher so far.
    pub fn stats(&self) -> VllmStats {
        self.events.stats()
    }

    /// Returns the last thing that was wrong with what the publisher said.
    pub fn last_problem(&self) -> Option<Problem> {
        self.stats().last_problem
    }

    /// Returns how many events the plane did not take: gaps to the routers, which ask for a snapshot.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Returns where publishers are listened for, if they are.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.events.local_addr()
    }

    /// Tells the routers that nothing is there any more, stops the bridge and joins its tasks.
    /// Snapshots say then that nothing is there.
    ///
    /// # Cancel safety
    /// Cancel safe; the tasks end all the same.
    pub async fn shutdown(self) {
        let Self { events, tasks, .. } = self;
        events.shutdown().await;
        tasks.close();
        tasks.wait().await;
    }

    fn new(events: VllmEvents, refused: Arc<AtomicU64>) -> Self {
        let tasks = TaskTracker::new();
        let snapshots = BridgeSnapshots::new(events.translator(), tasks.clone());
        Self { events, snapshots, tasks, refused }
    }
}

/// Publishes what happens.
struct Plane {
    publisher: Publisher<KvEvent>,
    refused: Arc<AtomicU64>,
}

impl Plane {
    fn new(publisher: Publisher<KvEvent>) -> (Self, Arc<AtomicU64>) {
        let refused = Arc::default();
        (Self { publisher, refused: Arc::clone(&refused) }, refused)
    }
}

impl Sink for Plane {
    fn take(&mut self, event: KvEvent) {
        let Err(error) = self.publisher.publish(&event) else { return };
        let (worker, epoch, seq) = (event.worker, event.epoch, event.seq);
        if self.refused.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(%worker, epoch, seq, %error, "a KV event is not published");
        } else {
            tracing::debug!(%worker, epoch, seq, %error, "a KV event is not published");
        }
    }
}

#[cfg(test)]
mod tests {
    use dynamo_core::Runtime;
    use dynamo_core::event_plane::Delivery;
    use dynamo_core::protocol::{KvChange, Tier};

    use super::*;
    use crate::fixtures::{block, worker};

    #[tokio::test]
    async fn an_event_that_is_too_large_for_the_plane_is_counted_and_the_next_one_is_heard() {
        let component = Runtime::in_process().namespace("n").unwrap().component("c").unwrap();
        let mut heard = component.subscriber::<KvEvent>("kv").await.unwrap();
        let (mut plane, refused) = Plane::new(component.publisher("kv").unwrap());
        for (seq, blocks) in [3 << 20, 1].into_iter().enumerate() {
            let (parent, tier) = (None, Tier::Device);
            let blocks = vec![block(u64::MAX); blocks];
            let change = KvChange::BlockStored { parent, blocks, tier };
            plane.take(KvEvent { worker: worker(1), epoch: 0, seq: seq as u64, change });
        }
        assert_eq!(refused.load(Ordering::Relaxed), 1);
        let Some(Delivery::Event { value }) = heard.recv().await else { panic!("an event") };
        assert_eq!(value.seq, 1);
    }
}
