use dynamo_core::time::{Clock, ManualClock};

use super::*;

const WORKER: WorkerId = WorkerId::new(InstanceId(1));

/// Feeds `rounds` windows of requests of one worker, and returns every verdict that it changed to.
fn verdicts(
    rounds: u32,
    is_heard: bool,
    tokens: impl Fn(u64) -> (u64, u64),
) -> Vec<Option<Diagnosis>> {
    let clock = ManualClock::new();
    let mut diagnoses = Diagnoses::default();
    feed(&mut diagnoses, &clock, rounds, is_heard, tokens)
}

fn feed(
    diagnoses: &mut Diagnoses,
    clock: &ManualClock,
    rounds: u32,
    is_heard: bool,
    tokens: impl Fn(u64) -> (u64, u64),
) -> Vec<Option<Diagnosis>> {
    if is_heard {
        diagnoses.hear(WORKER, clock.now());
    }
    let mut changes = Vec::new();
    for number in 0..u64::from(rounds * WINDOW) {
        let (predicted, actual) = tokens(number);
        let actual = Some(actual);
        let sample = Sample { predicted, actual, prompt: 4096, block: 16 };
        changes.extend(diagnoses.observe(WORKER, sample, clock.now()));
        clock.advance(Duration::from_secs(1));
    }
    changes.into_iter().map(|change| change.is).collect()
}

#[test]
fn who_finds_about_what_was_predicted_has_nothing_wrong() {
    let tokens = |number: u64| (16 * (number % 9), 16 * ((number + 1) % 9));
    assert_eq!(verdicts(8, true, tokens), []);
    // Nothing predicted and nothing found says nothing, however often.
    assert_eq!(verdicts(8, true, |_| (0, 0)), []);
}

#[test]
fn who_serves_and_is_never_heard_publishes_nothing() {
    assert_eq!(verdicts(1, false, |_| (0, 0)), [Some(Diagnosis::NoEvents)]);
    let (clock, mut diagnoses) = (ManualClock::new(), Diagnoses::default());
    // Prompts without a block leave none.
    let short = Sample { predicted: 0, actual: Some(0), prompt: 15, block: 16 };
    for _ in 0..100 {
        assert_eq!(diagnoses.observe(WORKER, short, clock.now()), None);
        clock.advance(Duration::from_secs(1));
    }
    assert_eq!(feed(&mut diagnoses, &clock, 1, false, |_| (0, 0)), [Some(Diagnosis::NoEvents)]);
    assert_eq!(feed(&mut diagnoses, &clock, 1, true, |_| (16, 16)), [None]);
    assert!(diagnoses.list().is_empty());
}

#[test]
fn who_does_not_say_what_it_finds_is_not_said_to_find_nothing() {
    let (clock, mut diagnoses) = (ManualClock::new(), Diagnoses::default());
    let silent = Sample { predicted: 640, actual: None, prompt: 4096, block: 16 };
    let answers = |diagnoses: &mut Diagnoses| {
        for _ in 0..4 * WINDOW {
            diagnoses.observe(WORKER, silent, clock.now());
            clock.advance(Duration::from_secs(1));
        }
    };
    // That it publishes nothing shows all the same.
    answers(&mut diagnoses);
    assert_eq!(diagnoses.list(), [(WORKER, Diagnosis::NoEvents)]);
    diagnoses.hear(WORKER, clock.now());
    answers(&mut diagnoses);
    assert_eq!(diagnoses.list(), []);
}

#[test]
fn lengths_that_are_no_blocks_are_of_another_block_size() {
    let found_tokens = 8;
    let smaller = Diagnosis::BlockSizeMismatch { expected_tokens: 16, found_tokens };
    assert_eq!(verdicts(4, true, |number| (0, 8 * (1 + number % 7))), [Some(smaller)]);
    let larger = Diagnosis::BlockSizeMismatch { expected_tokens: 16, found_tokens: 64 };
    assert_eq!(verdicts(4, true, |number| (0, 64 * (1 + number % 7))), [Some(larger)]);
    // The last token of a prompt is computed, also of one that is cached whole.
    assert_eq!(verdicts(4, true, |_| (4080, 4095)), []);
}

#[test]
fn lengths_of_the_right_blocks_that_no_event_names_are_hashed_otherwise() {
    let hashes = [Some(Diagnosis::HashMismatch)];
    assert_eq!(verdicts(4, true, |number| (0, 16 * (1 + number % 7))), hashes);
    // One system prompt of an even number of blocks says nothing of their size.
    assert_eq!(verdicts(4, true, |_| (0, 64)), hashes);
}

#[test]
fn an_index_that_says_far_too_much_or_too_little_is_stale() {
    let stale = [Some(Diagnosis::StaleIndex)];
    assert_eq!(verdicts(4, true, |_| (160, 48)), stale);
    assert_eq!(verdicts(4, true, |_| (48, 160)), stale);
    assert_eq!(verdicts(4, true, |_| (160, 0)), stale);
}

#[test]
fn one_window_changes_nothing_two_that_agree_do_and_each_change_is_told_once() {
    let (clock, mut diagnoses) = (ManualClock::new(), Diagnoses::default());
    let (right, wrong) = (|_| (160, 160), |_| (160, 16));
    for _ in 0..4 {
        assert_eq!(feed(&mut diagnoses, &clock, 1, true, wrong), []);
        assert_eq!(feed(&mut diagnoses, &clock, 1, true, right), []);
    }
    assert_eq!(feed(&mut diagnoses, &clock, 5, true, wrong), [Some(Diagnosis::StaleIndex)]);
    assert_eq!(diagnoses.list(), [(WORKER, Diagnosis::StaleIndex)]);
    assert_eq!(feed(&mut diagnoses, &clock, 5, true, right), [None]);
    feed(&mut diagnoses, &clock, 5, true, wrong);
    diagnoses.forget(WORKER.instance);
    assert!(diagnoses.list().is_empty());
}
