//! The suite that every [`EventPlane`] passes, through publishers and subscribers.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::{Delivery, EventPlane, Publisher, Subscriber, Topic};
use crate::error::ErrorKind;
use crate::name::Name;
use crate::wire::codec::MESSAGE_BYTES_MAX;

/// Runs the whole suite, each part on planes of its own from `make`: those of two processes, or
/// the same one twice if it does not reach beyond its process. Listeners lose events once they are
/// that many behind, or a few more.
///
/// # Panics
/// If the contract is broken.
pub async fn run(make: impl AsyncFn(NonZeroUsize) -> (Arc<dyn EventPlane>, Arc<dyn EventPlane>)) {
    let planes = async |backlog_max: usize| {
        let backlog_max = NonZeroUsize::new(backlog_max).expect("more than none");
        let (here, there) = make(backlog_max).await;
        Planes { here, there }
    };
    every_listener_hears_every_event_once_and_in_order(planes(4096).await).await;
    every_publisher_keeps_its_order(planes(4096).await).await;
    a_topic_is_its_whole_name(planes(4096).await).await;
    every_event_since_the_subscription_is_heard_or_counted(planes(4).await).await;
    what_was_published_before_is_not_heard(planes(4096).await).await;
    an_event_that_is_too_large_is_refused_and_is_no_gap(planes(4096).await).await;
    bytes_that_are_no_value_are_a_gap_of_one(planes(4096).await).await;
    a_listener_that_is_dropped_holds_nothing_and_nobody_up(planes(4096).await).await;
    a_plane_that_ends_ends_its_listeners_and_no_other(planes(4096).await).await;
}

/// Those who publish are here, those who listen are there.
struct Planes {
    here: Arc<dyn EventPlane>,
    there: Arc<dyn EventPlane>,
}

impl Planes {
    fn publisher(&self, topic: &Topic) -> Publisher<u64> {
        Publisher::new(Arc::clone(&self.here), topic.clone())
    }

    async fn listen(&self, topic: &Topic) -> Subscriber<u64> {
        Subscriber::new(self.there.subscribe(topic).await.expect("listens"))
    }
}

fn topic(names: [&str; 3]) -> Topic {
    let [namespace, component, event] = names.map(|name| Name::new(name).expect("a name"));
    Topic { namespace, component, event }
}

/// Publishes until all hear the same: between processes it takes a moment until they do.
async fn meet(publisher: &Publisher<u64>, listeners: &mut [Subscriber<u64>]) {
    let all = async |listeners: &mut [Subscriber<u64>], mark| {
        for listener in listeners {
            while listener.recv().await != Some(Delivery::Event { value: mark }) {}
        }
    };
    let meeting = async {
        for mark in MARKS.. {
            publisher.publish(&mark).expect("publishes");
            if tokio::time::timeout(A_MOMENT, all(listeners, mark)).await.is_ok() {
                return;
            }
        }
    };
    soon(meeting).await;
}

async fn next<T: serde::de::DeserializeOwned + 'static>(listener: &mut Subscriber<T>) -> T {
    match soon(listener.recv()).await {
        Some(Delivery::Event { value }) => value,
        other => unreachable!("an event, not {:?}", other.map(|_| "a gap")),
    }
}

/// Waits for what must happen soon.
async fn soon<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, wait).await.expect("happens soon")
}

const SOON: Duration = Duration::from_secs(30);
const A_MOMENT: Duration = Duration::from_millis(200);

/// Values from here on mean nothing.
const MARKS: u64 = 1 << 32;

async fn every_listener_hears_every_event_once_and_in_order(planes: Planes) {
    let topic = topic(["n", "c", "e"]);
    let mut listeners = [planes.listen(&topic).await, planes.listen(&topic).await];
    let publisher = planes.publisher(&topic);
    meet(&publisher, &mut listeners).await;
    (0..1000).for_each(|value| publisher.publish(&value).expect("publishes"));
    for listener in &mut listeners {
        for value in 0..1000 {
            assert_eq!(next(listener).await, value);
        }
    }
}

