//! A router that goes on with what the one before it knew.

use std::collections::BTreeMap;

use dynamo_core::protocol::{InstanceId, KvCursor, SnapshotPage, SnapshotRequest, WorkerId};
use dynamo_core::{ResponseStream, Runtime, ServeOptions, engine_fn};

use super::*;
use crate::events::{EventFeed, Reached, ResyncConfig};
use crate::fixtures::{block, until};
use crate::index::{IndexConfig, PrefixIndex, seal};
use crate::router::snapshot::write;
use crate::workers::Slot;

fn config() -> RouterConfig {
    RouterConfig::default().with_explain(true).with_provisional_ttl(None)
}

fn restore(bytes: &[u8]) -> Result<KvRouter> {
    KvRouter::restore(config(), Arc::new(ManualClock::new()), bytes)
}

/// The prompt of which `restored` routers know the beginning: two tiers, and the second of them has
/// more of it.
fn told() -> (KvRouter, GenerateRequest) {
    let (router, prompt) = (router(), request(1600));
    router.apply(&holds(1, Tier::Device, &prompt.blocks, 30));
    router.apply(&holds(2, Tier::Host, &prompt.blocks, 70));
    (router, prompt)
}

fn cached(router: &KvRouter, request: &GenerateRequest, ids: &[u64]) -> Vec<usize> {
    let listed: Vec<_> = ids.iter().copied().map(instance).collect();
    let decision = route(router, request, &listed);
    let of = |id: &u64| decision.explain.candidate(worker(*id)).unwrap().cached_tokens;
    ids.iter().map(of).collect()
}

#[test]
fn a_restored_router_chooses_as_the_one_before_it_before_any_event() {
    let router = router();
    let prompts: Vec<_> = (0..8).map(|at| fixtures::request(at * 100..at * 300 + 800)).collect();
    for (at, prompt) in prompts.iter().enumerate() {
        let (id, seq) = (at as u64 % 5, at as u64 / 5);
        let event = holds(id, Tier::ALL[at % 4], &prompt.blocks, 5 * (at + 1));
        router.apply(&KvEvent { seq, ..event });
    }
    let restored = restore(&router.snapshot()).unwrap();
    assert_eq!(restored.stats().indexed_blocks, router.stats().indexed_blocks);
    let listed: Vec<_> = (0..5).map(instance).collect();
    for prompt in &prompts {
        let [ours, theirs] = [&router, &restored].map(|router| route(router, prompt, &listed));
        assert_eq!((ours.worker, ours.cached_tokens), (theirs.worker, theirs.cached_tokens));
        assert!(ours.cached_tokens > 0);
        assert_eq!(ours.explain.to_string(), theirs.explain.to_string());
    }
    assert_eq!(restored.snapshot(), router.snapshot());
}

#[test]
fn events_go_on_where_they_were_and_older_ones_say_nothing() {
    let (router, prompt) = told();
    let restored = restore(&router.snapshot()).unwrap();
    restored.apply(&KvEvent {
        change: KvChange::AllBlocksCleared,
        ..holds(2, Tier::Host, &prompt.blocks, 0)
    });
    assert_eq!(cached(&restored, &prompt, &[1, 2]), [480, 1120]);
    restored.apply(&KvEvent { seq: 1, ..holds(1, Tier::Device, &prompt.blocks, 50) });
    assert_eq!(cached(&restored, &prompt, &[1, 2]), [800, 1120]);
    let stats = restored.event_stats();
    assert_eq!((stats.ignored_total, stats.gaps_total), (1, 0));
}

#[test]
fn another_epoch_or_a_gap_that_nobody_fills_clears_what_was_restored() {
    let (router, prompt) = told();
    let restored = restore(&router.snapshot()).unwrap();
    let few = holds(2, Tier::Host, &prompt.blocks, 3);
    restored.apply(&KvEvent { epoch: 1, ..few.clone() });
    assert_eq!(cached(&restored, &prompt, &[1, 2]), [480, 48]);
    restored.apply(&KvEvent { worker: worker(1), seq: 7, ..few });
    assert_eq!(cached(&restored, &prompt, &[1, 2]), [48, 48]);
    assert_eq!(restored.event_stats().gaps_total, 1);
}

#[test]
fn who_is_not_listed_is_forgotten_as_any_other() {
    let (router, prompt) = told();
    let clock = Arc::new(ManualClock::new());
    let shared: Arc<dyn Clock> = clock.clone();
    let restored = KvRouter::restore(config(), shared, &router.snapshot()).unwrap();
    restored.set_workers(&[instance(1)]).unwrap();
    clock.advance(ABSENT_MAX - Duration::from_millis(1));
    restored.tidy();
    assert_eq!(restored.stats().indexed_blocks, 70);
    clock.advance(Duration::from_millis(1));
    restored.tidy();
    assert_eq!((restored.stats().indexed_blocks, restored.event_stats().workers), (30, 1));
    assert_eq!(cached(&restored, &prompt, &[1, 2]), [480, 0]);
}

