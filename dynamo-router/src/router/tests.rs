mod constraints;
mod decisions;
mod leases;
mod ranks;
mod restored;
mod sessions;
mod threads;

use std::collections::BTreeSet;

use dynamo_core::ErrorKind;
use dynamo_core::protocol::{KvChange, KvEvent, PromptBlocks, SequenceHash, StoredBlock, Tier};
use dynamo_core::time::ManualClock;
use proptest::prelude::*;

use super::*;
use crate::fixtures::{self, holds, instance, worker};
use crate::index::Matches;
use crate::load::Claim;

/// Routes among `listed`, with nothing to avoid.
fn route(router: &KvRouter, request: &GenerateRequest, listed: &[Instance]) -> Decision {
    router.set_workers(listed).unwrap();
    router.route(request, &Constraints::default()).unwrap()
}

fn router() -> KvRouter {
    let config = RouterConfig::default().with_explain(true).with_provisional_ttl(None);
    KvRouter::new(config, Arc::new(ManualClock::new()))
}

fn request(tokens: u32) -> GenerateRequest {
    fixtures::request(0..tokens)
}

fn stored(id: u64, epoch: u64, seq: u64, blocks: &PromptBlocks) -> KvEvent {
    KvEvent { epoch, seq, ..holds(id, Tier::Host, blocks, blocks.len()) }
}

#[test]
fn the_holder_of_the_prefix_is_chosen_and_the_explanation_says_so() {
    let router = router();
    let request = request(1600);
    router.apply(&stored(2, 1, 0, &request.blocks));
    router.set_workers(&[instance(1), instance(2)]).unwrap();
    let decision = router.route(&request, &Constraints::default()).unwrap();
    assert_eq!(decision.worker, worker(2));
    assert_eq!(decision.cached_tokens, 1584, "the last token is always computed");
    let text = decision.explain.to_string();
    assert!(text.starts_with("holds 1584 of 1600 tokens, ttft 0.010 s against 0.160 s"), "{text}");
    assert_eq!(decision.explain.candidate(worker(1)).unwrap().cached_tokens, 0);
    let lines = format!("{:#}", decision.explain);
    let lines: Vec<_> = lines.lines().skip(1).collect();
    assert!(lines[0].starts_with("  2.0: 1584 tokens cached") && lines[1].starts_with("  1.0: 0"));
}

#[test]
fn a_busy_holder_loses_to_an_idle_worker() {
    let router = router();
    let cached = request(160);
    router.apply(&stored(1, 1, 0, &cached.blocks));
    let busy = Claim { prefill_tokens: 5_000, blocks: 300 };
    let seat = router.hear_of(worker(1)).unwrap();
    assert!(seat.load.reserve_anyway(busy));
    let decision = route(&router, &cached, &[instance(1), instance(2)]);
    assert_eq!(decision.worker, worker(2));
    let text = decision.explain.to_string();
    assert!(text.starts_with("less busy than the holder of 144 tokens"), "{text}");
}

#[test]
fn a_burst_of_one_prefix_stays_together_before_its_first_event() {
    let clock = Arc::new(ManualClock::new());
    let ttl = Duration::from_secs(10);
    let config = RouterConfig::default().with_provisional_ttl(ttl);
    let router = KvRouter::new(config, Arc::<ManualClock>::clone(&clock));
    let request = request(1600);
    let all = [instance(1), instance(2)];
    clock.advance(Duration::from_secs(1));
    let first = route(&router, &request, &all);
    assert_eq!((first.cached_tokens, first.indexed_tokens), (0, 0));
    // It has been at it for a while, and what is left is less than all of it elsewhere.
    clock.advance(Duration::from_millis(100));
    let second = route(&router, &request, &all);
    assert_eq!((second.worker, second.cached_tokens), (first.worker, 1584));
    assert_eq!(second.indexed_tokens, 0, "it has not said so");
    drop((first, second));
    clock.advance(2 * ttl);
    assert_eq!(route(&router, &request, &all).cached_tokens, 0);
}

#[test]
fn equal_workers_share_a_burst_and_every_booking_ends() {
    let router = router();
    let candidates: Vec<_> = (0..4).map(instance).collect();
    let mut decisions = Vec::new();
    for _ in 0..40 {
        decisions.push(route(&router, &request(64), &candidates));
    }
    for id in 0..4 {
        assert_eq!(router.load(worker(id)).requests, 10, "worker {id}");
    }
    // One after another there is nothing to tell them apart, and still nobody is always first.
    decisions.clear();
    assert_eq!(router.stats().bookings, 0);
    let chosen: BTreeSet<_> =
        (0..40).map(|_| route(&router, &request(64), &candidates).worker).collect();
    assert_eq!(chosen.len(), 4);
}

