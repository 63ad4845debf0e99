//! Who may be chosen, and where a request would rather go.

use std::sync::atomic::AtomicUsize;

use dynamo_core::Priority;
use dynamo_core::protocol::{HandoffTicket, Stage};

use super::*;
use crate::RANKS_LABEL;

pub(super) fn labelled(id: u64, labels: &[(&str, &str)]) -> Instance {
    let labels = labels.iter().map(|(label, value)| ((*label).into(), (*value).into()));
    Instance { labels: labels.collect(), ..instance(id) }
}

/// Returns all that are chosen for requests under `constraints`.
fn chosen(router: &KvRouter, constraints: &Constraints<'_>) -> BTreeSet<WorkerId> {
    let choose = |_| router.route(&request(64), constraints).unwrap();
    let decisions: Vec<_> = (0..200).map(choose).collect();
    decisions.iter().map(|decision| decision.worker).collect()
}

fn rank(id: u64, rank: u32) -> WorkerId {
    WorkerId { instance: InstanceId(id), rank }
}

#[test]
fn each_rank_is_a_worker_of_its_own() {
    let router = router();
    router.set_workers(&[labelled(1, &[(RANKS_LABEL, "3")]), instance(2)]).unwrap();
    let all = [rank(1, 0), rank(1, 1), rank(1, 2), rank(2, 0)];
    assert_eq!(chosen(&router, &Constraints::default()), all.into());
    let request = request(1600);
    let mut event = stored(1, 1, 0, &request.blocks);
    event.worker = rank(1, 2);
    router.apply(&event);
    let decision = router.route(&request, &Constraints::default()).unwrap();
    assert_eq!((decision.worker, decision.cached_tokens), (rank(1, 2), 1584));
    let pinned = Constraints::default().with_pinned(rank(1, 1));
    assert_eq!(chosen(&router, &pinned), [rank(1, 1)].into());
    let exclude = [InstanceId(1)];
    let without = Constraints::default().with_exclude(&exclude);
    assert_eq!(chosen(&router, &without), [rank(2, 0)].into());
}

#[test]
fn a_label_that_says_no_count_of_ranks_leaves_its_instance_out_and_names_it() {
    for text in ["0", "-1", "two", "1025"] {
        let router = router();
        let listed = [labelled(1, &[(RANKS_LABEL, text)]), instance(2)];
        let error = router.set_workers(&listed).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains("instance 1 of n/c/e"), "{error}");
        assert_eq!(chosen(&router, &Constraints::default()), [worker(2)].into());
        assert!(router.set_workers(&listed).is_ok(), "said once");
    }
}

#[test]
fn constraints_say_who_may_be_chosen() {
    let router = router();
    let zones = ["a", "a", "b", "b"];
    let listed: Vec<_> =
        (1..).zip(zones).map(|(id, zone)| labelled(id, &[("zone", zone)])).collect();
    router.set_workers(&listed).unwrap();
    let workers = |ids: &[u64]| ids.iter().map(|id| worker(*id)).collect::<BTreeSet<_>>();
    let (only, exclude) = ([InstanceId(2), InstanceId(3), InstanceId(9)], [InstanceId(3)]);
    let any = Constraints::default();
    assert_eq!(chosen(&router, &any.with_only(&only)), workers(&[2, 3]));
    assert_eq!(chosen(&router, &any.with_only(&only).with_exclude(&exclude)), workers(&[2]));
    assert_eq!(chosen(&router, &any.with_required(&[("zone", "b")])), workers(&[3, 4]));
    let both = any.with_required(&[("zone", "b")]).with_exclude(&exclude);
    assert_eq!(chosen(&router, &both), workers(&[4]));

    let refused = |constraints: &Constraints<'_>| {
        let error = router.route(&request(64), constraints).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        error.to_string()
    };
    let text = refused(&any.with_required(&[("zone", "c")]));
    assert!(
        text.contains("none of 4 workers is left") && text.contains("zone must be c"),
        "{text}"
    );
    assert!(refused(&any.with_required(&[("rack", "a")])).contains("rack must be a"));
    assert!(refused(&any.with_pinned(rank(1, 1))).contains("only 1.1 would do"));
    let _ = refused(&any.with_pinned(worker(1)).with_only(&only));
    let _ = refused(&any.with_pinned(worker(3)).with_exclude(&exclude));
}

