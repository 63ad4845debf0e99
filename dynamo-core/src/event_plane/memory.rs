use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::broadcast;

use super::{EventPlane, RawDelivery, RawSubscriber, Topic};
use crate::error::{Error, Result};
use crate::wire::codec::MESSAGE_BYTES_MAX;

/// The plane inside the process: each listener may fall behind by a bounded number of events.
#[derive(Debug)]
pub struct MemoryEventPlane {
    topics: Mutex<HashMap<Topic, broadcast::Sender<Bytes>>>,
    backlog_max: NonZeroUsize,
}

impl MemoryEventPlane {
    /// Creates a plane whose listeners lose events once they are `backlog_max` behind.
    pub fn new(backlog_max: NonZeroUsize) -> Self {
        Self { topics: Mutex::default(), backlog_max }
    }
}

impl Default for MemoryEventPlane {
    fn default() -> Self {
        Self::new(BACKLOG_MAX)
    }
}

#[async_trait]
impl EventPlane for MemoryEventPlane {
    fn publish(&self, topic: &Topic, payload: Bytes) -> Result<()> {
        if payload.len() > MESSAGE_BYTES_MAX {
            let (length, most) = (payload.len(), MESSAGE_BYTES_MAX);
            return Err(Error::invalid(format!(
                "event of {length} bytes on {topic}, at most {most}"
            )));
        }
        let topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = topics.get(topic) {
            // An error means that nobody listens, which is no failure of the publisher.
            let _ = sender.send(payload);
        }
        Ok(())
    }

    async fn subscribe(&self, topic: &Topic) -> Result<Box<dyn RawSubscriber>> {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        // Topics that nobody listens to any more.
        topics.retain(|_, sender| sender.receiver_count() > 0);
        let sender = topics
            .entry(topic.clone())
            .or_insert_with(|| broadcast::Sender::new(self.backlog_max.get()));
        Ok(Box::new(MemorySubscriber(sender.subscribe())))
    }
}

#[derive(Debug)]
struct MemorySubscriber(broadcast::Receiver<Bytes>);

#[async_trait]
impl RawSubscriber for MemorySubscriber {
    async fn recv(&mut self) -> Option<RawDelivery> {
        match self.0.recv().await {
            Ok(payload) => Some(RawDelivery::Event(payload)),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(RawDelivery::Gap { missed }),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// A second of events at 4,000 per second: more than a large fleet's router falls behind.
const BACKLOG_MAX: NonZeroUsize = match NonZeroUsize::new(4096) {
    Some(backlog) => backlog,
    None => unreachable!(),
};

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::conformance;
    use super::*;
    use crate::event_plane::{Delivery, Publisher, Subscriber};
    use crate::name::Name;

    fn topic(event: &str) -> Topic {
        let name = |name| Name::new(name).unwrap();
        Topic { namespace: name("n"), component: name("c"), event: name(event) }
    }

    #[tokio::test]
    async fn the_memory_plane_conforms() {
        conformance::run(async |backlog_max| {
            let plane: Arc<dyn EventPlane> = Arc::new(MemoryEventPlane::new(backlog_max));
            (Arc::clone(&plane), plane)
        })
        .await;
    }

    #[tokio::test]
    async fn the_oldest_events_are_lost_and_counted() {
        let plane: Arc<dyn EventPlane> =
            Arc::new(MemoryEventPlane::new(NonZeroUsize::new(2).unwrap()));
        let mut listener = Subscriber::<u32>::new(plane.subscribe(&topic("a")).await.unwrap());
        let publisher = Publisher::new(plane, topic("a"));
        (0..5u32).for_each(|value| publisher.publish(&value).unwrap());
        assert_eq!(listener.recv().await.unwrap(), Delivery::Gap { missed: 3 });
        assert_eq!(listener.recv().await.unwrap(), Delivery::Event { value: 3 });
    }

    #[tokio::test]
    async fn topics_that_nobody_listens_to_any_more_are_not_kept() {
        let plane = MemoryEventPlane::default();
        for n in 0..100 {
            let listener = plane.subscribe(&topic(&format!("t{n}"))).await.unwrap();
            assert_eq!(plane.topics.lock().unwrap().len(), 1);
            drop(listener);
        }
    }
}