#[test]
fn whatever_is_damaged_is_refused_by_name() {
    let bytes = told().0.snapshot();
    let refused = |bytes: &[u8], text: &str| {
        let error = restore(bytes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(text), "{error}");
    };
    for at in 0..bytes.len() {
        refused(&bytes[..at], "router's snapshot");
        for bits in [1, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= bits;
            refused(&damaged, "router's snapshot");
        }
    }
    refused(&PrefixIndex::default().snapshot(|_| None), "not a snapshot");
    refused(&[&bytes[..], &[0]].concat(), "length");
    // With the right sum, and what no router wrote.
    let with = |at: usize, word: u64| {
        let mut bytes = bytes[..bytes.len() - 8].to_vec();
        bytes[8 * at..8 * (at + 1)].copy_from_slice(&word.to_le_bytes());
        seal(bytes)
    };
    assert!(restore(&with(5, 8)).is_ok(), "another epoch");
    refused(&with(1, 2), "version 2");
    refused(&with(2, u64::MAX), "router's snapshot");
    refused(&with(4, 1 << 32), "rank");
    refused(&with(7, 2), "in part");
    refused(&with(8, 1), "twice");
    refused(&with(13, 0), "index in a router's snapshot: not a snapshot");
    refused(&with(15, 7), "index in a router's snapshot: snapshot with a wrong checksum");
}

#[test]
fn who_gets_no_seat_is_left_out() {
    let reached = Reached { cursor: KvCursor { epoch: 0, next: 1 }, is_partial: false };
    let count = Slot::COUNT as u64;
    let workers: BTreeMap<_, _> = (0..=count).map(|id| (worker(id), reached)).collect();
    let (prompt, mut index) = (request(1600), PrefixIndex::new(IndexConfig::default()));
    let slots = [0, 1].map(|at| Slot::from_index(at).unwrap());
    index.store(slots[0], Tier::Device, None, &prompt.blocks.sequence()[..10]);
    index.store(slots[1], Tier::Device, None, &prompt.blocks.sequence()[..20]);
    let index = index.snapshot(|slot| Some(worker(if slot == slots[0] { 7 } else { count })));
    let restored = restore(&write(&workers, &index)).unwrap();
    assert_eq!(restored.event_stats().workers, Slot::COUNT);
    assert_eq!(restored.stats().indexed_blocks, 10);
    assert_eq!(cached(&restored, &prompt, &[7]), [160]);
}

/// What workers hold, and how far they have said so.
type Truth = BTreeMap<WorkerId, (KvCursor, Vec<KvChange>)>;

fn run(hashes: std::ops::Range<u64>) -> KvChange {
    let blocks = hashes.map(block).collect();
    KvChange::BlockStored { parent: None, blocks, tier: Tier::Device }
}

/// How many of the blocks 1, 2, 3, … a worker holds.
fn depth(router: &KvRouter, worker: WorkerId) -> usize {
    let (hashes, mut matches) =
        ((1..100).map(SequenceHash).collect::<Vec<_>>(), Matches::default());
    router.0.index.find(&hashes, &mut matches);
    router.known(worker).map_or(0, |seat| matches.depth(seat.slot()))
}

#[tokio::test]
async fn silent_ranks_are_asked_and_behind_a_gap_a_snapshot_says_the_truth() {
    let ids: [_; 3] = std::array::from_fn(|rank| WorkerId {
        instance: InstanceId(1),
        rank: u32::try_from(rank).unwrap(),
    });
    let [talks, silent, partial] = ids;
    let event = |worker, seq, change| KvEvent { worker, epoch: 0, seq, change };
    let before = router();
    before.apply(&event(talks, 0, run(1..6)));
    before.apply(&event(silent, 0, run(1..9)));
    before.apply(&event(partial, 0, run(1..12)));
    before.apply(&event(partial, 2, run(1..3)));

    let at = |next| KvCursor { epoch: 0, next };
    let truth: Arc<Mutex<Truth>> = Arc::new(Mutex::new(BTreeMap::from([
        (talks, (at(1), vec![])),
        (silent, (at(2), vec![run(1..2)])),
        (partial, (at(3), vec![run(1..13)])),
    ])));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (holds, seen) = (Arc::clone(&truth), Arc::clone(&asked));
    let engine = engine_fn(move |ctx: Context, request: SnapshotRequest| {
        let worker = request.worker;
        seen.lock().unwrap().push((worker, request.known));
        let (cursor, stored) = holds.lock().unwrap()[&worker].clone();
        let page = SnapshotPage { worker, cursor, stored };
        async move { Ok(ResponseStream::from_items(&ctx, [page])) }
    });
    let component = Runtime::in_process().namespace("n").unwrap().component("c").unwrap();
    let endpoint = component.endpoint::<_, SnapshotPage>("kv_snapshot").unwrap();
    let options = ServeOptions::default().with_instance(InstanceId(1));
    let _serving = endpoint.serve_with(engine, options).await.unwrap();
    let (events, client) =
        (component.subscriber("kv").await.unwrap(), endpoint.client().await.unwrap());
    client.wait_ready(Duration::from_secs(1)).await.unwrap();

    let restored = restore(&before.snapshot()).unwrap();
    assert_eq!(ids.map(|id| depth(&restored, id)), [5, 8, 2]);
    let feed =
        EventFeed::start_with_snapshots(restored.clone(), events, client, ResyncConfig::default());
    until(|| restored.event_stats().snapshots_total == 3).await;
    asked.lock().unwrap().sort_unstable();
    let known = [(talks, Some(at(1))), (silent, Some(at(1))), (partial, None)];
    assert_eq!(*asked.lock().unwrap(), known);
    assert_eq!(ids.map(|id| depth(&restored, id)), [5, 1, 12], "the first has no news");

    // So much is missing that nobody waits for what may be late only.
    truth.lock().unwrap().insert(talks, (at(100), vec![run(1..4)]));
    component.publisher("kv").unwrap().publish(&event(talks, 100, run(4..8))).unwrap();
    until(|| restored.event_stats().snapshots_total == 4).await;
    assert_eq!((depth(&restored, talks), restored.event_stats().gaps_total), (7, 1));
    assert_eq!(asked.lock().unwrap().last(), Some(&(talks, Some(at(1)))));
    feed.shutdown().await;
}