async fn every_publisher_keeps_its_order(planes: Planes) {
    let topic = topic(["n", "c", "e"]);
    let mut listener = [planes.listen(&topic).await];
    let ours = planes.publisher(&topic);
    let theirs = Publisher::new(Arc::clone(&planes.there), topic.clone());
    let publishers = [ours.clone(), theirs, ours];
    for publisher in &publishers {
        meet(publisher, &mut listener).await;
    }
    for value in 0..300 {
        for (who, publisher) in (0..).zip(&publishers) {
            publisher.publish(&(value + 1000 * who)).expect("publishes");
        }
    }
    let mut heard = [0; 3];
    for _ in 0..900 {
        let value = next(&mut listener[0]).await;
        let who = usize::try_from(value / 1000).expect("a publisher");
        assert_eq!(value % 1000, heard[who], "of publisher {who}");
        heard[who] += 1;
    }
}

async fn a_topic_is_its_whole_name(planes: Planes) {
    let ours = topic(["n", "c", "e"]);
    let others = [["n", "c", "e2"], ["n", "c2", "e"], ["n2", "c", "e"], ["n-c", "e", "e"]];
    let mut listener = [planes.listen(&ours).await];
    let publisher = planes.publisher(&ours);
    meet(&publisher, &mut listener).await;
    for other in others {
        planes.publisher(&topic(other)).publish(&1).expect("publishes");
    }
    publisher.publish(&2).expect("publishes");
    assert_eq!(next(&mut listener[0]).await, 2);
}

/// Also the first ones of a publisher that was never heard before.
async fn every_event_since_the_subscription_is_heard_or_counted(planes: Planes) {
    const EVENTS: u64 = 1000;
    let topic = topic(["n", "c", "e"]);
    let mut listener = planes.listen(&topic).await;
    let publisher = planes.publisher(&topic);
    (0..EVENTS).for_each(|value| publisher.publish(&value).expect("publishes"));
    let (mut told, mut gaps) = (0, 0);
    // Nothing more is published: the loss of the last one shows all the same.
    while told < EVENTS {
        match soon(listener.recv()).await.expect("the plane is there") {
            Delivery::Event { value } => {
                assert_eq!(value, told, "all before it were heard or counted");
                told += 1;
            }
            Delivery::Gap { missed } => {
                assert!(missed > 0);
                told += missed;
                gaps += 1;
            }
        }
    }
    assert_eq!(told, EVENTS);
    assert!(gaps > 0, "a backlog of a few has no room for all");
    publisher.publish(&EVENTS).expect("publishes");
    assert_eq!(next(&mut listener).await, EVENTS, "and it goes on");
}

async fn what_was_published_before_is_not_heard(planes: Planes) {
    let topic = topic(["n", "c", "e"]);
    let mut early = [planes.listen(&topic).await];
    let publisher = planes.publisher(&topic);
    meet(&publisher, &mut early).await;
    (0..10).for_each(|value| publisher.publish(&value).expect("publishes"));
    for value in 0..10 {
        assert_eq!(next(&mut early[0]).await, value);
    }
    let mut late = planes.listen(&topic).await;
    let first = async {
        for value in 10.. {
            publisher.publish(&value).expect("publishes");
            // A gap may be told, an event of before may not.
            let heard = async {
                loop {
                    if let Some(Delivery::Event { value }) = late.recv().await {
                        return value;
                    }
                }
            };
            if let Ok(value) = tokio::time::timeout(A_MOMENT, heard).await {
                return value;
            }
        }
        unreachable!("some event is heard")
    };
    assert!(soon(first).await >= 10);
}

