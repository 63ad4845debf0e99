use std::marker::PhantomData;

use serde::de::DeserializeOwned;

use super::{CODEC, RawDelivery, RawSubscriber};

/// Receives values of one type from one topic.
#[derive(Debug)]
pub struct Subscriber<T> {
    raw: Box<dyn RawSubscriber>,
    value: PhantomData<fn() -> T>,
}

/// What a [`Subscriber`] receives.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Delivery<T> {
    /// An event.
    Event {
        /// What was published.
        value: T,
    },
    /// Events were lost here; whoever keeps state must ask its source again.
    Gap {
        /// How many: where the plane cannot know, all that may be lost, and one at least.
        missed: u64,
    },
}

impl<T: DeserializeOwned + 'static> Subscriber<T> {
    /// Decodes what `raw` receives.
    pub fn new(raw: Box<dyn RawSubscriber>) -> Self {
        Self { raw, value: PhantomData }
    }

    /// Receives what comes next; `None` once the plane is gone.
    ///
    /// Bytes that are not exactly one value of the type count as a lost event.
    ///
    /// # Cancel safety
    /// Cancel safe: no delivery is lost.
    pub async fn recv(&mut self) -> Option<Delivery<T>> {
        Some(match self.raw.recv().await? {
            RawDelivery::Event(payload) => match CODEC.decode(payload) {
                Ok(value) => Delivery::Event { value },
                Err(error) => {
                    tracing::warn!(%error, "event could not be decoded");
                    Delivery::Gap { missed: 1 }
                }
            },
            RawDelivery::Gap { missed } => Delivery::Gap { missed },
        })
    }
}
