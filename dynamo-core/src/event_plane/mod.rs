//! One publisher, many listeners: lossy by contract, and honest about every loss.

#[cfg(any(test, feature = "test-util"))]
pub mod conformance;
mod memory;
#[cfg(feature = "nats")]
mod nats;
mod publisher;
#[cfg(any(test, feature = "nats"))]
mod sequence;
mod subscriber;

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;

pub use memory::MemoryEventPlane;
#[cfg(feature = "nats")]
pub use nats::{NatsEventPlane, NatsEventPlaneConfig};
pub use publisher::Publisher;
#[cfg(all(feature = "nats", any(test, feature = "test-util")))]
pub use sequence::fuzz_event;
pub use subscriber::{Delivery, Subscriber};

use crate::error::Result;
use crate::name::Name;
use crate::wire::codec::Codec;

/// Carries events from publishers to whoever listens.
///
/// # Contract
/// - `publish` never blocks. A listener that falls behind loses events.
/// - Whatever was published since [`subscribe`](Self::subscribe) returned and is not heard is a
///   [`RawDelivery::Gap`] in the listener's stream, never silence; a gap may be told where nothing
///   was lost. What was published before is no loss.
/// - Events of one publisher arrive in the order they were published, each once at most.
#[async_trait]
pub trait EventPlane: Send + Sync + fmt::Debug + 'static {
    /// Sends `payload` to everyone who listens to `topic` at this moment.
    ///
    /// Fails with [`InvalidArgument`](crate::ErrorKind::InvalidArgument) if it is larger than the
    /// plane carries; nobody is told a gap then.
    fn publish(&self, topic: &Topic, payload: Bytes) -> Result<()>;

    /// Starts to listen to `topic`.
    async fn subscribe(&self, topic: &Topic) -> Result<Box<dyn RawSubscriber>>;

    /// Ends what the plane runs and joins it; its listeners hear nothing any more.
    ///
    /// A plane that runs nothing, and that the runtimes of a process share, goes on for the others.
    async fn shutdown(&self) {}
}

/// The listening end of one topic, before decoding.
#[async_trait]
pub trait RawSubscriber: Send + fmt::Debug + 'static {
    /// Receives what comes next; `None` once the plane is gone. Cancel safe.
    async fn recv(&mut self) -> Option<RawDelivery>;
}

/// What a listener gets, before decoding.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RawDelivery {
    /// An event.
    Event(Bytes),
    /// Events were lost here.
    Gap {
        /// How many: where the plane cannot know, all that may be lost, and one at least.
        missed: u64,
    },
}

/// What events are about: `namespace/component/event`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Topic {
    /// The namespace of the publishers.
    pub namespace: Name,
    /// The component of the publishers.
    pub component: Name,
    /// The kind of event.
    pub event: Name,
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.component, self.event)
    }
}

/// How events are encoded: publishers and listeners agree on nothing beforehand, so all alike.
const CODEC: Codec = Codec::Bincode;
