//! One request out, one stream back.

#[cfg(any(test, feature = "test-util"))]
pub mod conformance;
mod ingress;
mod memory;
#[cfg(feature = "nats")]
mod nats;
#[cfg(any(feature = "tcp", feature = "nats"))]
#[cfg_attr(not(feature = "tcp"), expect(dead_code, unused_imports, reason = "TCP uses all of it"))]
mod remote;
#[cfg(feature = "tcp")]
mod tcp;

use std::fmt;

use async_trait::async_trait;

pub use ingress::{Ingress, Message};
pub use memory::MemoryRequestPlane;
#[cfg(feature = "nats")]
pub use nats::{NatsRequestPlane, NatsRequestPlaneConfig, NatsStats};
#[cfg(all(feature = "tls", any(test, feature = "test-util")))]
pub use tcp::fuzz_certificate;
#[cfg(feature = "tls")]
pub use tcp::{Identity, Pem, TlsConfig};
#[cfg(feature = "tcp")]
pub use tcp::{TcpConfig, TcpRequestPlane, TcpStats};

use crate::discovery::{Address, Instance};
use crate::error::Result;
use crate::metrics::Registry;
use crate::name::EndpointPath;
use crate::protocol::InstanceId;

/// Carries requests to instances and their streams back.
///
/// # Contract
/// - A request reaches at most one instance, at most once.
/// - Every stream ends in exactly one terminal event; an instance that goes away ends its streams
///   with an error, never with a short success.
/// - An error before the engine started is [retryable](crate::Error::is_retryable).
/// - Dropping the stream cancels the work behind it.
#[async_trait]
pub trait RequestPlane: Send + Sync + fmt::Debug + 'static {
    /// Makes `ingress` reachable as one incarnation of an instance of `endpoint` until the binding
    /// is dropped.
    async fn bind(
        &self,
        endpoint: &EndpointPath,
        id: (InstanceId, u64),
        ingress: Ingress,
    ) -> Result<Binding>;

    /// Returns the way to `instance`. One to another process stays good: what it needs to get
    /// there is made anew when it is gone.
    async fn dial(&self, instance: &Instance) -> Result<Ingress>;

    /// Asks whether `instance` is there; a request to it would start.
    ///
    /// Fails like a request would that is never started.
    async fn probe(&self, instance: &Instance) -> Result<()> {
        self.dial(instance).await.map(drop)
    }

    /// Lets `metrics` tell what the plane counts.
    fn measure(&self, _metrics: &Registry) {}

    /// Ends what the plane runs and joins it; streams that have not ended fail.
    async fn shutdown(&self) {}
}

/// Keeps an instance reachable; dropping it refuses further requests.
#[must_use = "dropping the binding makes the instance unreachable"]
pub struct Binding {
    address: Address,
    unbind: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Binding {
    /// Creates a guard for `address` that runs `unbind` once.
    pub fn new(address: Address, unbind: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self { address, unbind: Some(Box::new(unbind)) }
    }

    /// Returns where the instance is reached.
    pub fn address(&self) -> &Address {
        &self.address
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        if let Some(unbind) = self.unbind.take() {
            unbind();
        }
    }
}

impl fmt::Debug for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Binding").field("address", &self.address).finish_non_exhaustive()
    }
}
