//! Discovery, planes and shutdown in one value; many may live in one process.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::discovery::{Discovery, MemoryDiscovery};
use crate::error::{Error, ErrorKind, Result};
use crate::event_plane::{EventPlane, MemoryEventPlane};
use crate::metrics::Registry;
use crate::readiness::{Readiness, ServedHere};
use crate::request_plane::{MemoryRequestPlane, RequestPlane};

/// The ground a graph stands on; cheap to clone.
///
/// It owns the tasks of clients and servers; [`shutdown`](Self::shutdown) ends and joins them and those
/// of its planes, dropping the last clone ends them. What a layer runs, such as the copies of
/// [`Mirror`](crate::engine::layers::Mirror), ends with the layer.
#[derive(Clone)]
pub struct Runtime(Arc<Inner>);

struct Inner {
    discovery: Arc<dyn Discovery>,
    request_plane: Arc<dyn RequestPlane>,
    event_plane: Arc<dyn EventPlane>,
    metrics: Registry,
    served: ServedHere,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Runtime {
    /// Creates a runtime that needs no server: everything in the memory of this process.
    pub fn in_process() -> Self {
        Self::new(
            Arc::new(MemoryDiscovery::default()),
            Arc::new(MemoryRequestPlane::default()),
            Arc::new(MemoryEventPlane::default()),
        )
    }

    /// Creates a runtime on the given directory and planes.
    pub fn new(
        discovery: Arc<dyn Discovery>,
        request_plane: Arc<dyn RequestPlane>,
        event_plane: Arc<dyn EventPlane>,
    ) -> Self {
        let metrics = Registry::default();
        request_plane.measure(&metrics);
        Self(Arc::new(Inner {
            discovery,
            request_plane,
            event_plane,
            metrics,
            served: ServedHere::default(),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        }))
    }

    /// Returns the directory of instances.
    pub fn discovery(&self) -> &Arc<dyn Discovery> {
        &self.0.discovery
    }

    /// Returns the plane that carries requests.
    pub fn request_plane(&self) -> &Arc<dyn RequestPlane> {
        &self.0.request_plane
    }

    /// Returns the plane that carries events.
    pub fn event_plane(&self) -> &Arc<dyn EventPlane> {
        &self.0.event_plane
    }

    /// Returns what the clients and instances of this runtime count, and its request plane.
    pub fn metrics(&self) -> &Registry {
        &self.0.metrics
    }

    /// Returns how it stands with each instance that is served on this runtime.
    pub fn readiness(&self) -> Vec<Readiness> {
        self.0.served.readiness()
    }

    /// Ends the tasks of this runtime and its planes and waits for them, for `patience` at most
    /// ([`DeadlineExceeded`](ErrorKind::DeadlineExceeded)).
    ///
    /// Serve no longer before: a [`Serving`](crate::Serving) is ended by its owner.
    ///
    /// # Cancel safety
    /// Cancel safe; the tasks end all the same.
    pub async fn shutdown(&self, patience: Duration) -> Result<()> {
        self.0.shutdown.cancel();
        self.0.tasks.close();
        let ends = async {
            self.0.request_plane.shutdown().await;
            self.0.event_plane.shutdown().await;
            self.0.discovery.shutdown().await;
            self.0.tasks.wait().await;
        };
        tokio::time::timeout(patience, ends).await.map_err(|_| {
            let message = format!("{} tasks of the runtime did not end", self.0.tasks.len());
            Error::new(ErrorKind::DeadlineExceeded, message)
        })
    }

    pub(crate) fn served(&self) -> &ServedHere {
        &self.0.served
    }

    /// Runs `task` until it ends or the runtime does.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.0.shutdown.clone();
        self.0.tasks.spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = task => {}
            }
        });
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime")
            .field("discovery", &self.0.discovery)
            .field("request_plane", &self.0.request_plane)
            .field("event_plane", &self.0.event_plane)
            .finish_non_exhaustive()
    }
}
