//! Events over a real NATS, and what listeners are told when it is killed.

use std::sync::Arc;
use std::time::Duration;

use dynamo_core::ErrorKind;
use dynamo_core::event_plane::{
    Delivery, EventPlane, NatsEventPlane, NatsEventPlaneConfig, Publisher, Subscriber, Topic,
};
use dynamo_core::name::Name;

use crate::server::Server;

async fn plane(server: &Server) -> NatsEventPlane {
    NatsEventPlane::start(NatsEventPlaneConfig::new(server.url())).await.unwrap()
}

fn topic(event: &str) -> Topic {
    let name = |name| Name::new(name).unwrap();
    Topic { namespace: name("n"), component: name("c"), event: name(event) }
}

async fn listen(plane: &NatsEventPlane, event: &str) -> Subscriber<u32> {
    Subscriber::new(plane.subscribe(&topic(event)).await.unwrap())
}

async fn next(listener: &mut Subscriber<u32>) -> Delivery<u32> {
    tokio::time::timeout(Duration::from_secs(60), listener.recv()).await.unwrap().unwrap()
}

/// Publishes until a listener hears something: the connections are up then.
async fn warm_up(publisher: &Publisher<u32>, listener: &mut Subscriber<u32>) {
    loop {
        publisher.publish(&u32::MAX).unwrap();
        let heard = tokio::time::timeout(Duration::from_millis(100), listener.recv()).await;
        if matches!(heard, Ok(Some(Delivery::Event { .. }))) {
            return;
        }
    }
}

/// Skips what the warm-up has left behind.
async fn heard(listener: &mut Subscriber<u32>) -> Delivery<u32> {
    loop {
        let delivery = next(listener).await;
        if !matches!(delivery, Delivery::Event { value: u32::MAX }) {
            return delivery;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_listener_hears_every_event_in_order_and_only_of_its_topic() {
    let Some(server) = Server::start() else { return };
    let (ours, theirs) = (Arc::new(plane(&server).await), plane(&server).await);
    let mut listeners = vec![listen(&theirs, "a").await, listen(&ours, "a").await];
    let publisher =
        Publisher::new(Arc::<NatsEventPlane>::clone(&ours) as Arc<dyn EventPlane>, topic("a"));
    for listener in &mut listeners {
        warm_up(&publisher, listener).await;
    }
    let other: Arc<dyn EventPlane> = Arc::<NatsEventPlane>::clone(&ours);
    Publisher::new(other, topic("b")).publish(&9u32).unwrap();
    (0..1000).for_each(|value| publisher.publish(&value).unwrap());
    for listener in &mut listeners {
        assert_eq!(heard(listener).await, Delivery::Event { value: 0 });
        for value in 1..1000 {
            assert_eq!(next(listener).await, Delivery::Event { value });
        }
    }
    theirs.shutdown().await;
    assert!(listeners[0].recv().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lost_while_nats_is_away_is_a_gap_and_never_silence() {
    let Some(mut server) = Server::start() else { return };
    let (ours, theirs) = (Arc::new(plane(&server).await), plane(&server).await);
    let mut listener = listen(&theirs, "a").await;
    let plane: Arc<dyn EventPlane> = Arc::<NatsEventPlane>::clone(&ours);
    let publisher = Publisher::new(plane, topic("a"));
    warm_up(&publisher, &mut listener).await;
    for round in 0..3 {
        server.kill();
        // Nothing blocks and nothing fails; what can wait waits, the rest is lost.
        (0..100).for_each(|value| publisher.publish(&value).unwrap());
        server.restart();
        // No further event is published: what is missing shows all the same.
        let mut told = 0;
        while told < 100 {
            match heard(&mut listener).await {
                Delivery::Event { .. } => told += 1,
                Delivery::Gap { missed } => told += missed,
                other => unreachable!("{other:?}"),
            }
        }
        assert_eq!(told, 100, "round {round}: each is heard or counted as missed, once");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_may_come_later_and_events_that_it_cannot_carry_are_refused() {
    let Some(mut server) = Server::start() else { return };
    server.kill();
    let ours = Arc::new(plane(&server).await);
    let plane: Arc<dyn EventPlane> = Arc::<NatsEventPlane>::clone(&ours);
    let publisher = Publisher::new(Arc::clone(&plane), topic("a"));
    publisher.publish(&1u32).unwrap();
    server.restart();
    let mut listener = listen(&ours, "a").await;
    warm_up(&publisher, &mut listener).await;
    let large = Publisher::new(plane, topic("a")).publish(&vec![0u8; 2 << 20]).unwrap_err();
    assert_eq!(large.kind(), ErrorKind::InvalidArgument);
    for bad in [
        NatsEventPlaneConfig::new("").with_root("a.b"),
        NatsEventPlaneConfig::new("").with_backlog_max(0),
    ] {
        let error = NatsEventPlane::start(bad).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
    ours.shutdown().await;
    assert_eq!(publisher.publish(&1u32).unwrap_err().kind(), ErrorKind::Closed);
}
