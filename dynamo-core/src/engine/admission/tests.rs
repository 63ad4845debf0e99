use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::{FutureExt, poll};

use super::*;
use crate::random::Random;

type Admitting<'a> = Pin<Box<dyn Future<Output = Result<Permit>> + Send + 'a>>;

/// Enters the queue; what comes back has been polled once.
async fn enter<'a>(admission: &'a Admission, ctx: &'a Context) -> Admitting<'a> {
    let mut admitting: Admitting<'a> = Box::pin(admission.admit(ctx));
    assert!(poll!(&mut admitting).is_pending());
    admitting
}

fn urgent(level: u8) -> Context {
    Context::new().with_priority(Priority::new(level).unwrap())
}

#[tokio::test]
async fn so_many_run_so_many_wait_and_the_rest_is_refused_unprocessed() {
    let admission = Admission::new(2, 1);
    let ctx = Context::new();
    let first = admission.admit(&ctx).await.unwrap();
    let second = admission.admit(&ctx).await.unwrap();
    let third = enter(&admission, &ctx).await;
    assert_eq!((admission.running(), admission.waiting()), (2, 1));
    let error = admission.admit(&ctx).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    assert!(error.is_retryable() && error.retry_after().is_some());
    drop(first);
    let third = third.await.unwrap();
    assert_eq!((admission.running(), admission.waiting()), (2, 0));
    drop((second, third));
    assert_eq!(admission.running(), 0);
    assert_eq!(
        Admission::new(0, 9).admit(&ctx).await.unwrap_err().kind(),
        ErrorKind::Overloaded,
        "where nothing runs nobody waits"
    );
}

#[tokio::test]
async fn the_most_urgent_goes_first_and_equals_go_by_arrival() {
    let admission = Admission::new(1, 9);
    let ctx = Context::new();
    let mut running = Some(admission.admit(&ctx).await.unwrap());
    let contexts = [urgent(1), urgent(4), urgent(7), urgent(4), urgent(1), urgent(7)];
    let mut waiting = Vec::new();
    for ctx in &contexts {
        waiting.push(Some(enter(&admission, ctx).await));
    }
    let mut order = Vec::new();
    while order.len() < contexts.len() {
        drop(running.take());
        for (index, slot) in waiting.iter_mut().enumerate() {
            let Some(admitting) = slot else { continue };
            if let Some(permit) = admitting.now_or_never() {
                assert!(running.is_none(), "one at once");
                running = Some(permit.unwrap());
                order.push(index);
                *slot = None;
            }
        }
    }
    assert_eq!(order, [2, 5, 1, 3, 0, 4]);
}