#[test]
fn excluded_workers_are_never_chosen_and_nobody_left_is_retryable() {
    let router = router();
    let request = request(64);
    router.apply(&stored(1, 1, 0, &request.blocks));
    router.set_workers(&[instance(1), instance(2)]).unwrap();
    let without = |exclude| Constraints::default().with_exclude(exclude);
    for _ in 0..10 {
        let decision = router.route(&request, &without(&[InstanceId(1)])).unwrap();
        assert_eq!(decision.worker, worker(2));
    }
    let all = [InstanceId(1), InstanceId(2)];
    let error = router.route(&request, &without(&all)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.is_retryable());
}

#[test]
fn a_worker_that_stays_away_is_forgotten_and_one_that_comes_back_is_kept() {
    let clock = Arc::new(ManualClock::new());
    let router = KvRouter::new(RouterConfig::default(), Arc::<ManualClock>::clone(&clock));
    let request = request(64);
    let route = |listed: &[Instance]| drop(route(&router, &request, listed));
    let (one, two) = (instance(1), instance(2));
    // Ahead of discovery, then listed, then gone and back.
    router.apply(&stored(1, 1, 0, &request.blocks));
    for _ in 0..3 {
        route(std::slice::from_ref(&two));
        clock.advance(ABSENT_MAX / 2);
        route(&[one.clone(), two.clone()]);
    }
    assert_eq!(router.stats().indexed_blocks, 4);
    route(std::slice::from_ref(&two));
    clock.advance(ABSENT_MAX);
    route(std::slice::from_ref(&two));
    assert_eq!(router.stats().indexed_blocks, 0);
    // What it says behind that is ignored, until it is listed again.
    router.apply(&stored(1, 1, 9, &request.blocks));
    let stats = router.event_stats();
    assert_eq!((stats.blocks, stats.workers, stats.ignored_total), (0, 0, 1));
    assert_eq!(router.members().all().count(), 1);
    route(&[one, two]);
    router.apply(&stored(1, 2, 0, &request.blocks));
    assert_eq!(router.stats().indexed_blocks, 4);
}

#[test]
fn a_forgotten_worker_loses_its_blocks_and_its_speed_but_no_booking() {
    let clock = Arc::new(ManualClock::new());
    let router = KvRouter::new(RouterConfig::default(), Arc::<ManualClock>::clone(&clock));
    let request = request(64);
    router.apply(&stored(1, 1, 0, &request.blocks));
    let mut decision = route(&router, &request, &[instance(1)]);
    clock.advance(Duration::from_secs(1));
    router.observe_first_token(&mut decision);
    assert!(router.prefill_s_per_token(worker(1)).is_some());
    router.forget(InstanceId(1));
    let stats = router.stats();
    assert_eq!((stats.bookings, stats.indexed_blocks), (1, 0));
    assert_eq!(router.prefill_s_per_token(worker(1)), None);
    drop(decision);
    assert_eq!(router.stats().bookings, 0);
}

#[test]
fn a_restart_is_no_loss_and_a_late_listener_has_lost() {
    let router = router();
    let blocks = &request(64).blocks;
    router.apply(&stored(1, 1, 0, blocks));
    router.apply(&stored(1, 2, 0, blocks));
    assert_eq!(router.stats().gaps_total, 0);
    router.apply(&stored(2, 1, 9, blocks));
    assert_eq!(router.stats().gaps_total, 1);
}

#[test]
fn the_prefill_rate_is_learned_from_first_tokens() {
    let clock = Arc::new(ManualClock::new());
    let config = RouterConfig::default().with_provisional_ttl(None);
    let router = KvRouter::new(config, Arc::<ManualClock>::clone(&clock));
    let mut decision = route(&router, &request(100), &[instance(1)]);
    assert_eq!(router.load(worker(1)).prefill_tokens, 100);
    clock.advance(Duration::from_secs(1));
    router.observe_first_token(&mut decision);
    assert_eq!(router.load(worker(1)).prefill_tokens, 0);
    assert_eq!(router.load(worker(1)).decoding, 1);
    let rate = router.prefill_s_per_token(worker(1)).unwrap();
    assert!((rate - 0.01).abs() < 1e-9, "{rate}");
    let next = route(&router, &request(100), &[instance(1)]);
    assert!(next.explain.chosen.ttft_s >= 1.0);
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    None,
    Drop,
    /// A restart whose first event is lost.
    RestartUnheard,
    Repeat,
    Restart,
}

