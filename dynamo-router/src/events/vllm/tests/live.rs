//! Over loopback, with sockets of ZeroMQ that are not ours.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dynamo_core::protocol::{BlockSize, KvEvent, SequenceHash, Tier};
use dynamo_core::random::Random;
use dynamo_core::time::{ManualClock, SystemClock};
use zeromq::{PubSocket, Socket};

use super::WORKER;
use super::engine::{Act, Fold, store};
use super::fleet::Fleet;
use crate::events::vllm::{VllmConfig, VllmEvents};
use crate::fixtures::instance;
use crate::router::{KvRouter, RouterConfig};

const BLOCK_SIZE: BlockSize = BlockSize::new(8).unwrap();

fn config(endpoint: &str) -> VllmConfig {
    super::config(endpoint, 8).with_topic("kv@")
}

#[derive(Clone, Default)]
struct Index(Arc<Mutex<Fold>>);

impl Index {
    fn sink(&self) -> impl FnMut(KvEvent) + Send + 'static {
        let fold = self.0.clone();
        move |event| fold.lock().unwrap().take(WORKER, &event)
    }

    fn known(&self) -> BTreeSet<(Tier, SequenceHash)> {
        self.0.lock().unwrap().known.clone()
    }
}

#[tokio::test]
async fn messages_that_are_lost_on_the_way_are_replayed_and_the_index_is_the_truth() {
    let mut events = PubSocket::new();
    let endpoint = events.bind("tcp://127.0.0.1:0").await.unwrap().to_string();
    let mut fleet = Fleet::new(events, 10_000);
    let config = config(&endpoint).with_replay(fleet.replays().await);
    let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
    let (index, applied) = (Index::default(), router.clone());
    let mut sink = index.sink();
    let feed = VllmEvents::connect(config, move |event| {
        applied.apply(&event);
        sink(event);
    });
    let feed = feed.unwrap();
    let mut random = Random::new(3);
    let mut below = |count| random.below(count).unwrap();
    for _ in 0..300 {
        let act = match below(3) {
            0 => Act::Remove { which: below(100) },
            _ => store(&[0; 6].map(|_: u8| u8::try_from(below(3)).unwrap())[..1 + below(5)]),
        };
        let message = fleet.act(&act);
        if below(4) > 0 {
            fleet.send(message).await;
        }
    }
    let truth = fleet.publisher.lock().unwrap().engine.truth(BLOCK_SIZE);
    assert!(truth.len() > 10);
    fleet.until(|| index.known() == truth).await;
    let blocks: HashSet<_> = truth.iter().map(|(_, hash)| *hash).collect();
    assert_eq!(router.stats().indexed_blocks, blocks.len());

    // A router that has forgotten the worker hears of all of it again.
    router.forget(WORKER.instance);
    assert_eq!(router.stats().indexed_blocks, 0);
    feed.retell();
    fleet.until(|| router.stats().indexed_blocks == blocks.len()).await;
    assert_eq!(index.known(), truth);

    let stats = feed.stats();
    assert!(stats.replayed > 0, "{stats:?}");
    assert_eq!((stats.gaps, stats.restarts, stats.failed_replays), (0, 0, 0), "{stats:?}");
    assert_eq!((stats.connections, stats.last_problem), (1, None));
    feed.shutdown().await;
    assert!(index.known().is_empty(), "what it said is taken back");
    assert_eq!(router.stats().indexed_blocks, 0);
}

#[tokio::test]
async fn a_worker_that_was_forgotten_and_is_listed_again_is_told_of_anew_without_a_word_of_its_own()
{
    let mut events = PubSocket::new();
    let endpoint = events.bind("tcp://127.0.0.1:0").await.unwrap().to_string();
    let mut fleet = Fleet::new(events, 10_000);
    let clock = Arc::new(ManualClock::new());
    let router = KvRouter::new(RouterConfig::default(), Arc::<ManualClock>::clone(&clock));
    let worker = [instance(WORKER.instance.0)];
    router.set_workers(&worker).unwrap();
    let config = config(&endpoint).with_replay(fleet.replays().await);
    let feed = VllmEvents::connect(config, router.clone()).unwrap();
    let message = fleet.act(&store(&[0, 0, 1, 1]));
    fleet.send(message).await;
    fleet.until(|| router.stats().indexed_blocks == 2).await;

    router.set_workers(&[]).unwrap();
    clock.advance(Duration::from_secs(10));
    router.tidy();
    let message = fleet.act(&store(&[2, 2]));
    fleet.send(message).await;
    fleet.until(|| router.event_stats().ignored_total == 1).await;
    assert_eq!((router.event_stats().workers, router.stats().indexed_blocks), (0, 0));
    router.set_workers(&worker).unwrap();
    fleet.until(|| router.stats().indexed_blocks == 3).await;

    // It is listed all the while, and says something before it is missed.
    router.forget(WORKER.instance);
    let message = fleet.act(&store(&[1, 1]));
    fleet.send(message).await;
    fleet.until(|| router.stats().indexed_blocks == 4).await;
    assert_eq!(feed.stats().gaps, 0);
    feed.shutdown().await;
    assert_eq!(router.stats().indexed_blocks, 0);
}