async fn an_event_that_is_too_large_is_refused_and_is_no_gap(planes: Planes) {
    let topic = topic(["n", "c", "e"]);
    let mut listener = [planes.listen(&topic).await];
    let publisher = planes.publisher(&topic);
    meet(&publisher, &mut listener).await;
    let large = Bytes::from(vec![0; MESSAGE_BYTES_MAX + 1]);
    let typed = Publisher::new(Arc::clone(&planes.here), topic.clone()).publish(&large);
    let raw = planes.here.publish(&topic, large);
    for refused in [typed, raw] {
        let error = refused.expect_err("too large");
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::InvalidArgument, false));
        assert!(error.message().contains("n/c/e"), "{error}");
    }
    publisher.publish(&1).expect("publishes");
    assert_eq!(next(&mut listener[0]).await, 1);
}

async fn bytes_that_are_no_value_are_a_gap_of_one(planes: Planes) {
    let topic = topic(["n", "c", "e"]);
    let mut listener = Subscriber::<String>::new(planes.there.subscribe(&topic).await.expect("ok"));
    // It cannot tell what it has met; one that listens behind it can.
    meet(&planes.publisher(&topic), &mut [planes.listen(&topic).await]).await;
    let publisher = Publisher::new(Arc::clone(&planes.here), topic.clone());
    publisher.publish(&"x".to_owned()).expect("publishes");
    let is_met = Some(Delivery::Event { value: "x".to_owned() });
    soon(async { while listener.recv().await != is_met {} }).await;
    let more_than_one = Bytes::from_static(&[1, b'x', 0]);
    let announced = Bytes::from_static(&[253, 255, 255, 255, 255, 255, 255, 255, 127]);
    for bytes in [Bytes::from_static(&[250]), Bytes::new(), more_than_one, announced] {
        planes.here.publish(&topic, bytes).expect("publishes");
        assert_eq!(soon(listener.recv()).await, Some(Delivery::Gap { missed: 1 }));
    }
    publisher.publish(&"y".to_owned()).expect("publishes");
    assert_eq!(next(&mut listener).await, "y");
}

async fn a_listener_that_is_dropped_holds_nothing_and_nobody_up(planes: Planes) {
    /// Bytes that count themselves for as long as someone has them.
    struct Counted(Arc<AtomicUsize>);
    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            // A value: the number 7.
            &[7]
        }
    }
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let held = Arc::new(AtomicUsize::new(0));
    let topic = topic(["n", "c", "e"]);
    let publish = || {
        for _ in 0..100 {
            held.fetch_add(1, Ordering::SeqCst);
            let payload = Bytes::from_owner(Counted(Arc::clone(&held)));
            planes.here.publish(&topic, payload).expect("publishes");
        }
    };
    let nothing_held = || async {
        while held.load(Ordering::SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
    };
    let mut listeners = vec![planes.listen(&topic).await, planes.listen(&topic).await];
    meet(&planes.publisher(&topic), &mut listeners).await;
    publish();
    drop(listeners.pop());
    publish();
    for _ in 0..200 {
        assert_eq!(next(&mut listeners[0]).await, 7);
    }
    soon(nothing_held()).await;
    publish();
    drop(listeners);
    publish();
    soon(nothing_held()).await;
}

async fn a_plane_that_ends_ends_its_listeners_and_no_other(planes: Planes) {
    let topic = topic(["n", "c", "e"]);
    let is_shared = Arc::ptr_eq(&planes.here, &planes.there);
    let theirs = planes.listen(&topic).await;
    let ours = Subscriber::new(planes.here.subscribe(&topic).await.expect("listens"));
    let publisher = planes.publisher(&topic);
    let mut both = [theirs, ours];
    meet(&publisher, &mut both).await;
    let [mut theirs, mut ours] = both;
    soon(planes.there.shutdown()).await;
    let Planes { here, there } = planes;
    drop(there);
    publisher.publish(&1).expect("the other plane goes on");
    assert_eq!(next(&mut ours).await, 1);
    if is_shared {
        assert_eq!(next(&mut theirs).await, 1);
    } else {
        assert_eq!(soon(theirs.recv()).await, None);
    }
    drop((publisher, here));
    assert_eq!(soon(ours.recv()).await, None);
    assert_eq!(soon(theirs.recv()).await, None);
}