#[test]
fn other_labels_count_at_once_and_another_order_changes_nothing() {
    let router = router();
    let told = Arc::new(AtomicUsize::new(0));
    let tell = Arc::clone(&told);
    let _listener = router.on_release(move |_| _ = tell.fetch_add(1, Ordering::Relaxed));
    let (first, second) = (labelled(1, &[("zone", "a")]), labelled(2, &[("zone", "a")]));
    router.set_workers(&[first.clone(), second.clone()]).unwrap();
    let made = told.load(Ordering::Relaxed);
    router.set_workers(&[second, first.clone()]).unwrap();
    assert_eq!(told.load(Ordering::Relaxed), made, "the fleet is the same");
    let zone_b = Constraints::default().with_required(&[("zone", "b")]);
    assert!(router.route(&request(64), &zone_b).is_err());
    router.set_workers(&[first, labelled(2, &[("zone", "b")])]).unwrap();
    assert_eq!(router.route(&request(64), &zone_b).unwrap().worker, worker(2));
}

#[test]
fn a_preference_is_worth_its_seconds() {
    let router = router();
    router.set_workers(&[labelled(1, &[("zone", "a")]), instance(2)]).unwrap();
    let prefer = |seconds| [Preference { label: "zone", value: "a", seconds }];
    let near = prefer(0.05);
    let near = Constraints::default().with_preferred(&near);
    let decision = router.route(&request(64), &near).unwrap();
    assert_eq!(decision.worker, worker(1));
    let lacking_s = decision.explain.candidate(worker(2)).unwrap().lacking_s;
    assert!((lacking_s - 0.05).abs() < 1e-6, "{lacking_s}");
    // A queue of a tenth of a second is worse than the way to another zone.
    let busy = Claim { prefill_tokens: 1_000, blocks: 1 };
    assert!(router.hear_of(worker(1)).unwrap().load.reserve_anyway(busy));
    assert_eq!(router.route(&request(64), &near).unwrap().worker, worker(2));
    let far = prefer(10.0);
    let far = Constraints::default().with_preferred(&far);
    assert_eq!(router.route(&request(64), &far).unwrap().worker, worker(1));
}

#[test]
fn what_nobody_has_makes_no_difference_however_much_it_is_worth() {
    let router = router();
    router.set_workers(&[instance(1), instance(2)]).unwrap();
    let prompt = request(1_600);
    router.apply(&stored(2, 1, 0, &prompt.blocks));
    for seconds in [0.0, -1.0, f64::NAN, 100.0, 1e300, f64::INFINITY] {
        let zone = [Preference { label: "zone", value: "a", seconds }; 2];
        let near = Constraints::default().with_preferred(&zone);
        assert_eq!(router.route(&prompt, &near).unwrap().worker, worker(2), "{seconds}");
    }
}

#[test]
fn the_more_urgent_a_request_is_the_less_it_counts_whom_it_delays() {
    // One delays those who decode there; the other has somebody before the request.
    let chosen = |decoding, priority| {
        let router = router();
        router.set_workers(&[instance(1), instance(2)]).unwrap();
        let book = |id, prefill_tokens| {
            let claim = Claim { prefill_tokens, blocks: 1 };
            assert!(router.hear_of(worker(id)).unwrap().load.reserve_anyway(claim));
        };
        (0..decoding).for_each(|_| book(1, 0));
        book(2, 200);
        let (ctx, request) = (Context::new().with_priority(priority), request(1_000));
        let listed = [instance(1), instance(2)];
        let constraints = Constraints::default().with_priority(priority);
        let decision = router.route(&request, &constraints).unwrap();
        let worker = decision.worker;
        drop(decision);
        assert_eq!(router.pick(&ctx, &request, &listed).unwrap().instance(), worker.instance);
        worker.instance.0
    };
    assert_eq!([Priority::NORMAL, Priority::HIGHEST].map(|level| chosen(8, level)), [2, 1]);
    assert_eq!([Priority::NORMAL, Priority::LOWEST].map(|level| chosen(4, level)), [1, 2]);
}

