mod constraints;
mod threads;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use dynamo_core::protocol::{BlockSize, CacheNamespace, InstanceId, LoadReport, Sampling, Tier};
use dynamo_core::time::{Clock, SystemClock};
use dynamo_core::{ErrorKind, Priority};
use futures::{FutureExt, poll};

use super::*;
use crate::choose::SessionKey;
use crate::fixtures::{self, holds, instance, worker};
use crate::queue::{BusyThresholds, QueuePolicy, Watermarks};
use crate::router::RouterConfig;

fn request(tokens: u32) -> GenerateRequest {
    fixtures::request(0..tokens)
}

/// A worker is busy from the first prompt token to the last: one prompt each at once.
fn config() -> QueueConfig {
    let marks = Watermarks::new(0.0, 1.0).unwrap();
    QueueConfig::default().with_busy(BusyThresholds::never().with_prefill_tokens(marks))
}

fn router(workers: u64, config: QueueConfig) -> QueuedRouter {
    let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
    let all: Arc<[Instance]> = (0..workers).map(instance).collect();
    QueuedRouter::new(router, move || Arc::clone(&all), config)
}

/// Routes a request to any worker.
async fn anywhere(
    router: &QueuedRouter,
    ctx: &Context,
    request: &GenerateRequest,
) -> Result<Decision> {
    router.route(ctx, request, &Constraints::default()).await
}

/// Takes all the workers there are.
fn fill(router: &QueuedRouter) -> Vec<Decision> {
    let take = || anywhere(router, &Context::new(), &request(64)).now_or_never().unwrap().unwrap();
    let (mut taken, mut workers) = (vec![take()], 0);
    router.router().each_queue(|_, _, _| workers += 1);
    taken.extend((1..workers).map(|_| take()));
    taken
}

fn assert_at_rest(router: &QueuedRouter) {
    let stats = router.stats();
    assert_eq!((stats.waiting, router.router().stats().bookings), (0, 0), "{stats:?}");
    let gone = stats.popped_total + stats.expired_total + stats.cancelled_total;
    assert_eq!(gone + stats.displaced_total, stats.entered_total, "{stats:?}");
}

#[tokio::test]
async fn whoever_releases_load_routes_the_next_before_it_goes_on() {
    let router = router(2, config());
    let (ctx, prompt) = (Context::new(), request(64));
    let mut taken = fill(&router);
    let mut first = Box::pin(anywhere(&router, &ctx, &prompt));
    let mut second = Box::pin(anywhere(&router, &ctx, &prompt));
    assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
    // The first token makes room,
    let mut decision = taken.remove(0);
    router.router().observe_first_token(&mut decision);
    assert_eq!((router.stats().waiting, router.router().load(decision.worker).requests), (1, 2));
    let first = first.now_or_never().unwrap().unwrap();
    assert_eq!(first.worker, decision.worker);
    assert!(poll!(&mut second).is_pending());
    // and so does the end of a stream.
    let other = taken[0].worker;
    taken.clear();
    assert_eq!(second.now_or_never().unwrap().unwrap().worker, other);
    drop((first, decision));
    assert_at_rest(&router);
}

#[tokio::test]
async fn a_decision_nobody_takes_goes_to_the_next() {
    let router = router(1, config());
    let (ctx, prompt) = (Context::new(), request(64));
    let taken = fill(&router);
    let mut first = Box::pin(anywhere(&router, &ctx, &prompt));
    let mut second = Box::pin(anywhere(&router, &ctx, &prompt));
    assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
    drop(taken);
    assert!(poll!(&mut second).is_pending(), "the first has it");
    drop(first);
    drop(second.now_or_never().unwrap().unwrap());
    assert_at_rest(&router);
}

