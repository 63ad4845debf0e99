//! From a publisher's sockets over a bridge and an event plane to routers, and what gets lost on the
//! way.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dynamo_core::event_plane::Delivery;
use dynamo_core::protocol::{
    BlockSize, CacheNamespace, KvCursor, KvEvent, PromptBlocks, SequenceHash, SnapshotPage,
    SnapshotRequest, TokenId, WorkerId,
};
use dynamo_core::random::Random;
use dynamo_core::time::SystemClock;
use dynamo_core::{Component, Context, Engine, ErrorKind, Runtime, ServeOptions, Serving};
use tokio::task::JoinSet;
use zeromq::{PubSocket, Socket};

use super::WORKER;
use super::engine::{Act, store};
use super::fleet::Fleet;
use crate::events::vllm::batch::{Batch, Event};
use crate::events::vllm::{EventBridge, VllmConfig};
use crate::index::Matches;
use crate::{EventFeed, KvRouter, RANKS_LABEL, ResyncConfig, RouterConfig};

/// What vLLM 0.32 published while SmolLM2 served two prompts: messages 4 to 6.
const CAPTURED: &str = include_str!("captured.hex");

/// One component on planes of this process.
struct World {
    component: Component,
    /// Of a hundred events so many are lost on the plane, without a word.
    lost_percent: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl World {
    async fn new(seed: u64) -> Self {
        let component = Runtime::in_process().namespace("n").unwrap().component("c").unwrap();
        let lost_percent = Arc::new(AtomicUsize::new(0));
        let mut published = component.subscriber::<KvEvent>("published").await.unwrap();
        let heard = component.publisher("kv_events").unwrap();
        let (mut random, percent, mut tasks) =
            (Random::new(seed), Arc::clone(&lost_percent), JoinSet::new());
        tasks.spawn(async move {
            while let Some(delivery) = published.recv().await {
                let Delivery::Event { value } = delivery else { continue };
                if random.below(100).unwrap() >= percent.load(Ordering::Relaxed) {
                    heard.publish(&value).unwrap();
                }
            }
        });
        Self { component, lost_percent, _tasks: tasks }
    }

    /// Follows a publisher at `endpoint`.
    fn connect(&self, config: VllmConfig) -> EventBridge {
        EventBridge::connect(config, self.component.publisher("published").unwrap()).unwrap()
    }

    async fn serve(&self, bridges: &[EventBridge]) -> Serving {
        let snapshots = bridges.iter().map(EventBridge::snapshots);
        let snapshots = snapshots.reduce(|some, others| some.and(others)).unwrap();
        let options = ServeOptions::default().with_instance(WORKER.instance);
        let options = options.with_label(RANKS_LABEL, bridges.len().to_string());
        let endpoint = self.component.endpoint::<_, SnapshotPage>("kv_snapshot").unwrap();
        endpoint.serve_with(snapshots, options).await.unwrap()
    }

    /// Starts a router that asks for snapshots, also of who says nothing.
    async fn router(&self) -> (KvRouter, EventFeed) {
        let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
        let events = self.component.subscriber("kv_events").await.unwrap();
        let snapshots = self.component.endpoint("kv_snapshot").unwrap().client().await.unwrap();
        let config = ResyncConfig::default().with_audit_every(Duration::from_millis(100));
        let feed = EventFeed::start_with_snapshots(router.clone(), events, snapshots, config);
        (router, feed)
    }
}

fn rank(rank: u32) -> WorkerId {
    WorkerId { rank, ..WORKER }
}

/// Returns how many of these blocks, from the first on, a router says that a worker holds.
fn depth(router: &KvRouter, worker: WorkerId, blocks: &[SequenceHash]) -> usize {
    let mut matches = Matches::default();
    router.intake().reader().find(blocks, &mut matches);
    router.known(worker).map_or(0, |seat| matches.depth(seat.slot()))
}

/// Returns which of `blocks` a router says that a worker holds.
fn claimed(
    router: &KvRouter,
    worker: WorkerId,
    blocks: &BTreeSet<SequenceHash>,
) -> BTreeSet<SequenceHash> {
    blocks.iter().copied().filter(|block| depth(router, worker, &[*block]) == 1).collect()
}

fn truth(fleet: &Fleet, block_size: u32) -> BTreeSet<SequenceHash> {
    let block_size = BlockSize::new(block_size).unwrap();
    let truth = fleet.publisher.lock().unwrap().engine.truth(block_size);
    truth.into_iter().map(|(_, block)| block).collect()
}

async fn listening() -> (Fleet, String) {
    let mut events = PubSocket::new();
    let endpoint = events.bind("tcp://127.0.0.1:0").await.unwrap().to_string();
    (Fleet::new(events, 10_000), endpoint)
}

fn captured() -> Vec<Vec<u8>> {
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
    CAPTURED.lines().map(|line| line.as_bytes().chunks(2).map(byte).collect()).collect()
}

/// Returns the two prompts, as far as the captured messages say them.
fn prompts() -> [Vec<TokenId>; 2] {
    let mut prompts = <[Vec<TokenId>; 2]>::default();
    for (payload, prompt) in captured().iter().zip([0, 0, 1]) {
        let batch = Batch::decode(payload).unwrap();
        let [Event::BlockStored(run)] = &batch.events[..] else { panic!("{batch:?}") };
        prompts[prompt].extend_from_slice(&run.tokens);
    }
    prompts
}

#[tokio::test]
async fn prompts_that_a_real_engine_has_cached_are_found_by_all_routers_also_by_those_that_come_later()
 {
    for block_size in [16, 32, 64] {
        let world = World::new(0).await;
        let (mut fleet, endpoint) = listening().await;
        let bridges = [world.connect(super::config(&endpoint, block_size).with_topic("kv"))];
        let _serving = world.serve(&bridges).await;
        let (first, _first) = world.router().await;
        fleet.until(|| bridges[0].stats().messages > 0).await;
        for payload in captured() {
            let message = fleet.publisher.lock().unwrap().numbered(payload);
            fleet.send(message).await;
        }
        let prompts = prompts().map(|tokens| {
            let size = BlockSize::new(block_size).unwrap();
            PromptBlocks::new(&CacheNamespace::model("m"), size, &tokens).sequence().to_vec()
        });
        let whole = [160, 96].map(|tokens: usize| tokens / block_size as usize);
        let found = |router: &KvRouter| prompts.each_ref().map(|it| depth(router, WORKER, it));
        fleet.until(|| found(&first) == whole).await;
        let (later, _later) = world.router().await;
        fleet.until(|| found(&later) == whole).await;
        assert!(later.event_stats().snapshots_total > 0);
        assert_eq!((bridges[0].last_problem(), bridges[0].refused()), (None, 0));

        let [bridge] = bridges;
        bridge.shutdown().await;
        fleet.until(|| found(&first) == [0, 0] && found(&later) == [0, 0]).await;
    }
}

#[tokio::test]
async fn whatever_is_lost_every_router_comes_to_hold_what_each_rank_of_the_engine_does() {
    for seed in 0..4 {
        let mut random = Random::new(seed);
        let mut below = |count| random.below(count).unwrap();
        let world = World::new(seed).await;
        let (mut fleets, mut bridges, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
        for rank in 0..2 {
            let (mut fleet, endpoint) = listening().await;
            fleet.publisher.lock().unwrap().rank = rank;
            let config = super::config(&endpoint, 8).with_rank(rank);
            let bridge = world.connect(config.with_replay(fleet.replays().await));
            fleet.until(|| bridge.stats().messages > 0).await;
            bridges.push(bridge);
            fleets.push(fleet);
        }
        let _serving = world.serve(&bridges).await;
        let mut routers = vec![world.router().await];
        world.lost_percent.store(20, Ordering::Relaxed);
        for step in 0..300 {
            let fleet = &mut fleets[below(2)];
            let act = match below(3) {
                0 => Act::Remove { which: below(100) },
                _ => store(&[0; 6].map(|_: u8| u8::try_from(below(3)).unwrap())[..1 + below(5)]),
            };
            if [60, 110, 170].contains(&step) {
                fleet.publisher.lock().unwrap().restart();
            }
            let message = fleet.act(&act);
            seen.extend(truth(fleet, 8));
            if below(5) > 0 {
                fleet.send(message).await;
            }
            // The others go on meanwhile.
            tokio::task::yield_now().await;
            if step == 150 {
                routers.push(world.router().await);
            }
        }
        let truths = [0, 1].map(|rank| truth(&fleets[rank], 8));
        assert!(truths.iter().all(|truth| truth.len() > 3), "seed {seed}");
        for (number, fleet) in (0..).zip(&mut fleets) {
            let truth = &truths[number as usize];
            let is_true = |(router, _): &(KvRouter, EventFeed)| {
                claimed(router, rank(number), &seen) == *truth
            };
            fleet.until(|| routers.iter().all(is_true)).await;
        }
        let restarts: u64 = bridges.iter().map(|bridge| bridge.stats().restarts).sum();
        let heard = routers[0].0.event_stats();
        assert!(restarts > 0 && heard.gaps_total > 0, "seed {seed}: {restarts}, {heard:?}");
        for bridge in bridges {
            bridge.shutdown().await;
        }
    }
}

#[tokio::test]
async fn an_engine_that_restarts_before_its_old_connection_ends_is_known_by_what_it_says_since() {
    for has_replay in [true, false] {
        let world = World::new(0).await;
        let mut fleet = Fleet::new(PubSocket::new(), 100);
        let mut config = super::config("tcp://127.0.0.1:0", 8);
        if has_replay {
            config = config.with_replay(fleet.replays().await);
        }
        let publisher = world.component.publisher("published").unwrap();
        let bridges = [EventBridge::bind(config, publisher).await.unwrap()];
        let endpoint = format!("tcp://{}", bridges[0].local_addr().unwrap());
        let _serving = world.serve(&bridges).await;
        let (router, _feed) = world.router().await;
        fleet.events.connect(&endpoint).await.unwrap();
        fleet.until(|| bridges[0].stats().messages > 0).await;
        let message = fleet.act(&store(&[0, 0, 1, 1]));
        let before = truth(&fleet, 8);
        fleet.send(message).await;
        fleet.until(|| claimed(&router, WORKER, &before) == before).await;

        // The next life counts from 0, and the sockets of the last one are there for a while.
        fleet.publisher.lock().unwrap().restart();
        let old = std::mem::replace(&mut fleet.events, PubSocket::new());
        fleet.events.connect(&endpoint).await.unwrap();
        fleet.until(|| bridges[0].stats().connections == 2).await;
        drop(old);
        let message = fleet.act(&store(&[2, 2]));
        fleet.send(message).await;
        let all = &before | &truth(&fleet, 8);
        fleet
            .until(|| claimed(&router, WORKER, &all) == all.difference(&before).copied().collect())
            .await;
        let stats = bridges[0].stats();
        let expected = if has_replay { (2, 1, 0) } else { (2, 0, 1) };
        assert_eq!((stats.connections, stats.restarts, stats.gaps), expected, "{stats:?}");
    }
}

#[tokio::test]
async fn snapshots_are_of_one_moment_and_of_workers_that_are_spoken_for() {
    let world = World::new(0).await;
    let (mut fleet, endpoint) = listening().await;
    let bridge = world.connect(super::config(&endpoint, 8));
    let snapshots = bridge.snapshots();
    let ask = async |worker, known| {
        let request = SnapshotRequest { worker, known };
        let mut pages = snapshots.generate(Context::new(), request).await?;
        let mut answer = Vec::new();
        while let Some(page) = pages.next().await {
            answer.push(page?);
        }
        Ok::<_, dynamo_core::Error>(answer)
    };
    let nothing = |next| {
        let cursor = KvCursor { epoch: 0, next };
        vec![SnapshotPage { worker: WORKER, cursor, stored: Vec::new() }]
    };
    assert_eq!(ask(WORKER, None).await.unwrap(), nothing(0), "it has said nothing yet");
    fleet.until(|| bridge.stats().messages > 0).await;
    let message = fleet.act(&store(&[0, 0, 1, 1]));
    fleet.send(message).await;
    fleet.until(|| bridge.stats().blocks_stored == 2).await;
    let pages = ask(WORKER, Some(KvCursor { epoch: 0, next: 0 })).await.unwrap();
    assert_eq!((pages.len(), pages[0].stored.len()), (1, 1));
    assert_eq!(ask(WORKER, Some(pages[0].cursor)).await.unwrap(), nothing(pages[0].cursor.next));
    for worker in [rank(1), crate::fixtures::worker(1)] {
        let error = ask(worker, None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.message().contains(&worker.to_string()), "{error}");
    }
    let request = SnapshotRequest { worker: WORKER, known: None };
    let mut kept = Vec::new();
    for _ in 0..4 {
        kept.push(snapshots.generate(Context::new(), request).await.unwrap());
    }
    let error = snapshots.generate(Context::new(), request).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    kept.pop();
    ask(WORKER, None).await.unwrap();
    bridge.shutdown().await;
    let [page] = &ask(WORKER, None).await.unwrap()[..] else { panic!("one page") };
    assert_eq!((page.stored.len(), page.cursor > pages[0].cursor), (0, true));
}
