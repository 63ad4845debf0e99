//! Who may be chosen, and where a request would rather go.

use super::*;
use crate::RANKS_LABEL;

fn labelled(id: u64, labels: &[(&str, &str)]) -> Instance {
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
fn a_preference_is_worth_its_seconds() {
    let router = router();
    router.set_workers(&[labelled(1, &[("zone", "a")]), instance(2)]).unwrap();
    let prefer = |seconds| [Preference { label: "zone", value: "a", seconds }];
    let near = prefer(0.05);
    let near = Constraints::default().with_preferred(&near);
    let decision = router.route(&request(64), &near).unwrap();
    assert_eq!(decision.worker, worker(1));
    assert_eq!(decision.explain.candidate(worker(2)).unwrap().lacking_s, 0.05);
    // A queue of a tenth of a second is worse than the way to another zone.
    let busy = Claim { prefill_tokens: 1_000, blocks: 1 };
    assert!(router.hear_of(worker(1)).unwrap().load.reserve_anyway(busy));
    assert_eq!(router.route(&request(64), &near).unwrap().worker, worker(2));
    let far = prefer(10.0);
    let far = Constraints::default().with_preferred(&far);
    assert_eq!(router.route(&request(64), &far).unwrap().worker, worker(1));
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
