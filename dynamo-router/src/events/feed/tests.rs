use std::sync::Arc;
use std::time::Duration;

use dynamo_core::Runtime;
use dynamo_core::protocol::{
    InstanceId, KvChange, LocalHash, SequenceHash, StoredBlock, Tier, WorkerId,
};
use dynamo_core::time::SystemClock;

use super::*;
use crate::router::RouterConfig;

fn stored(seq: u64) -> KvEvent {
    let blocks = vec![StoredBlock { sequence: SequenceHash(seq), local: LocalHash(seq) }];
    let change = KvChange::BlockStored { parent: None, blocks, tier: Tier::Device };
    KvEvent { worker: WorkerId::new(InstanceId(1)), epoch: 0, seq, change }
}

async fn until(holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap();
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
