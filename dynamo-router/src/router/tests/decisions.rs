//! What was sent where, for a moment or for good.

use std::ops::Range;

use dynamo_core::protocol::{BlockSize, Usage};

use super::*;
use crate::index::IndexConfig;

const TTL: Duration = Duration::from_secs(600);

fn deciding(index: IndexConfig) -> (Arc<ManualClock>, KvRouter) {
    let clock = Arc::new(ManualClock::new());
    let source = PrefixSource::Decisions { ttl: TTL };
    let config = RouterConfig::default().with_source(source).with_index(index);
    let router = KvRouter::new(config, Arc::<ManualClock>::clone(&clock));
    router.set_workers(&(0..4).map(instance).collect::<Vec<_>>()).unwrap();
    (clock, router)
}

fn routed(router: &KvRouter, tokens: Range<u32>) -> (WorkerId, usize) {
    let decision = router.route(&fixtures::request(tokens), &Constraints::default()).unwrap();
    (decision.worker, decision.cached_tokens)
}

#[test]
fn a_prompt_goes_where_it_went_as_long_as_its_time_lasts() {
    let (clock, router) = deciding(IndexConfig::default());
    let (home, cached) = routed(&router, 0..1_600);
    assert_eq!((cached, router.stats().indexed_blocks), (0, 100));
    for _ in 0..10 {
        // Long after anything provisional, and each time anew.
        clock.advance(TTL / 2);
        assert_eq!(routed(&router, 0..1_600), (home, 1_584));
    }
    let decision = router.route(&request(1_600), &Constraints::default()).unwrap();
    assert_eq!(decision.indexed_tokens, 0, "it has said nothing");
    drop(decision);
    assert_eq!(router.longest_prefix(&request(1_600)), 1_600);
    clock.advance(TTL * 4 / 3 + TTL / 3);
    assert_eq!(routed(&router, 0..1_600).1, 0);
}

#[test]
fn what_answers_found_cached_is_no_sign_of_missing_events_where_none_are_awaited() {
    let (clock, router) = deciding(IndexConfig::default());
    let usage = Usage { prompt_tokens: 1_600, cached_tokens: Some(1_584), ..Usage::default() };
    for _ in 0..100 {
        clock.advance(Duration::from_secs(1));
        router.observe_usage(worker(0), 0, BlockSize::DEFAULT, &usage);
    }
    assert_eq!(router.diagnoses(), []);
}

#[test]
fn what_was_decided_keeps_to_its_budget_and_what_is_dropped_is_counted() {
    let (_clock, router) = deciding(IndexConfig::default().with_bytes_max(IndexConfig::BYTES_MIN));
    let prompts = 40;
    for turn in 0..prompts {
        assert_eq!(routed(&router, turn * 160_000..(turn + 1) * 160_000).1, 0);
    }
    let stats = router.stats();
    let sent = u64::from(prompts) * 10_000;
    assert_eq!(stats.indexed_blocks as u64 + stats.blocks_dropped_total, sent);
    assert!(stats.blocks_dropped_total > sent / 2 && stats.indexed_blocks > 10_000, "{stats:?}");
}

#[test]
fn who_is_gone_or_begins_anew_has_nothing_of_what_was_sent_there() {
    let (clock, router) = deciding(IndexConfig::default());
    let all: Vec<_> = (0..4).map(instance).collect();
    let cached = |router: &KvRouter| routed(router, 0..1_600).1;
    let (home, _) = routed(&router, 0..1_600);
    router.forget(home.instance);
    assert_eq!(cached(&router), 0);

    let (home, _) = routed(&router, 0..1_600);
    let anew =
        |id: InstanceId| Instance { incarnation: u64::from(id == home.instance), ..instance(id.0) };
    let listed: Vec<_> = all.iter().map(|one| anew(one.id)).collect();
    router.set_workers(&listed).unwrap();
    assert_eq!(cached(&router), 0);

    let (home, was) = routed(&router, 0..1_600);
    assert_eq!(was, 1_584);
    let others: Vec<_> = listed.into_iter().filter(|one| one.id != home.instance).collect();
    router.set_workers(&others).unwrap();
    clock.advance(ABSENT_MAX);
    router.tidy();
    assert_eq!(router.stats().indexed_blocks, 0);
    assert_eq!(cached(&router), 0);
}

#[test]
fn what_a_worker_has_refused_is_not_expected_there() {
    let provisional = KvRouter::new(RouterConfig::default(), Arc::new(ManualClock::new()));
    provisional.set_workers(&[instance(0)]).unwrap();
    let (_clock, decided) = deciding(IndexConfig::default());
    decided.set_workers(&[instance(0)]).unwrap();
    for router in [provisional, decided] {
        // The first is there, the second goes on from it and is refused.
        assert_eq!(routed(&router, 0..640).1, 0);
        let (longer, any) = (fixtures::request(0..6_400), Constraints::default());
        let decision = router.route(&longer, &any).unwrap();
        assert_eq!(decision.cached_tokens, 640);
        router.refused(&longer, &decision);
        drop(decision);
        assert_eq!(routed(&router, 0..6_400).1, 640);
        // What is not refused is expected.
        assert_eq!(routed(&router, 0..6_400).1, 6_384);
    }
}
