use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use dynamo_core::discovery::MemoryDiscovery;
use dynamo_core::event_plane::MemoryEventPlane;
use dynamo_core::protocol::{InstanceId, KvChange, KvCursor, Tier};
use dynamo_core::request_plane::MemoryRequestPlane;
use dynamo_core::time::SystemClock;
use dynamo_core::{Component, Context, ResponseStream, Runtime, ServeOptions, Serving, engine_fn};
use futures::stream;

use super::*;
use crate::RANKS_LABEL;
use crate::fixtures::{block, until};
use crate::router::RouterConfig;

fn stored(seq: u64) -> KvEvent {
    let blocks = vec![block(seq)];
    let change = KvChange::BlockStored { parent: None, blocks, tier: Tier::Device };
    KvEvent { worker: WorkerId::new(InstanceId(1)), epoch: 0, seq, change }
}

#[tokio::test]
async fn published_events_reach_the_index_until_the_feed_is_shut_down() {
    let component = Runtime::in_process().namespace("n").unwrap().component("c").unwrap();
    let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
    let feed = EventFeed::start(router.clone(), component.subscriber("kv").await.unwrap());
    let publisher = component.publisher("kv").unwrap();
    (0..3).for_each(|seq| publisher.publish(&stored(seq)).unwrap());
    until(|| router.stats().indexed_blocks == 3).await;
    feed.shutdown().await;
    publisher.publish(&stored(3)).unwrap();
    tokio::task::yield_now().await;
    assert_eq!(router.stats().indexed_blocks, 3);
}

#[tokio::test]
async fn a_dropped_feed_ends_its_task() {
    let component = Runtime::in_process().namespace("n").unwrap().component("c").unwrap();
    let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
    let feed = EventFeed::start(router, component.subscriber("kv").await.unwrap());
    let tasks = feed.tasks.clone();
    drop(feed);
    until(|| tasks.is_empty()).await;
}

/// Serves snapshots that never come; returns how many are waited for, and the most that ever were.
async fn silent(component: &Component, workers: u64) -> (Vec<Serving>, [Arc<AtomicUsize>; 2]) {
    let counts = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
    let mut servings = Vec::new();
    for id in 1..=workers {
        let [now, most] = counts.clone();
        let engine = engine_fn(move |ctx: Context, _: SnapshotRequest| {
            let waiting = now.fetch_add(1, Ordering::Relaxed) + 1;
            most.fetch_max(waiting, Ordering::Relaxed);
            let guard = Leaves(Arc::clone(&now));
            async move { Ok(ResponseStream::new(&ctx, stream::pending()).with_guard(guard)) }
        });
        let endpoint = component.endpoint::<_, SnapshotPage>("kv_snapshot").unwrap();
        let options = ServeOptions::default().with_instance(InstanceId(id));
        servings.push(endpoint.serve_with(engine, options).await.unwrap());
    }
    (servings, counts)
}

struct Leaves(Arc<AtomicUsize>);

