use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::Serialize;

use super::{CODEC, EventPlane, Topic};
use crate::error::{Error, Result};

/// Publishes values of one type on one topic; cheap to clone.
pub struct Publisher<T> {
    plane: Arc<dyn EventPlane>,
    topic: Topic,
    value: PhantomData<fn(T)>,
}

impl<T: Serialize + 'static> Publisher<T> {
    /// Creates a publisher on `plane`.
    pub fn new(plane: Arc<dyn EventPlane>, topic: Topic) -> Self {
        Self { plane, topic, value: PhantomData }
    }

    /// Sends `value` to whoever listens; never blocks.
    ///
    /// Fails with [`InvalidArgument`](crate::ErrorKind::InvalidArgument) if it does not encode, or
    /// is larger than the plane carries.
    pub fn publish(&self, value: &T) -> Result<()> {
        let payload = CODEC.encode(value).map_err(|error| {
            Error::new(error.kind(), format!("event on {}", self.topic)).with_source(error)
        })?;
        self.plane.publish(&self.topic, payload)
    }
}

impl<T> Clone for Publisher<T> {
    fn clone(&self) -> Self {
        Self { plane: Arc::clone(&self.plane), topic: self.topic.clone(), value: PhantomData }
    }
}

impl<T> fmt::Debug for Publisher<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("topic", &self.topic).finish_non_exhaustive()
    }
}
