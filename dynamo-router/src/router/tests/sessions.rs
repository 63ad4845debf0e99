//! Sessions stay with their workers, and busy workers are avoided.

use super::constraints::labelled;
use super::*;
use crate::choose::{AffinityConfig, SessionKey, Stickiness};

/// Books `tokens` prompt tokens on a worker.
fn book(router: &KvRouter, worker: WorkerId, tokens: u32) -> Decision {
    // Of another prompt than the others, which nobody has.
    let request = fixtures::request(1_000_000..1_000_000 + tokens);
    router.route(&request, &Constraints::default().with_pinned(worker)).unwrap()
}

#[test]
fn a_soft_session_stays_with_its_worker_until_that_one_is_busy() {
    let router = router();
    let all = [instance(1), instance(2), instance(3)];
    router.set_workers(&all).unwrap();
    let (prompt, key) = (request(1600), Some(SessionKey::new("", "s")));
    let route = |exclude: &[InstanceId], session| {
        let constraints = Constraints::default().with_exclude(exclude).with_session(session);
        router.route(&prompt, &constraints).unwrap().worker
    };
    let home = route(&[], key);
    let others: Vec<_> = all.iter().map(|one| one.id).filter(|id| *id != home.instance).collect();
    // Somebody else has all of the prompt, and still.
    router.apply(&stored(others[0].0, 1, 0, &prompt.blocks));
    assert_eq!(route(&[], None).instance, others[0]);
    let _less_than_a_second = book(&router, home, 9_000);
    assert_eq!(route(&[], key), home);
    // Its queue is too long: the session moves, and stays where it went.
    let more_than_a_second = book(&router, home, 2_000);
    assert_eq!(route(&[], key).instance, others[0]);
    drop(more_than_a_second);
    assert_eq!(route(&[], key).instance, others[0]);
    // A request that may not go there does not take the session along.
    assert_eq!(route(&others, key), home);
    assert_eq!(route(&[], key).instance, others[0]);
}

#[test]
fn a_hard_session_stays_however_busy_its_worker_is_and_until_its_time_is_over() {
    let clock = Arc::new(ManualClock::new());
    let ttl = Duration::from_secs(60);
    let affinity = AffinityConfig::default().with_stickiness(Stickiness::Hard).with_ttl(ttl);
    let config = RouterConfig::default().with_affinity(affinity);
    let router = KvRouter::new(config, Arc::<ManualClock>::clone(&clock));
    let (prompt, session) = (request(160), Some(SessionKey::new("", "s")));
    let all = [instance(1), instance(2)];
    let route = |all: &[Instance], avoid: &[WorkerId]| {
        router.set_workers(all).unwrap();
        let constraints = Constraints::default().with_avoid(avoid).with_session(session);
        router.route(&prompt, &constraints).unwrap().worker
    };
    let home = route(&all, &[]);
    let _busy = book(&router, home, 400_000).booking.until_dropped();
    for _ in 0..4 {
        clock.advance(ttl / 2);
        assert_eq!(route(&all, &[home]), home, "each request renews it");
    }
    clock.advance(ttl);
    let next = route(&all, &[]);
    assert_ne!(next, home);
    let left: Vec<_> = all.iter().filter(|one| one.id != next.instance).cloned().collect();
    assert_eq!(route(&left, &[]), home, "its worker is gone");
}

#[test]
fn a_session_stays_with_a_worker_that_some_of_its_requests_may_not_use_until_it_is_gone() {
    let clock = Arc::new(ManualClock::new());
    let affinity = AffinityConfig::default().with_stickiness(Stickiness::Hard);
    let config = RouterConfig::default().with_affinity(affinity);
    let router = KvRouter::new(config, Arc::<ManualClock>::clone(&clock));
    let all = [instance(1), labelled(2, &[("zone", "a")]), labelled(3, &[("zone", "a")])];
    let any = Constraints::default().with_session(Some(SessionKey::new("", "s")));
    let route = |listed: &[Instance], constraints: &Constraints<'_>| {
        router.set_workers(listed).unwrap();
        router.route(&request(160), constraints).unwrap().worker
    };
    assert_eq!(route(&all, &any.with_pinned(worker(1))), worker(1));
    // Neither what a request asks for, nor a list without it for a moment, moves the session.
    let elsewhere = route(&all, &any.with_required(&[("zone", "a")]));
    assert_ne!(elsewhere, worker(1));
    assert_eq!(route(&all, &any), worker(1));
    assert_eq!(route(&all, &any.with_pinned(elsewhere)), elsewhere);
    assert_ne!(route(&all[1..], &any), worker(1));
    clock.advance(ABSENT_MAX / 2);
    assert_eq!(route(&all, &any), worker(1));
    // It is gone, and the session stays where it went meanwhile.
    let _ = route(&all[1..], &any);
    clock.advance(ABSENT_MAX);
    let next = route(&all[1..], &any);
    assert_eq!(route(&all, &any), next);
}

#[test]
fn who_is_avoided_is_chosen_if_nobody_else_is_left() {
    let router = router();
    router.set_workers(&[instance(1), instance(2), instance(3)]).unwrap();
    // To name one twice, or one that is not there, changes nothing.
    let avoid = [worker(1), worker(2), worker(1), worker(1), worker(9)];
    let exclude = [InstanceId(3)];
    let constraints = Constraints::default().with_avoid(&avoid);
    let chosen = |constraints: &Constraints<'_>| {
        let route = |_| router.route(&request(64), constraints).unwrap().worker;
        (0..64).map(route).collect::<BTreeSet<_>>()
    };
    assert_eq!(chosen(&constraints), [worker(3)].into());
    let excluding = constraints.with_exclude(&exclude);
    assert_eq!(chosen(&excluding), [worker(1), worker(2)].into());
    let only_first = [worker(1), worker(1), worker(1)];
    assert_eq!(chosen(&excluding.with_avoid(&only_first)), [worker(2)].into());
}