impl Drop for Leaves {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn asking(component: &Component, router: &KvRouter) -> EventFeed {
    let events = component.subscriber("kv").await.unwrap();
    let snapshots = component.endpoint("kv_snapshot").unwrap().client().await.unwrap();
    let config = ResyncConfig::default().with_at_once(2).with_attempts(2);
    EventFeed::start_with_snapshots(router.clone(), events, snapshots, config)
}

#[tokio::test(start_paused = true)]
async fn workers_that_do_not_answer_are_asked_a_few_at_a_time_and_given_up() {
    let component = Runtime::in_process().namespace("n").unwrap().component("c").unwrap();
    let (_servings, [now, most]) = silent(&component, 5).await;
    let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
    let feed = asking(&component, &router).await;
    let publisher = component.publisher("kv").unwrap();
    for id in 1..=5 {
        publisher.publish(&KvEvent { worker: WorkerId::new(InstanceId(id)), ..stored(7) }).unwrap();
    }
    let given_up = async {
        while router.event_stats().dropped_total < 5 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    // Three rounds of two attempts of ten seconds, and the waits between them.
    tokio::time::timeout(Duration::from_secs(90), given_up).await.unwrap();
    assert_eq!(most.load(Ordering::Relaxed), 2);
    let stats = router.event_stats();
    assert_eq!((stats.suspect, stats.blocks, stats.snapshots_total), (0, 1, 0), "{stats:?}");
    feed.shutdown().await;
    until(|| now.load(Ordering::Relaxed) == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_feed_that_is_shut_down_ends_its_questions_and_leaves_nobody_waiting() {
    let component = Runtime::in_process().namespace("n").unwrap().component("c").unwrap();
    let (_servings, [now, _]) = silent(&component, 1).await;
    let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
    let feed = asking(&component, &router).await;
    component.publisher("kv").unwrap().publish(&stored(7)).unwrap();
    until(|| router.event_stats().suspect == 1 && now.load(Ordering::Relaxed) == 1).await;
    feed.shutdown().await;
    until(|| now.load(Ordering::Relaxed) == 0).await;
    let stats = router.event_stats();
    assert_eq!((stats.suspect, stats.blocks, stats.dropped_total), (0, 1, 1), "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_last_event_the_plane_has_lost_is_asked_long_before_its_audit() {
    let (discovery, plane) = (MemoryDiscovery::default(), MemoryRequestPlane::default());
    let events = MemoryEventPlane::new(NonZeroUsize::MIN);
    let runtime = Runtime::new(Arc::new(discovery), Arc::new(plane), Arc::new(events));
    let component = runtime.namespace("n").unwrap().component("c").unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let engine = engine_fn(move |ctx: Context, request: SnapshotRequest| {
        seen.lock().unwrap().push(request.known);
        let (worker, cursor) = (request.worker, KvCursor { epoch: 0, next: 1 });
        let page = SnapshotPage { worker, cursor, stored: vec![stored(0).change] };
        async move { Ok(ResponseStream::from_items(&ctx, [page])) }
    });
    let endpoint = component.endpoint::<_, SnapshotPage>("kv_snapshot").unwrap();
    let options = ServeOptions::default().with_instance(InstanceId(1));
    let _serving = endpoint.serve_with(engine, options).await.unwrap();

    let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
    let (events, client) =
        (component.subscriber("kv").await.unwrap(), endpoint.client().await.unwrap());
    client.wait_ready(Duration::from_secs(1)).await.unwrap();
    let config = ResyncConfig::default().with_audit_every(Duration::from_secs(3600));
    let feed = EventFeed::start_with_snapshots(router.clone(), events, client, config);
    until(|| router.event_stats().snapshots_total == 1).await;
    let publisher = component.publisher("kv").unwrap();
    // There is room for one: the other worker's. Of the first nothing follows.
    publisher.publish(&stored(1)).unwrap();
    publisher.publish(&KvEvent { worker: WorkerId::new(InstanceId(2)), ..stored(0) }).unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(*asked.lock().unwrap(), [None, Some(KvCursor { epoch: 0, next: 1 })]);
    feed.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn every_rank_of_an_instance_that_says_nothing_is_asked_what_it_holds() {
    let component = Runtime::in_process().namespace("n").unwrap().component("c").unwrap();
    let engine = engine_fn(|ctx: Context, request: SnapshotRequest| async move {
        let (worker, cursor) = (request.worker, KvCursor { epoch: 0, next: 1 });
        let page = SnapshotPage { worker, cursor, stored: vec![stored(0).change] };
        Ok(ResponseStream::from_items(&ctx, [page]))
    });
    let endpoint = component.endpoint::<_, SnapshotPage>("kv_snapshot").unwrap();
    let options = ServeOptions::default().with_label(RANKS_LABEL, "4");
    let _serving = endpoint.serve_with(engine, options).await.unwrap();
    let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
    let feed = asking(&component, &router).await;
    until(|| router.event_stats().snapshots_total == 4).await;
    assert_eq!(router.event_stats().workers, 4);
    feed.shutdown().await;
}
