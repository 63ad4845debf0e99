//! Who serves what: instances register, clients watch.

#[cfg(feature = "etcd")]
mod etcd;
#[cfg(all(feature = "file", unix))]
mod file;
mod instance;
mod known;
mod local;
mod memory;
mod registration;
mod static_list;
mod view;

use std::fmt;

use async_trait::async_trait;
use futures::stream::BoxStream;

#[cfg(all(feature = "etcd", any(test, feature = "test-util")))]
pub use etcd::key::fuzz_etcd_key;
#[cfg(feature = "etcd")]
pub use etcd::{EtcdConfig, EtcdDiscovery};
#[cfg(all(feature = "file", unix))]
pub use file::{FileConfig, FileDiscovery};
pub use instance::{Address, Instance};
pub use memory::MemoryDiscovery;
pub use registration::{Displacement, Registration};
pub use static_list::StaticDiscovery;
pub use view::View;

use crate::error::Result;
use crate::name::EndpointPath;
use crate::protocol::InstanceId;

#[cfg(any(test, feature = "test-util"))]
pub mod conformance;

/// A directory of instances.
///
/// | directory | who sees a registration | who removes it when its process dies |
/// |---|---|---|
/// | [`MemoryDiscovery`] | this process | – |
/// | [`StaticDiscovery`] | this process; others see the list | nobody |
/// | `FileDiscovery` (`file`) | processes of one host | the system, with its lock |
/// | `EtcdDiscovery` (`etcd`) | whoever reaches the same etcd | etcd, with its lease |
///
/// # Contract
/// - A registration is visible to every watch that starts after `register` returns, and reaches
///   every running watch in finite time. In another process that watches already, the first
///   snapshot of a further watch is no older than the call of `watch`.
/// - Dropping the [`Registration`], or the future of `register`, removes the instance, in finite
///   time; it may register again at once.
/// - Removal is of one registration: whoever has taken its id over stays.
/// - A registration whose id another one has taken over is not listed any more and does not come
///   back: [`Registration::displaced`] says so, once the directory knows.
/// - What was said stays while the directory is away; a listing replaces it when it is back.
/// - A watch of one endpoint never shows an instance of another.
/// - The first item of a watch is a [`Change::Snapshot`].
/// - [`Change::Remove`] is the word of the instance itself, or proof that its process is dead: it is
///   gone. A later snapshot that lacks an instance is only absence: the directory has lost sight of
///   it, and it may live.
/// - A watch that is not polled queues nothing: it is told what the present differs by.
/// - After `shutdown`, `register` and `watch` fail with [`Closed`](crate::ErrorKind::Closed), and
///   watches end; what they have said stays. A directory inside the process runs nothing, and is
///   shared by its runtimes: it goes on until it is dropped.
#[async_trait]
pub trait Discovery: Send + Sync + fmt::Debug + 'static {
    /// Makes `instance` known until the returned guard is dropped.
    ///
    /// Fails with [`Conflict`](crate::ErrorKind::Conflict) if the endpoint has an instance of the
    /// same id with the same or a higher incarnation.
    async fn register(&self, instance: Instance) -> Result<Registration>;

    /// Follows the instances of `endpoint`.
    ///
    /// A directory that is away fails no watch: the first item waits until it is there.
    async fn watch(&self, endpoint: &EndpointPath) -> Result<BoxStream<'static, Change>>;

    /// Removes what is registered through this directory, ends what it runs and joins it.
    async fn shutdown(&self) {}
}

/// What a watch says; fold it with [`View::apply`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// Everything that is known; replaces what was said before. Whoever is not in it has not said
    /// that it leaves: it is only absent.
    Snapshot(Vec<Instance>),
    /// An instance appeared or changed.
    Upsert(Instance),
    /// An instance is gone: it has left, or its directory has found it dead.
    Remove(InstanceId),
    /// The directory cannot be reached; what is known may be stale.
    Degraded,
    /// The directory is back; a snapshot follows.
    Recovered,
}
