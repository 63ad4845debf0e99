//! Events over a real NATS, and what listeners are told when it is killed.

use std::sync::Arc;
use std::time::Duration;

use dynamo_core::ErrorKind;
use dynamo_core::event_plane::{
    Delivery, EventPlane, NatsEventPlane, NatsEventPlaneConfig, Publisher, Subscriber, Topic,
    conformance,
};
use dynamo_core::name::Name;
use dynamo_core::protocol::InstanceId;

use crate::server::Server;

async fn plane(config: NatsEventPlaneConfig) -> Arc<dyn EventPlane> {
    Arc::new(NatsEventPlane::start(config).await.unwrap())
}

fn config(server: &Server) -> NatsEventPlaneConfig {
    NatsEventPlaneConfig::new(server.url())
}

fn topic() -> Topic {
    let name = |name| Name::new(name).unwrap();
    Topic { namespace: name("n"), component: name("c"), event: name("e") }
}

fn publisher(plane: &Arc<dyn EventPlane>) -> Publisher<u32> {
    Publisher::new(Arc::clone(plane), topic())
}

async fn listen(plane: &Arc<dyn EventPlane>) -> Subscriber<u32> {
    Subscriber::new(plane.subscribe(&topic()).await.unwrap())
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
async fn the_nats_event_plane_conforms() {
    let Some(server) = Server::start() else { return };
    conformance::run(async |backlog_max| {
        let config = || config(&server).with_backlog_max(backlog_max.get());
        (plane(config()).await, plane(config()).await)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lost_while_nats_is_away_is_a_gap_and_never_silence() {
    let Some(mut server) = Server::start() else { return };
    let (ours, theirs) = (plane(config(&server)).await, plane(config(&server)).await);
    let (publisher, mut listener) = (publisher(&ours), listen(&theirs).await);
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
async fn what_a_publisher_that_begins_while_nats_is_away_loses_is_counted() {
    const EVENTS: u64 = 10_000;
    let Some(mut server) = Server::start() else { return };
    let theirs = plane(config(&server)).await;
    let mut listener = listen(&theirs).await;
    server.kill();
    // Nobody has ever heard of it, and most of what it says has no room to wait.
    let ours = plane(config(&server).with_backlog_max(1)).await;
    let publisher = publisher(&ours);
    (0..EVENTS).for_each(|_| publisher.publish(&0).unwrap());
    server.restart();
    let (mut told, mut gaps) = (0, 0);
    while told < EVENTS {
        match next(&mut listener).await {
            Delivery::Event { .. } => told += 1,
            Delivery::Gap { missed } => (told, gaps) = (told + missed, gaps + 1),
            other => unreachable!("{other:?}"),
        }
    }
    assert_eq!(told, EVENTS);
    assert!(gaps > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_publisher_takes_with_it_when_it_ends_is_a_gap_once_it_is_back() {
    let Some(server) = Server::start() else { return };
    let named = || config(&server).with_publisher(InstanceId(7));
    let (theirs, first) = (plane(config(&server)).await, plane(named()).await);
    let mut listener = listen(&theirs).await;
    warm_up(&publisher(&first), &mut listener).await;
    first.shutdown().await;
    drop(first);
    let second = plane(named()).await;
    publisher(&second).publish(&1).unwrap();
    // Its first event is here, and all of its numbers; what the other life ended with, who knows.
    assert_eq!(heard(&mut listener).await, Delivery::Gap { missed: 1 });
    assert_eq!(next(&mut listener).await, Delivery::Event { value: 1 });
    publisher(&second).publish(&2).unwrap();
    assert_eq!(next(&mut listener).await, Delivery::Event { value: 2 });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_may_come_later_and_events_that_it_cannot_carry_are_refused() {
    let Some(mut server) = Server::start() else { return };
    server.kill();
    let ours = plane(config(&server)).await;
    let publisher = publisher(&ours);
    publisher.publish(&1u32).unwrap();
    server.restart();
    let mut listener = listen(&ours).await;
    warm_up(&publisher, &mut listener).await;
    // What the server takes at most.
    let large =
        Publisher::new(Arc::clone(&ours), topic()).publish(&vec![0u8; 2 << 20]).unwrap_err();
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
