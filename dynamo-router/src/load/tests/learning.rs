//! What is learned of how fast workers are.

use std::sync::Arc;

use crate::load::speed::{Speed, Took};
use crate::load::steps::Steps;
use crate::load::{Chunk, Pace, Row, Seen};

const SECOND: u64 = 1_000_000_000;

fn near(is: f64, should: f64) -> bool {
    (is - should).abs() < should * 1e-3
}

#[test]
fn a_queue_is_no_part_of_a_prefill() {
    let (speed, pace) = (Speed::default(), Pace::new(0.0, 0.0));
    assert_eq!(speed.shown(), None);
    // Two that come at once, the second of which waits for the first.
    speed.began(5 * SECOND);
    assert!(speed.since_ns(6 * SECOND) == SECOND);
    for now in [6, 7] {
        let took = speed.first_token(1_000, now * SECOND).unwrap();
        pace.prefilled(took);
        assert!(near(took.seconds, 1.0));
    }
    assert!(near(speed.shown().unwrap(), 1e-3));
    assert!(near(Speed::default().among(pace.get().prefill).unwrap(), 1e-3));
    assert!(speed.first_token(15, 9 * SECOND).is_none(), "too few to show anything");
    speed.forget();
    assert_eq!(speed.shown(), None);
    assert!(speed.first_token(1_000, 10 * SECOND).is_none(), "nobody knows since when");
}

#[test]
fn one_prefill_says_little_and_many_say_all() {
    let (slow, pace) = (Speed::default(), Pace::new(0.0, 0.0));
    let fast = Speed::default();
    fast.began(0);
    (1..100).for_each(|now| pace.prefilled(fast.first_token(1_000, now * SECOND).unwrap()));
    let of_slow = |count: u64| {
        slow.began(0);
        (1..=count).for_each(|now| _ = slow.first_token(1_000, 2 * now * SECOND));
        slow.among(pace.get().prefill).unwrap()
    };
    let (once, often) = (of_slow(1), of_slow(1_000));
    assert!((1e-3..1.2e-3).contains(&once), "{once}");
    assert!((1.8e-3..2e-3).contains(&often), "{often}");
}

#[test]
fn a_worker_that_was_slow_by_chance_is_like_the_others_once_it_was_idle_for_long() {
    let (chunk, pace) = (Arc::new(Chunk::default()), Pace::new(0.0, 0.0));
    let row = Row::take(&chunk, 0);
    // A pool that takes a second, and one prefill of fifty times that.
    (0..100).for_each(|_| pace.prefilled(Took { tokens: 1_000.0, seconds: 1.0 }));
    row.began(0);
    row.first_token(1_000, 50 * SECOND);
    let pool = pace.get().prefill;
    let times_the_pool = |now: u64| {
        let mut seen = Seen::default();
        chunk.see(1, now * SECOND, u64::MAX, &mut seen);
        let (tokens, seconds) = (f64::from(seen.took_tokens[0]), f64::from(seen.took_s[0]));
        (pool.seconds + seconds) / (pool.tokens + tokens) * 1e3
    };
    assert!(times_the_pool(51) > 5.0 && times_the_pool(60) > 5.0);
    assert!(times_the_pool(200) < 1.05, "{}", times_the_pool(200));
    // What is learned then counts, and not what was before.
    row.began(200 * SECOND);
    row.first_token(1_000, 201 * SECOND);
    assert!(times_the_pool(201) < 1.05, "{}", times_the_pool(201));
}

#[test]
fn steps_and_answers_are_the_priors_until_many_have_been_seen() {
    let mut steps = Steps::default();
    assert_eq!((steps.s_per_cached_token(1e-6), steps.output_tokens(256.0)), (1e-6, 256.0));
    for answer in 0..2_000 {
        let cached = f64::from(answer % 10) * 20_000.0;
        steps.observe(100, 0.02 + 5e-8 * cached, cached);
    }
    assert!(near(steps.s_per_cached_token(5e-8), 5e-8), "{}", steps.s_per_cached_token(5e-8));
    assert!((4e-8..6e-8).contains(&steps.s_per_cached_token(1e-7)));
    assert!((100.0..103.0).contains(&steps.output_tokens(256.0)));
    // What gets faster the more there is would be noise.
    let mut odd = Steps::default();
    (0..1_000)
        .for_each(|answer| odd.observe(1, 1.0 / f64::from(answer + 1), f64::from(answer) * 1e4));
    assert!(odd.s_per_cached_token(0.0) >= 0.0);
}
