use std::collections::BTreeMap;
use std::task::Poll;

use dynamo_core::random::Random;

use super::*;

/// Routes a request, to one worker now and then, and lets it go, loses patience, is killed or is
/// dropped; returns which.
async fn one_of_many(router: QueuedRouter, seed: u64) -> &'static str {
    let mut random = Random::new(seed);
    let mut chance = |of| random.below(of) == Some(0);
    let ctx = Context::new();
    let ctx = if chance(16) { ctx.with_timeout(Duration::from_micros(50)) } else { ctx };
    let (prompt, is_dropped, is_killed) = (request(16), chance(16), chance(16));
    let constraints = Constraints::default();
    let constraints = if chance(8) { constraints.with_pinned(worker(1)) } else { constraints };
    let mut routing = Box::pin(router.route(&ctx, &prompt, &constraints));
    let decision = match poll!(&mut routing) {
        Poll::Ready(decision) => decision,
        Poll::Pending if is_dropped => return "dropped",
        Poll::Pending => {
            if is_killed {
                ctx.kill();
            }
            routing.await
        }
    };
    match decision {
        Ok(mut decision) => {
            tokio::task::yield_now().await;
            if chance(2) {
                router.router().observe_first_token(&mut decision);
                tokio::task::yield_now().await;
            }
            "routed"
        }
        Err(error) => error.kind().as_str(),
    }
}

/// Many small bursts rather than a long one: a wake-up that is lost shows when nothing follows it.
/// Nobody leaves for want of patience, nor looks by itself, so that it does show.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_is_lost_among_threads() {
    let never = Duration::from_secs(3600);
    let config = config().with_room(24, 24 * 16).with_wait_max(never).with_look_every(never);
    let router = router(2, config);
    let mut outcomes = BTreeMap::<_, u64>::new();
    for burst in 0..200 {
        let mut tasks = tokio::task::JoinSet::new();
        for request in 0..32 {
            tasks.spawn(one_of_many(router.clone(), burst * 32 + request));
        }
        let all = tokio::time::timeout(Duration::from_secs(20), tasks.join_all());
        for outcome in all.await.expect("nobody waits for ever") {
            *outcomes.entry(outcome).or_default() += 1;
        }
        assert_at_rest(&router);
    }
    let expected = ["cancelled", "deadline_exceeded", "dropped", "overloaded", "routed"];
    assert!(outcomes.keys().all(|outcome| expected.contains(outcome)), "{outcomes:?}");
    assert_eq!(outcomes.values().sum::<u64>(), 200 * 32);
    assert!(outcomes["routed"] > 0 && router.stats().popped_total > 0, "{outcomes:?}");
}