#[tokio::test]
async fn what_is_lost_for_good_makes_the_worker_forgotten() {
    let mut events = PubSocket::new();
    let endpoint = events.bind("tcp://127.0.0.1:0").await.unwrap().to_string();
    let mut fleet = Fleet::new(events, 0);
    let index = Index::default();
    let feed = VllmEvents::connect(config(&endpoint), index.sink()).unwrap();
    fleet.until(|| feed.stats().messages > 0).await;
    let message = fleet.act(&store(&[0, 0]));
    fleet.send(message).await;
    fleet.until(|| index.known().len() == 1).await;
    fleet.act(&store(&[1, 1]));
    let message = fleet.act(&store(&[2, 2, 1, 1]));
    fleet.send(message).await;
    fleet.until(|| index.known().len() == 2).await;
    assert_eq!(feed.stats().gaps, 1);
    assert!(index.known().is_subset(&fleet.publisher.lock().unwrap().engine.truth(BLOCK_SIZE)));
}

#[tokio::test]
async fn a_publisher_that_connects_is_followed_and_one_that_has_restarted_takes_its_place() {
    let index = Index::default();
    let mut first = Fleet::new(PubSocket::new(), 100);
    let config = config("tcp://127.0.0.1:0").with_replay(first.replays().await);
    let feed = VllmEvents::bind(config, index.sink()).await.unwrap();
    let endpoint = format!("tcp://{}", feed.local_addr().unwrap());
    first.events.connect(&endpoint).await.unwrap();
    let message = first.act(&store(&[0, 0, 1, 1]));
    first.send(message).await;
    first.until(|| index.known().len() == 2).await;

    // The sockets of its second life; what it said in the first one is no longer true.
    first.publisher.lock().unwrap().restart();
    first.events = PubSocket::new();
    first.events.connect(&endpoint).await.unwrap();
    let message = first.act(&store(&[2, 2]));
    first.send(message).await;
    first.until(|| index.known().len() == 1).await;
    assert_eq!(index.known(), first.publisher.lock().unwrap().engine.truth(BLOCK_SIZE));
    let stats = feed.stats();
    assert_eq!((stats.connections, stats.restarts, stats.gaps), (2, 1, 0), "{stats:?}");
}

#[tokio::test]
async fn a_publisher_that_comes_back_is_not_believed_without_a_replay() {
    let index = Index::default();
    let mut fleet = Fleet::new(PubSocket::new(), 0);
    let feed = VllmEvents::bind(config("tcp://127.0.0.1:0"), index.sink()).await.unwrap();
    let endpoint = format!("tcp://{}", feed.local_addr().unwrap());
    fleet.events.connect(&endpoint).await.unwrap();
    fleet.until(|| feed.stats().messages > 0).await;
    let message = fleet.act(&store(&[0, 0]));
    fleet.send(message).await;
    fleet.until(|| index.known().len() == 1).await;
    fleet.events = PubSocket::new();
    fleet.events.connect(&endpoint).await.unwrap();
    fleet.until(|| feed.stats().connections == 2).await;
    fleet.until(|| index.known().is_empty()).await;
    assert_eq!(feed.stats().gaps, 1);
}

#[tokio::test]
async fn a_feed_that_is_dropped_ends_and_one_that_reaches_nobody_is_shut_down() {
    let mut events = PubSocket::new();
    let endpoint = events.bind("tcp://127.0.0.1:0").await.unwrap().to_string();
    let mut fleet = Fleet::new(events, 100);
    let index = Index::default();
    // A replay that nobody answers at: what comes along the connection is taken all the same.
    let config = config(&endpoint).with_replay("tcp://127.0.0.1:1");
    let feed = VllmEvents::connect(config.clone(), index.sink()).unwrap();
    fleet.until(|| feed.stats().messages > 0).await;
    assert!(feed.stats().failed_replays > 0);
    let message = fleet.act(&store(&[0, 0]));
    fleet.send(message).await;
    fleet.until(|| index.known().len() == 1).await;
    drop(feed);
    fleet.until(|| index.known().is_empty()).await;

    let mut nowhere = config;
    nowhere.endpoint = "tcp://127.0.0.1:1".into();
    VllmEvents::connect(nowhere, |_| {}).unwrap().shutdown().await;
}

#[tokio::test]
async fn endpoints_that_are_none_are_refused_by_name() {
    for endpoint in ["5557", "ipc:///run/kv", "tcp://192.0.2.1:1"] {
        let error = VllmEvents::bind(config(endpoint), |_| {}).await.unwrap_err();
        assert!(error.message().contains(endpoint), "{error}");
    }
    let error = VllmEvents::connect(config("udp://x"), |_| {}).unwrap_err();
    assert!(error.message().contains("udp://x"), "{error}");
    let error = VllmEvents::connect(config("tcp://x:1").with_replay("x"), |_| {}).unwrap_err();
    assert!(error.message().contains("endpoint x"), "{error}");
}