#[tokio::test]
async fn a_more_urgent_request_takes_the_last_place_of_a_full_queue() {
    let admission = Admission::new(1, 2);
    let contexts = [urgent(4), urgent(4), urgent(3), urgent(5), urgent(4)];
    let running = admission.admit(&contexts[0]).await.unwrap();
    let mut kept = enter(&admission, &contexts[1]).await;
    let displaced = enter(&admission, &contexts[2]).await;
    let mut urgent = enter(&admission, &contexts[3]).await;
    let error = displaced.await.unwrap_err();
    assert!(error.kind() == ErrorKind::Overloaded && error.is_retryable());
    let error = admission.admit(&contexts[4]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded, "an equal displaces nobody");
    drop(running);
    assert!(poll!(&mut kept).is_pending());
    drop(poll!(&mut urgent));
    assert!(poll!(&mut kept).is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_is_killed_expires_or_is_dropped_leaves_and_never_starts() {
    let admission = Admission::new(1, 3);
    let patient = Context::new();
    let hurried = Context::new().with_timeout(Duration::from_secs(1));
    let (killed, dropped) = (Context::new(), Context::new());
    let running = admission.admit(&patient).await.unwrap();
    let expires = enter(&admission, &hurried).await;
    let is_killed = enter(&admission, &killed).await;
    drop(enter(&admission, &dropped).await);
    assert_eq!(admission.waiting(), 2);
    killed.kill();
    assert_eq!(is_killed.await.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(expires.await.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    assert_eq!((admission.running(), admission.waiting()), (1, 0));

    // Those that were not even looked at again are passed over.
    let (killed, hurried) = (Context::new(), Context::new().with_timeout(Duration::from_secs(1)));
    let is_killed = enter(&admission, &killed).await;
    let expires = enter(&admission, &hurried).await;
    let lives = enter(&admission, &patient).await;
    killed.kill();
    tokio::time::advance(Duration::from_secs(2)).await;
    drop(running);
    let permit = lives.await.unwrap();
    assert_eq!(admission.running(), 1);
    assert!(is_killed.await.is_err() && expires.await.is_err());
    drop(permit);
    assert_eq!(admission.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_permit_for_one_that_has_left_or_expired_goes_to_the_next() {
    let admission = Admission::new(1, 3);
    let ctx = Context::new();
    let hurried = Context::new().with_timeout(Duration::from_secs(1));
    let running = admission.admit(&ctx).await.unwrap();
    let leaves = enter(&admission, &ctx).await;
    let expires = enter(&admission, &hurried).await;
    let stays = enter(&admission, &ctx).await;
    drop(running);
    drop(leaves);
    // Granted in time, but looked at too late.
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(expires.await.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    assert!(stays.await.is_ok());
    assert_eq!((admission.running(), admission.waiting()), (0, 0));
}

#[tokio::test]
async fn a_closed_one_refuses_all_but_what_runs_and_tells_when_it_is_idle() {
    let admission = Admission::new(1, 1);
    let ctx = Context::new();
    admission.idle().await;
    let running = admission.admit(&ctx).await.unwrap();
    let waiting = enter(&admission, &ctx).await;
    admission.close();
    for refused in [waiting.await.unwrap_err(), admission.admit(&ctx).await.unwrap_err()] {
        assert!(refused.kind() == ErrorKind::Unavailable && refused.is_retryable());
    }
    let mut idle = Box::pin(admission.idle());
    assert!(poll!(&mut idle).is_pending());
    drop(running);
    assert!(poll!(&mut idle).is_ready());
}

#[tokio::test(start_paused = true)]
async fn when_to_come_back_follows_the_times_that_permits_were_held() {
    let retry_after = |admission: &Admission| {
        admission.admit(&Context::new()).now_or_never().unwrap().unwrap_err().retry_after().unwrap()
    };
    let hold = async |admission: &Admission, held: Duration| {
        let permit = admission.admit(&Context::new()).await.unwrap();
        tokio::time::advance(held).await;
        drop(permit);
    };
    let admission = Admission::new(4, 0);
    let four = async || {
        let ctx = Context::new();
        let mut permits = Vec::new();
        for _ in 0..4 {
            permits.push(admission.admit(&ctx).await.unwrap());
        }
        permits
    };
    let permits = four().await;
    assert_eq!(retry_after(&admission), Duration::from_millis(250), "a second, four at once");
    // The first observation counts alone, a later one an eighth.
    tokio::time::advance(Duration::from_secs(8)).await;
    drop(permits);
    hold(&admission, Duration::from_secs(16)).await;
    let permits = four().await;
    assert_eq!(retry_after(&admission), Duration::from_millis(9000 / 4));
    tokio::time::advance(Duration::from_secs(10_000)).await;
    drop(permits);
    let permits = four().await;
    assert_eq!(retry_after(&admission), RETRY_AFTER_MAX);
    drop(permits);
    for _ in 0..200 {
        hold(&admission, Duration::ZERO).await;
    }
    let _permits = four().await;
    assert_eq!(retry_after(&admission), RETRY_AFTER_MIN);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_comes_and_goes_the_limits_hold_and_nothing_is_left_behind() {
    let admission = Admission::new(3, 8);
    let (inside, served) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let mut tasks = tokio::task::JoinSet::new();
    for seed in 0..32 {
        let (admission, inside) = (admission.clone(), Arc::clone(&inside));
        let served = Arc::clone(&served);
        tasks.spawn(async move {
            let mut random = Random::new(seed);
            for _ in 0..200 {
                let level = u8::try_from(random.below(8).unwrap()).unwrap();
                let mut ctx = urgent(level);
                if random.below(3) == Some(0) {
                    ctx = ctx.with_timeout(Duration::from_micros(random.next_u64() % 300));
                }
                let admitting = admission.admit(&ctx);
                let permit = match random.below(4) {
                    Some(0) => tokio::time::timeout(Duration::from_micros(50), admitting)
                        .await
                        .unwrap_or_else(|_| Err(closed())),
                    _ => admitting.await,
                };
                if let Ok(permit) = permit {
                    assert!(inside.fetch_add(1, Ordering::SeqCst) < 3);
                    served.fetch_add(1, Ordering::SeqCst);
                    for _ in 0..random.below(4).unwrap() {
                        tokio::task::yield_now().await;
                    }
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(permit);
                }
                assert!(admission.waiting() <= 8);
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    assert_eq!((admission.running(), admission.waiting()), (0, 0));
    assert!(served.load(Ordering::SeqCst) > 0);
}