proptest! {
    /// Whatever is lost or repeated: once an event has arrived, the index holds nothing that the
    /// worker does not hold, and all of what it said since the last loss.
    #[test]
    fn the_index_never_says_more_than_the_truth(
        steps in prop::collection::vec(
            (0..20u64, any::<bool>(), prop_oneof![
                6 => Just(Fault::None), 1 => Just(Fault::Drop),
                1 => Just(Fault::Repeat), 1 => Just(Fault::Restart),
                1 => Just(Fault::RestartUnheard),
            ]),
            1..100,
        ),
    ) {
        use dynamo_core::protocol::LocalHash;
        let router = router();
        let (mut truth, mut since_loss) = (BTreeSet::new(), BTreeSet::new());
        let (mut epoch, mut seq, mut lost) = (1, 0, false);
        let mut last: Option<KvEvent> = None;
        for (block, store, fault) in steps {
            if matches!(fault, Fault::Restart | Fault::RestartUnheard) {
                (epoch, seq, lost) = (epoch + 1, 0, false);
                truth.clear();
                since_loss.clear();
            }
            let hash = SequenceHash(block);
            let change = if store {
                truth.insert(hash);
                let stored = StoredBlock { sequence: hash, local: LocalHash(block) };
                KvChange::BlockStored { parent: None, blocks: vec![stored], tier: Tier::Host }
            } else {
                truth.remove(&hash);
                KvChange::BlockRemoved { sequence_hashes: vec![hash], tier: Tier::Host }
            };
            let event = KvEvent { worker: worker(1), epoch, seq, change };
            seq += 1;
            if matches!(fault, Fault::Drop | Fault::RestartUnheard) {
                lost = true;
                continue;
            }
            if std::mem::take(&mut lost) {
                since_loss.clear();
            }
            if store { since_loss.insert(hash); } else { since_loss.remove(&hash); }
            router.apply(&event);
            if matches!(fault, Fault::Repeat) {
                router.apply(&event);
                last.iter().for_each(|old| router.apply(old));
            }
            last = Some(event);
            let slot = router.members().get(worker(1)).map(|seat| seat.slot());
            let mut matches = Matches::default();
            for block in 0..20 {
                let hash = SequenceHash(block);
                router.0.index.find(&[hash], &mut matches);
                let claimed = slot.is_some_and(|slot| matches.depth(slot) == 1);
                prop_assert!(!claimed || truth.contains(&hash), "claims {hash:?}");
                prop_assert_eq!(claimed, since_loss.contains(&hash));
            }
        }
    }
}

#[test]
fn a_worker_that_has_shown_nothing_counts_as_fast_as_the_others_not_as_the_prior() {
    let clock = Arc::new(ManualClock::new());
    let router = KvRouter::new(RouterConfig::default(), Arc::<ManualClock>::clone(&clock));
    // Too few tokens to show anything.
    let mut tiny = route(&router, &request(5), &[instance(2)]);
    router.observe_first_token(&mut tiny);
    drop(tiny);
    let request = request(100);
    let mut decision = route(&router, &request, &[instance(1)]);
    clock.advance(Duration::from_secs(1));
    router.observe_first_token(&mut decision);
    drop(decision);
    router.apply(&stored(1, 1, 0, &request.blocks));
    let decision = route(&router, &request, &[instance(1), instance(2)]);
    assert_eq!(decision.worker, worker(1), "slow workers are no reason to forgo the cache");
}

#[test]
fn the_length_of_answers_is_learned_from_what_follows_their_first_token() {
    let clock = Arc::new(ManualClock::new());
    let router = KvRouter::new(RouterConfig::default(), Arc::<ManualClock>::clone(&clock));
    let before = router.0.common.pace.get().output_tokens;
    let answer = |tokens: usize| {
        let mut decision = route(&router, &request(100), &[instance(1)]);
        router.observe_first_token(&mut decision);
        for _ in 0..tokens {
            decision.booking.progress(1);
            clock.advance(Duration::from_millis(10));
        }
    };
    // Of one token there is no step to learn from.
    (0..100).for_each(|_| answer(1));
    assert_eq!(router.0.common.pace.get().output_tokens, before);
    (0..2_000).for_each(|_| answer(8));
    let after = router.0.common.pace.get().output_tokens;
    // What is believed at first counts for a few answers for ever.
    assert!((7.0..11.0).contains(&after), "{after}");
}