#[tokio::test(start_paused = true)]
async fn who_is_killed_stopped_late_or_tired_of_waiting_leaves_at_once() {
    let router = router(1, config().with_wait_max(Duration::from_secs(5)));
    let prompt = request(64);
    let taken = fill(&router);
    let (killed, plain) = (Context::new(), Context::new());
    let late = Context::new().with_timeout(Duration::from_secs(2));
    let mut of_killed = Box::pin(anywhere(&router, &killed, &prompt));
    let mut of_late = Box::pin(anywhere(&router, &late, &prompt));
    let mut of_plain = Box::pin(anywhere(&router, &plain, &prompt));
    for waiting in [&mut of_killed, &mut of_late, &mut of_plain] {
        assert!(poll!(waiting).is_pending());
    }
    killed.kill();
    assert_eq!(of_killed.await.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(router.stats().waiting, 2);
    assert_eq!(of_late.await.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(router.stats().waiting, 1);
    let error = of_plain.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    assert!(error.is_retryable() && error.retry_after().is_some(), "{error}");
    let mut dropped = Box::pin(anywhere(&router, &plain, &prompt));
    assert!(poll!(&mut dropped).is_pending());
    drop(dropped);
    let stopped = Context::new();
    let mut of_stopped = Box::pin(anywhere(&router, &stopped, &prompt));
    assert!(poll!(&mut of_stopped).is_pending());
    stopped.stop();
    assert_eq!(of_stopped.await.unwrap_err().kind(), ErrorKind::Cancelled);
    let stats = router.stats();
    assert_eq!((stats.cancelled_total, stats.expired_total, stats.popped_total), (3, 2, 0));
    drop(taken);
    assert_at_rest(&router);
}

#[tokio::test]
async fn one_that_is_to_end_is_not_begun_when_its_turn_comes() {
    let router = router(1, config());
    let (stopped, prompt) = (Context::new(), request(64));
    let taken = fill(&router);
    let mut waits = Box::pin(anywhere(&router, &stopped, &prompt));
    assert!(poll!(&mut waits).is_pending());
    stopped.stop();
    drop(taken);
    assert_eq!(waits.await.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_at_rest(&router);
}

#[tokio::test(start_paused = true)]
async fn load_that_goes_without_a_word_wakes_those_that_wait() {
    let router = router(1, config().with_wait_max(Duration::MAX));
    let (ctx, prompt) = (Context::new(), request(64));
    // A stream that hangs: only its lease ends.
    let hangs = fill(&router);
    let decision = anywhere(&router, &ctx, &prompt).await.unwrap();
    assert_eq!(router.router().stats().leases_expired_total, 1);
    drop((hangs, decision));
    // Other routers' requests: only the report fades.
    let report = LoadReport {
        worker: worker(0),
        requests_running: 1,
        requests_waiting: 9,
        prefill_tokens: Some(10_000),
        blocks_active: 0,
        blocks_total: 0,
    };
    assert!(router.router().report(&report, SystemClock.now()));
    assert!(anywhere(&router, &ctx, &prompt).now_or_never().is_none(), "it is busy");
    drop(anywhere(&router, &ctx, &prompt).await.unwrap());
    assert_at_rest(&router);
}

#[tokio::test(start_paused = true)]
async fn one_whose_time_is_over_is_not_routed_even_if_it_has_not_noticed_yet() {
    let router = router(1, config());
    let (plain, prompt) = (Context::new(), request(64));
    let late = Context::new().with_timeout(Duration::from_secs(2));
    let taken = fill(&router);
    let mut of_late = Box::pin(anywhere(&router, &late, &prompt));
    let mut of_plain = Box::pin(anywhere(&router, &plain, &prompt));
    assert!(poll!(&mut of_late).is_pending() && poll!(&mut of_plain).is_pending());
    tokio::time::advance(Duration::from_secs(3)).await;
    drop(taken);
    let decision = of_plain.now_or_never().unwrap().unwrap();
    assert_eq!(router.router().stats().bookings, 1);
    let error = of_late.now_or_never().unwrap().unwrap_err();
    assert_eq!((error.kind(), router.stats().expired_total), (ErrorKind::DeadlineExceeded, 1));
    drop(decision);
    assert_at_rest(&router);
}

#[tokio::test]
async fn a_full_queue_refuses_and_an_urgent_request_takes_a_place() {
    let router = router(1, config().with_room(1, 1000));
    let (plain, prompt) = (Context::new(), request(64));
    let urgent = Context::new().with_priority(Priority::HIGHEST);
    let taken = fill(&router);
    let mut waits = Box::pin(anywhere(&router, &plain, &prompt));
    assert!(poll!(&mut waits).is_pending());
    let refused = anywhere(&router, &plain, &prompt).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    let mut of_urgent = Box::pin(anywhere(&router, &urgent, &prompt));
    assert!(poll!(&mut of_urgent).is_pending());
    let displaced = waits.now_or_never().unwrap().unwrap_err();
    assert!(displaced.kind() == ErrorKind::Overloaded && displaced.retry_after().is_some());
    drop(taken);
    assert!(of_urgent.now_or_never().unwrap().is_ok());
    assert_at_rest(&router);
}

#[tokio::test]
async fn a_session_stays_with_its_worker_unless_that_one_is_busy() {
    let router = router(3, config());
    let ctx = Context::new().with_metadata(crate::choose::SESSION_METADATA, "s");
    let prompt = request(64);
    let session = Constraints::default().with_session(SessionKey::of(&ctx, &prompt));
    let home = router.route(&ctx, &prompt, &session).await.unwrap().worker;
    for _ in 0..16 {
        assert_eq!(router.route(&ctx, &prompt, &session).await.unwrap().worker, home);
    }
    let _busy = router.route(&ctx, &prompt, &session).await.unwrap();
    assert_ne!(router.route(&ctx, &prompt, &session).await.unwrap().worker, home);
}

#[tokio::test]
async fn the_shortest_goes_first_by_what_is_not_cached() {
    let router = router(1, config().with_policy(QueuePolicy::Wspt));
    let (long, short) = (request(1600), request(160));
    let other = GenerateRequest::new(
        CacheNamespace::model("other"),
        BlockSize::DEFAULT,
        short.token_ids.clone(),
        Sampling::default(),
    );
    let taken = fill(&router);
    router.router().apply(&holds(7, Tier::Device, &long.blocks, long.blocks.len()));
    let ctx = Context::new();
    let mut of_other = Box::pin(anywhere(&router, &ctx, &other));
    let mut of_long = Box::pin(anywhere(&router, &ctx, &long));
    assert!(poll!(&mut of_other).is_pending() && poll!(&mut of_long).is_pending());
    drop(taken);
    assert!(poll!(&mut of_other).is_pending());
    assert!(of_long.now_or_never().unwrap().is_ok(), "the long one is cached");
    assert!(of_other.now_or_never().unwrap().is_ok());
}

#[tokio::test]
async fn workers_that_join_are_seen_and_without_any_nobody_waits() {
    let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
    let count = Arc::new(AtomicUsize::new(1));
    let counted = Arc::clone(&count);
    let candidates = move || (0..counted.load(Ordering::Relaxed) as u64).map(instance).collect();
    let router = QueuedRouter::new(router, candidates, config());
    let (ctx, prompt) = (Context::new(), request(64));
    let _taken = fill(&router);
    let mut waits = Box::pin(anywhere(&router, &ctx, &prompt));
    assert!(poll!(&mut waits).is_pending());
    count.store(2, Ordering::Relaxed);
    router.look_again();
    let _second = waits.now_or_never().unwrap().unwrap();
    let mut waits = Box::pin(anywhere(&router, &ctx, &prompt));
    assert!(poll!(&mut waits).is_pending());
    count.store(0, Ordering::Relaxed);
    router.look_again();
    assert_eq!(waits.await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_panic_while_others_are_routed_leaves_the_queue_to_the_next_who_looks() {
    let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
    let panics = Arc::new(AtomicBool::new(false));
    let armed = Arc::clone(&panics);
    let candidates = move || -> Arc<[Instance]> {
        assert!(!armed.load(Ordering::Relaxed), "who tells the workers fails");
        Arc::new([instance(1)])
    };
    let router = QueuedRouter::new(router, candidates, config());
    let (ctx, prompt) = (Context::new(), request(64));
    let taken = fill(&router);
    let mut waits = Box::pin(anywhere(&router, &ctx, &prompt));
    assert!(poll!(&mut waits).is_pending());
    panics.store(true, Ordering::Relaxed);
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(taken))).unwrap_err();
    panics.store(false, Ordering::Relaxed);
    assert_eq!(router.stats().waiting, 1);
    router.look_again();
    drop(waits.now_or_never().unwrap().unwrap());
    assert_at_rest(&router);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_reports_its_blocks_taken_gets_nothing_more_until_they_are_free() {
    let router = router(1, QueueConfig::default());
    let (ctx, prompt) = (Context::new(), request(64));
    drop(anywhere(&router, &ctx, &prompt).await.unwrap());
    let report = |blocks_active| LoadReport {
        worker: worker(0),
        requests_running: 9,
        requests_waiting: 0,
        prefill_tokens: Some(0),
        blocks_active,
        blocks_total: 1000,
    };
    assert!(router.router().report(&report(960), SystemClock.now()));
    let mut waits = Box::pin(anywhere(&router, &ctx, &prompt));
    assert!(poll!(&mut waits).is_pending());
    tokio::time::advance(Duration::from_millis(100)).await;
    assert!(router.router().report(&report(500), SystemClock.now()));
    assert!(waits.now_or_never().expect("there is room").is_ok());
}
