//! Who serves what: instances register, clients watch.

#[cfg(feature = "etcd")]
mod etcd;
mod instance;
mod memory;
mod view;

use std::fmt;

use async_trait::async_trait;
use futures::stream::BoxStream;

#[cfg(all(feature = "etcd", any(test, feature = "test-util")))]
pub use etcd::key::fuzz_etcd_key;
#[cfg(feature = "etcd")]
pub use etcd::{EtcdConfig, EtcdDiscovery};
pub use instance::{Address, Instance};
pub use memory::MemoryDiscovery;
pub use view::View;

use crate::error::Result;
use crate::name::EndpointPath;
use crate::protocol::InstanceId;

#[cfg(any(test, feature = "test-util"))]
pub mod conformance;

/// A directory of instances.
///
/// # Contract
/// - A registration is visible to every watch that starts after `register` returns, and reaches
///   every running watch in finite time.
/// - Dropping the [`Registration`] removes the instance, in finite time.
/// - What was said stays while the directory is away; a listing replaces it when it is back.
/// - A watch of one endpoint never shows an instance of another.
/// - The first item of a watch is a [`Change::Snapshot`].
#[async_trait]
pub trait Discovery: Send + Sync + fmt::Debug + 'static {
    /// Makes `instance` known until the returned guard is dropped.
    ///
    /// Fails with [`Conflict`](crate::ErrorKind::Conflict) if the endpoint has an instance of the
    /// same id with the same or a higher incarnation.
    async fn register(&self, instance: Instance) -> Result<Registration>;

    /// Follows the instances of `endpoint`.
    async fn watch(&self, endpoint: &EndpointPath) -> Result<BoxStream<'static, Change>>;

    /// Removes what is registered, ends what the directory runs and joins it.
    async fn shutdown(&self) {}
}

/// What a watch says; fold it with [`View::apply`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// Everything that is registered; replaces what was said before.
    Snapshot(Vec<Instance>),
    /// An instance appeared or changed.
    Upsert(Instance),
    /// An instance disappeared.
    Remove(InstanceId),
    /// The directory cannot be reached; what is known may be stale.
    Degraded,
    /// The directory is back; a snapshot follows.
    Recovered,
}

/// Keeps an instance registered; dropping it removes the instance.
#[must_use = "dropping the registration removes the instance"]
pub struct Registration(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Registration {
    /// Creates a guard that runs `remove` once.
    pub fn new(remove: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(remove)))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(remove) = self.0.take() {
            remove();
        }
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").finish_non_exhaustive()
    }
}
