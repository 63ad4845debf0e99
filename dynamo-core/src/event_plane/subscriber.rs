use std::marker::PhantomData;

use serde::de::DeserializeOwned;

use super::{RawDelivery, RawSubscriber};

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
        /// The number of events lost.
        missed: u64,
    },
}

impl<T: DeserializeOwned> Subscriber<T> {
    /// Decodes what `raw` receives.
    pub fn new(raw: Box<dyn RawSubscriber>) -> Self {
        Self { raw, value: PhantomData }
    }

    /// Receives what comes next; `None` once the plane is gone.
    ///
    /// An event that cannot be decoded counts as lost.
    ///
    /// # Cancel safety
    /// Cancel safe: no delivery is lost.
    pub async fn recv(&mut self) -> Option<Delivery<T>> {
        Some(match self.raw.recv().await? {
            RawDelivery::Event(payload) => match decode(&payload) {
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

fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, bincode::error::DecodeError> {
    let config = bincode::config::standard().with_limit::<EVENT_BYTES_MAX>();
    bincode::serde::decode_from_slice(payload, config).map(|(value, _)| value)
}

/// Larger than an event of a full 128k-token prompt by an order of magnitude.
const EVENT_BYTES_MAX: usize = 4 << 20;
