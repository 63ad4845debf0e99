use std::collections::BTreeSet;

use dynamo_core::protocol::{GenerateRequest, Tier};
use dynamo_core::{Instance, Runtime};

use super::*;
use crate::fixtures::{self, holds, instance, until_heard, worker};
use crate::load::Load;
use crate::router::{Constraints, Decision, RouterConfig};

fn workers(count: u64) -> Vec<Instance> {
    (0..count).map(instance).collect()
}

fn component() -> Component {
    Runtime::in_process().namespace("n").unwrap().component("c").unwrap()
}

fn request() -> GenerateRequest {
    fixtures::request(0..640)
}

/// A router that knows that the first four workers hold a quarter of the prompt.
fn router() -> KvRouter {
    let config = RouterConfig::default().with_provisional_ttl(None);
    let router = KvRouter::new(config, Arc::new(SystemClock));
    let blocks = Arc::clone(&request().blocks);
    for id in 0..4 {
        router.apply(&holds(id, Tier::Device, &blocks, 10));
    }
    router
}

fn burst(router: &KvRouter) -> (BTreeSet<u64>, Vec<Decision>) {
    router.set_workers(&workers(8)).unwrap();
    let route = |_| router.route(&request(), &Constraints::default()).unwrap();
    let decisions: Vec<_> = (0..4).map(route).collect();
    (decisions.iter().map(|decision| decision.worker.instance.0).collect(), decisions)
}

fn of_others(router: &KvRouter) -> usize {
    let requests = |id| router.load(worker(id)).requests;
    (0..8).map(requests).sum::<usize>() - router.stats().bookings
}

async fn until_others_have(router: &KvRouter, requests: usize) {
    until_heard(router, || of_others(router) == requests).await;
}

#[tokio::test(start_paused = true)]
async fn routers_that_tell_each_other_do_not_herd() {
    let (herds, also) = (router(), router());
    let (first, _held) = burst(&herds);
    assert_eq!((first.clone(), burst(&also).0), ([0, 1, 2, 3].into(), first), "they herd");

    let (component, one, other) = (component(), router(), router());
    let config = ExchangeConfig::default;
    let exchange = BookingExchange::start(&one, &component, config()).await.unwrap();
    let its = BookingExchange::start(&other, &component, config()).await.unwrap();
    let (first, held) = burst(&one);
    until_others_have(&other, 4).await;
    let (second, its_held) = burst(&other);
    assert_eq!((first, second), ([0, 1, 2, 3].into(), [4, 5, 6, 7].into()));
    assert_eq!(one.stats().bookings, 4, "what others have booked is theirs");

    drop(held);
    until_others_have(&other, 0).await;
    until_others_have(&one, 4).await;
    // Who ends has nothing booked any more, whatever runs on, and sees nothing of the others.
    its.shutdown().await;
    until_others_have(&one, 0).await;
    exchange.shutdown().await;
    drop(its_held);
}

#[tokio::test(start_paused = true)]
async fn a_router_that_dies_is_forgotten_and_what_it_said_does_not_latch() {
    let (component, router) = (component(), router());
    router.set_workers(&workers(8)).unwrap();
    let config = ExchangeConfig::default().with_ttl(Duration::from_secs(2)).with_router(1, 0);
    let exchange = BookingExchange::start(&router, &component, config).await.unwrap();
    let dead = component.publisher::<Wire>(EVENT).unwrap();
    let started = SystemClock.now();
    dead.publish(&(2, 0, 0, vec![(worker(5), [3, 0, 640, 40])])).unwrap();
    until_others_have(&router, 3).await;
    until_others_have(&router, 0).await;
    let lasted = SystemClock.now() - started;
    assert!((2.0..2.1).contains(&lasted.as_secs_f64()), "{lasted:?}");
    exchange.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_said_of_a_worker_before_it_came_or_was_forgotten_counts_once_it_is_there() {
    let (component, router) = (component(), router());
    let ttl = Duration::from_secs(60);
    let config = ExchangeConfig::default().with_ttl(ttl);
    let exchange = BookingExchange::start(&router, &component, config).await.unwrap();
    let other = component.publisher::<Wire>(EVENT).unwrap();
    let loads = vec![(worker(0), [1, 0, 64, 4]), (worker(5), [3, 0, 640, 40])];
    other.publish(&(2, 0, 1, loads)).unwrap();
    until_others_have(&router, 1).await;
    assert_eq!(router.load(worker(5)), Load::default(), "nobody knows it");
    router.set_workers(&workers(8)).unwrap();
    until_others_have(&router, 4).await;

    // It is away for so long that nobody has its seat any more, and comes back.
    router.set_workers(&workers(4)).unwrap();
    tokio::time::advance(Duration::from_secs(11)).await;
    router.tidy();
    until_others_have(&router, 1).await;
    router.set_workers(&workers(8)).unwrap();
    assert_eq!(router.load(worker(5)), Load::default(), "its seat is another one");
    until_others_have(&router, 4).await;
    exchange.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn messages_are_as_many_as_the_interval_allows_and_signs_of_life_without_change() {
    let (component, router) = (component(), router());
    let mut hears = component.subscriber::<Wire>(EVENT).await.unwrap();
    let config = ExchangeConfig::default().with_ttl(Duration::from_secs(4));
    let config = config.with_interval(Duration::from_millis(100));
    let exchange = BookingExchange::start(&router, &component, config).await.unwrap();
    // For a second what is booked is another each time that somebody looks.
    for count in 0..100 {
        let _some: Vec<_> = burst(&router).1.into_iter().take(count % 4).collect();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let _held = burst(&router).1;
    tokio::time::sleep(Duration::from_secs(4)).await;
    exchange.shutdown().await;
    drop((component, router));
    let mut said = Vec::new();
    while let Ok(Some(Delivery::Event { value })) =
        tokio::time::timeout(Duration::from_secs(1), hears.recv()).await
    {
        said.push(Statement::from_wire(value));
    }
    assert!((6..=18).contains(&said.len()), "{} messages", said.len());
    assert!(said.windows(2).all(|two| two[0].seq < two[1].seq));
    let requests =
        |said: &Statement| said.loads.iter().map(|(_, load)| load.requests).sum::<usize>();
    assert_eq!(requests(&said[said.len() - 2]), 4, "a sign of life says all there is");
    assert_eq!(requests(said.last().unwrap()), 0, "the end is said");
}
