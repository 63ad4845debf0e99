use super::*;
use crate::choose::{AffinityConfig, Stickiness};
use crate::router::Preference;

#[tokio::test]
async fn who_may_go_to_busy_workers_only_waits_and_those_behind_it_pass() {
    let router = router(2, config());
    let (ctx, prompt) = (Context::new(), request(64));
    router.router().apply(&holds(1, Tier::Device, &prompt.blocks, prompt.blocks.len()));
    let first = anywhere(&router, &ctx, &prompt).await.unwrap();
    assert_eq!(first.worker, worker(1));
    let (pinned, excluded) = (Constraints::default().with_pinned(worker(1)), [InstanceId(0)]);
    let excluded = Constraints::default().with_exclude(&excluded);
    let mut of_pinned = Box::pin(router.route(&ctx, &prompt, &pinned));
    let mut of_excluded = Box::pin(router.route(&ctx, &prompt, &excluded));
    assert!(poll!(&mut of_pinned).is_pending() && poll!(&mut of_excluded).is_pending());
    // Not the holder: that one is busy.
    let free = anywhere(&router, &ctx, &prompt).now_or_never().expect("nobody waits for it");
    assert_eq!(free.as_ref().unwrap().worker, worker(0));
    let mut of_any = Box::pin(anywhere(&router, &ctx, &prompt));
    assert!(poll!(&mut of_any).is_pending());
    drop(free);
    let of_any = of_any.now_or_never().expect("those before it wait for another").unwrap();
    assert_eq!((of_any.worker, router.stats().waiting), (worker(0), 2));
    drop(first);
    let pinned = of_pinned.now_or_never().unwrap().unwrap();
    assert_eq!((pinned.worker, router.stats().waiting), (worker(1), 1));
    drop(pinned);
    assert_eq!(of_excluded.now_or_never().unwrap().unwrap().worker, worker(1));
    drop(of_any);
    assert_at_rest(&router);
}

/// A queue before as many workers as `count` says, of which the last of ten is in zone `b`.
fn zoned(count: &Arc<AtomicUsize>) -> QueuedRouter {
    let zone = |id| if id == 9 { "b" } else { "a" };
    let labelled = move |id| {
        let labels = [("zone".to_owned(), zone(id).to_owned())].into();
        Instance { labels, ..instance(id) }
    };
    let count = Arc::clone(count);
    let all = move || (0..count.load(Ordering::Relaxed) as u64).map(labelled).collect();
    QueuedRouter::new(KvRouter::new(RouterConfig::default(), Arc::new(SystemClock)), all, config())
}

#[tokio::test]
async fn what_is_asked_of_a_worker_counts_for_those_that_wait() {
    let (only, labels) = ([InstanceId(9)], [("zone", "b")]);
    let others = (0..9).map(InstanceId).collect::<Vec<_>>();
    let avoid: Vec<_> = (0..9).map(worker).collect();
    let preferred = [Preference { label: "zone", value: "b", seconds: 9.0 }];
    let any = Constraints::default();
    let (ctx, prompt) = (Context::new(), request(64));
    // Where those that must be go, wait, and where those that should rather be go.
    for constraints in [
        any.with_only(&only),
        any.with_pinned(worker(9)),
        any.with_required(&labels),
        any.with_exclude(&others),
        any.with_avoid(&avoid),
        any.with_preferred(&preferred),
    ] {
        let count = Arc::new(AtomicUsize::new(10));
        let router = zoned(&count);
        let taken = fill(&router);
        let mut waits = Box::pin(router.route(&ctx, &prompt, &constraints));
        assert!(poll!(&mut waits).is_pending(), "{constraints}");
        // They are free all at once, but for the first.
        count.store(1, Ordering::Relaxed);
        router.look_again();
        let (_busy, others): (Vec<_>, Vec<_>) =
            taken.into_iter().partition(|decision| decision.worker == worker(0));
        drop(others);
        assert_eq!(router.stats().waiting, 1);
        count.store(10, Ordering::Relaxed);
        router.look_again();
        assert_eq!(waits.now_or_never().unwrap().unwrap().worker, worker(9), "{constraints}");
    }
}

#[tokio::test]
async fn whom_to_avoid_is_better_than_to_wait_and_nobody_waits_for_a_worker_that_is_not_there() {
    let router = router(2, config());
    let (ctx, prompt, any) = (Context::new(), request(64), Constraints::default());
    let avoid = [worker(1), worker(1)];
    let avoiding = any.with_avoid(&avoid);
    let first = router.route(&ctx, &prompt, &avoiding).await.unwrap();
    let second = router.route(&ctx, &prompt, &avoiding).now_or_never().unwrap().unwrap();
    assert_eq!((first.worker, second.worker), (worker(0), worker(1)));
    let gone = any.with_pinned(worker(9));
    let error = router.route(&ctx, &prompt, &gone).now_or_never().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_session_that_is_kept_whatever_happens_waits_for_its_worker() {
    let affinity = AffinityConfig::default().with_stickiness(Stickiness::Hard);
    let config_of_router = RouterConfig::default().with_affinity(affinity);
    let router = KvRouter::new(config_of_router, Arc::new(SystemClock));
    let all: Arc<[Instance]> = [instance(0), instance(1)].into();
    let router = QueuedRouter::new(router, move || Arc::clone(&all), config());
    let (ctx, prompt) = (Context::new(), request(64));
    let session = Constraints::default().with_session(Some(SessionKey::new("t", "s")));
    let first = router.route(&ctx, &prompt, &session).await.unwrap();
    let mut second = Box::pin(router.route(&ctx, &prompt, &session));
    assert!(poll!(&mut second).is_pending(), "the other is free, and is not its worker");
    let home = first.worker;
    drop(first);
    assert_eq!(second.now_or_never().unwrap().unwrap().worker, home);
    assert_at_rest(&router);
}

#[tokio::test]
async fn a_queue_full_of_those_who_wait_for_one_worker_keeps_nobody_from_another() {
    let router = router(2, config().with_room(1, 1000));
    let (ctx, prompt) = (Context::new(), request(64));
    let pinned = Constraints::default().with_pinned(worker(1));
    let _first = router.route(&ctx, &prompt, &pinned).await.unwrap();
    let mut waits = Box::pin(router.route(&ctx, &prompt, &pinned));
    assert!(poll!(&mut waits).is_pending());
    for _ in 0..3 {
        let decision = anywhere(&router, &ctx, &prompt).await.unwrap();
        assert_eq!(decision.worker, worker(0));
    }
    let refused = router.route(&ctx, &prompt, &pinned).await.unwrap_err();
    assert_eq!((refused.kind(), router.stats().waiting), (ErrorKind::Overloaded, 1));
}
