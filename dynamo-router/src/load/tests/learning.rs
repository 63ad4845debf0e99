//! What is learned of how fast workers are.

use crate::load::Pace;
use crate::load::speed::Speed;
use crate::load::steps::Steps;

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
    assert!(speed.busy_ns(6 * SECOND) == SECOND);
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