fn extreme() -> impl Strategy<Value = f64> {
    let numbers = [0.0, -1.0, 1e-300, 1e-3, 1.0, 1e9, 1e300, f64::INFINITY, f64::NEG_INFINITY];
    prop_oneof![prop::sample::select(numbers.to_vec()), Just(f64::NAN)]
}

proptest! {
    /// Whatever the coefficients and the preferences say.
    #[test]
    fn if_anybody_may_be_chosen_somebody_is(
        values in prop::collection::vec(extreme(), 11),
        seconds in prop::collection::vec(extreme(), 0..3),
        booked in prop::collection::vec((0..3_u64, 0..1_u32 << 31), 0..6),
        level in 0..8_u8,
    ) {
        let mut cost = CostModel::default();
        let mut values = values.into_iter();
        let mut next = || values.next().unwrap();
        (cost.prefill_s_per_token, cost.fetch_s_per_token) = (next(), next());
        cost.tier_s_per_token = [next(), next(), next()];
        (cost.step_s_per_token, cost.output_tokens) = (next(), next());
        (cost.harm_weight, cost.waiting_weight) = (next(), next());
        (cost.ttft_excess_ratio, cost.ttft_excess_s) = (next(), next());
        let config = RouterConfig::default().with_cost(cost);
        let router = KvRouter::new(config, Arc::new(ManualClock::new()));
        router.set_workers(&[0, 1, 2].map(|id| labelled(id, &[("of", &id.to_string())]))).unwrap();
        let prompt = request(1_600);
        router.apply(&holds(2, Tier::Disk, &prompt.blocks, 50));
        for (id, prefill_tokens) in booked {
            let claim = Claim { prefill_tokens, blocks: prefill_tokens };
            // There may be no room to count it.
            let _ = router.hear_of(worker(id)).unwrap().load.reserve_anyway(claim);
        }
        let preferred: Vec<_> =
            seconds.iter().map(|&seconds| Preference { label: "of", value: "1", seconds }).collect();
        let any = Constraints::default()
            .with_preferred(&preferred)
            .with_priority(Priority::new(level).unwrap());
        let (ticket, first_token) = (HandoffTicket::new(vec![1]), 1);
        for stage in [Stage::Full, Stage::Prefill, Stage::Decode { ticket, first_token }] {
            let decision = router.route(&prompt.with_stage(stage), &any);
            prop_assert!(decision.is_ok_and(|chosen| chosen.explain.chosen.ttft_s.is_finite()));
            for id in 0..3 {
                let pinned = router.route(&prompt, &any.with_pinned(worker(id)));
                let room = router.load(worker(id)).prefill_tokens + 1_600 < 1 << 32;
                prop_assert_eq!(pinned.is_ok(), room);
            }
        }
    }
}

#[test]
fn a_worker_that_costs_more_than_a_number_tells_is_chosen_if_no_other_may_be() {
    let mut cost = CostModel::default();
    (cost.step_s_per_token, cost.output_tokens, cost.harm_weight) = (1e9, 1e9, 1e9);
    let router =
        KvRouter::new(RouterConfig::default().with_cost(cost), Arc::new(ManualClock::new()));
    router.set_workers(&[instance(0), instance(1)]).unwrap();
    let any = Constraints::default().with_priority(Priority::LOWEST);
    for prefill_tokens in [592_139_577, 1_939_723_080] {
        let claim = Claim { prefill_tokens, blocks: prefill_tokens };
        assert!(router.hear_of(worker(0)).unwrap().load.reserve_anyway(claim));
        // The other one is idle, which must not make it one that may be chosen.
        for id in [0, 1] {
            assert_eq!(chosen(&router, &any.with_pinned(worker(id))), [worker(id)].into());
        }
    }
}

#[test]
fn a_pick_is_one_of_the_candidates_whatever_another_caller_lists() {
    let router = router();
    let request = request(64);
    router.apply(&stored(1, 1, 0, &request.blocks));
    let (old, new) = ([instance(1), instance(2)], [instance(2), instance(3)]);
    for _ in 0..20 {
        for listed in [&old, &new] {
            let pick = router.pick(&Context::new(), &request, listed).unwrap();
            assert!(listed.iter().any(|one| one.id == pick.instance()), "{pick:?}");
        }
    }
    assert_eq!(router.stats().indexed_blocks, 4, "nothing is forgotten meanwhile");
}
