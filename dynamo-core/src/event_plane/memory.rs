use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::broadcast;

use super::{EventPlane, RawDelivery, RawSubscriber, Topic};
use crate::error::Result;

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
        let topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = topics.get(topic) {
            // An error means that nobody listens, which is no failure of the publisher.
            let _ = sender.send(payload);
        }
        Ok(())
    }

    async fn subscribe(&self, topic: &Topic) -> Result<Box<dyn RawSubscriber>> {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
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

    use super::*;
    use crate::error::ErrorKind;
    use crate::event_plane::{Delivery, Publisher, Subscriber};
    use crate::name::Name;
    use crate::wire::codec::MESSAGE_BYTES_MAX;

    fn topic(event: &str) -> Topic {
        let name = |name| Name::new(name).unwrap();
        Topic { namespace: name("n"), component: name("c"), event: name(event) }
    }

    #[tokio::test]
    async fn every_listener_gets_every_event_in_order_and_only_of_its_topic() {
        let plane: Arc<dyn EventPlane> = Arc::new(MemoryEventPlane::default());
        let mut listeners = Vec::new();
        for _ in 0..2 {
            listeners.push(Subscriber::<u32>::new(plane.subscribe(&topic("a")).await.unwrap()));
        }
        Publisher::new(Arc::clone(&plane), topic("b")).publish(&9u32).unwrap();
        let publisher = Publisher::new(plane, topic("a"));
        (0..3u32).for_each(|value| publisher.publish(&value).unwrap());
        for listener in &mut listeners {
            for expected in 0..3 {
                let delivery = listener.recv().await.unwrap();
                assert_eq!(delivery, Delivery::Event { value: expected });
            }
        }
    }

    #[tokio::test]
    async fn a_loss_is_a_gap_that_counts_what_was_lost() {
        let plane: Arc<dyn EventPlane> =
            Arc::new(MemoryEventPlane::new(NonZeroUsize::new(2).unwrap()));
        let mut listener = Subscriber::<u32>::new(plane.subscribe(&topic("a")).await.unwrap());
        let publisher = Publisher::new(plane, topic("a"));
        (0..5u32).for_each(|value| publisher.publish(&value).unwrap());
        assert_eq!(listener.recv().await.unwrap(), Delivery::Gap { missed: 3 });
        assert_eq!(listener.recv().await.unwrap(), Delivery::Event { value: 3 });
    }

    #[tokio::test]
    async fn an_event_that_cannot_be_decoded_is_a_gap_of_one() {
        let plane: Arc<dyn EventPlane> = Arc::new(MemoryEventPlane::default());
        let mut listener = Subscriber::<String>::new(plane.subscribe(&topic("a")).await.unwrap());
        let more_than_one = Bytes::from_static(&[1, b'x', 0]);
        let announced = Bytes::from_static(&[253, 255, 255, 255, 255, 255, 255, 255, 127]);
        for bytes in [Bytes::from_static(&[250]), Bytes::new(), more_than_one, announced] {
            plane.publish(&topic("a"), bytes).unwrap();
            assert_eq!(listener.recv().await.unwrap(), Delivery::Gap { missed: 1 });
        }
        Publisher::new(plane, topic("a")).publish(&"x".to_owned()).unwrap();
        assert_eq!(listener.recv().await.unwrap(), Delivery::Event { value: "x".to_owned() });
    }

    #[tokio::test]
    async fn an_event_larger_than_a_message_is_refused_and_is_no_gap() {
        let plane: Arc<dyn EventPlane> = Arc::new(MemoryEventPlane::default());
        let mut listener = Subscriber::<Bytes>::new(plane.subscribe(&topic("a")).await.unwrap());
        let publisher = Publisher::new(plane, topic("a"));
        let large = Bytes::from(vec![0; MESSAGE_BYTES_MAX + 1]);
        let error = publisher.publish(&large).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.message().contains("n/c/a"), "{error}");
        publisher.publish(&large.slice(1..)).unwrap();
        assert_eq!(listener.recv().await.unwrap(), Delivery::Event { value: large.slice(1..) });
    }
}
