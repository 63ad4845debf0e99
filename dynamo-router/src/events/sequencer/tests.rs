use dynamo_core::protocol::Tier;

use super::*;
use crate::fixtures::{block, worker};

/// The event that stores block `seq`.
fn event(epoch: u64, seq: u64) -> KvEvent {
    KvEvent { worker: worker(1), epoch, seq, change: stored(seq) }
}

fn stored(hash: u64) -> KvChange {
    KvChange::BlockStored { parent: None, blocks: vec![block(hash)], tier: Tier::Host }
}

/// Writes down what it is to do: blocks as their numbers, `None` for a clear.
fn write(steps: &mut Vec<Option<u64>>) -> impl FnMut(Step<'_>) {
    let number = |change: &KvChange| match change {
        KvChange::BlockStored { blocks, .. } => blocks[0].sequence.0,
        _ => unreachable!("all store"),
    };
    move |step| match step {
        Step::Clear => steps.push(None),
        Step::Apply(change) => steps.push(Some(number(change))),
        Step::Replace { stored, since } => {
            steps.push(None);
            steps.extend(stored.iter().chain(since).map(|change| Some(number(change))));
        }
    }
}

fn hear(
    sequencer: &mut Sequencer,
    waits: bool,
    numbers: impl IntoIterator<Item = (u64, u64)>,
) -> (Vec<Heard>, Vec<Option<u64>>) {
    let mut steps = Vec::new();
    let numbers = numbers.into_iter();
    let heard = numbers
        .map(|(epoch, seq)| sequencer.hear(&event(epoch, seq), waits, write(&mut steps)))
        .collect();
    (heard, steps)
}

fn snapshot(epoch: u64, next: u64, hashes: impl IntoIterator<Item = u64>) -> Snapshot {
    let stored = hashes.into_iter().map(stored).collect();
    Snapshot { cursor: KvCursor { epoch, next }, stored }
}

use Heard::{Applied, Held, Ignored, Lost};

#[test]
fn repeats_and_latecomers_are_ignored_and_at_a_gap_all_is_dropped_if_nobody_waits() {
    let mut sequencer = Sequencer::default();
    let numbers = [(0, 0), (0, 1), (0, 1), (0, 4), (0, 3), (0, 5)];
    let (heard, steps) = hear(&mut sequencer, false, numbers);
    assert_eq!(heard, [Applied, Applied, Ignored, Lost, Ignored, Applied]);
    assert_eq!(steps, [Some(0), Some(1), None, Some(4), Some(5)]);
    assert!(sequencer.is_partial && !sequencer.is_behind());
    assert_eq!((sequencer.known(), sequencer.at.unwrap().next), (None, 6));
}

#[test]
fn what_overtakes_waits_for_what_is_late() {
    let mut sequencer = Sequencer::default();
    let numbers = [(0, 0), (0, 3), (0, 2), (0, 3), (0, 1), (0, 4)];
    let (heard, steps) = hear(&mut sequencer, true, numbers);
    assert_eq!(heard, [Applied, Held, Held, Ignored, Applied, Applied]);
    assert_eq!(steps, (0..5).map(Some).collect::<Vec<_>>());
    assert!(!sequencer.is_behind() && !sequencer.is_partial);
}

#[test]
fn a_listener_that_joins_late_has_missed_events() {
    let mut sequencer = Sequencer::default();
    assert_eq!(hear(&mut sequencer, true, [(3, 7), (3, 8)]), (vec![Held, Held], vec![]));
    assert_eq!((sequencer.is_behind(), sequencer.missing()), (true, 7));
    // It knows that nothing was there when the epoch began.
    assert_eq!(sequencer.known(), Some(KvCursor { epoch: 3, next: 0 }));
}

#[test]
fn a_larger_epoch_replaces_a_smaller_one_for_good_with_what_is_held_of_it() {
    let mut sequencer = Sequencer::default();
    let numbers = [(1, 0), (1, 2), (5, 0), (1, 1), (5, 1)];
    let (heard, steps) = hear(&mut sequencer, true, numbers);
    assert_eq!(heard, [Applied, Held, Applied, Ignored, Applied]);
    assert_eq!(steps, [Some(0), None, Some(0), Some(1)]);
    assert!(!sequencer.is_behind());
}

#[test]
fn a_restart_whose_first_event_is_lost_drops_the_old_life_and_waits() {
    let mut sequencer = Sequencer::default();
    let (heard, steps) = hear(&mut sequencer, true, [(1, 0), (2, 1), (2, 0)]);
    assert_eq!(heard, [Applied, Held, Applied]);
    assert_eq!(steps, [Some(0), None, Some(0), Some(1)]);
}

#[test]
fn a_snapshot_takes_the_place_of_what_is_missing_and_what_was_held_behind_it_follows() {
    let mut sequencer = Sequencer::default();
    hear(&mut sequencer, true, [(1, 0), (1, 3), (1, 5), (1, 6)]);
    let mut steps = Vec::new();
    sequencer.splice(&snapshot(1, 5, [1, 4]), write(&mut steps));
    assert_eq!(steps, [None, Some(1), Some(4), Some(5), Some(6)]);
    assert_eq!(sequencer.known(), Some(KvCursor { epoch: 1, next: 7 }));
    assert!(!sequencer.is_behind());
}

#[test]
fn a_snapshot_from_before_the_gap_leaves_it_and_an_older_one_says_nothing() {
    let mut sequencer = Sequencer::default();
    hear(&mut sequencer, true, [(1, 0), (1, 1), (1, 2), (1, 6)]);
    let mut steps = Vec::new();
    for old in [snapshot(1, 2, [9]), snapshot(1, 3, [9]), snapshot(0, 9, [9])] {
        sequencer.splice(&old, write(&mut steps));
    }
    assert!(steps.is_empty());
    sequencer.splice(&snapshot(1, 4, [9]), write(&mut steps));
    assert_eq!(steps, [None, Some(9)]);
    assert!(sequencer.is_behind(), "4 and 5 are missing still");
    sequencer.splice(&snapshot(2, 1, [8]), write(&mut steps));
    assert_eq!((steps[2..].to_vec(), sequencer.is_behind()), (vec![None, Some(8)], false));
}

#[test]
fn what_was_dropped_comes_back_with_a_snapshot_of_that_very_moment() {
    let mut sequencer = Sequencer::default();
    hear(&mut sequencer, false, [(1, 4)]);
    let mut steps = Vec::new();
    sequencer.splice(&snapshot(1, 5, [1, 4]), write(&mut steps));
    assert_eq!(steps, [None, Some(1), Some(4)]);
    assert!(!sequencer.is_partial);
    sequencer.splice(&snapshot(1, 5, [1, 4]), |_| unreachable!("it is known"));
}

#[test]
fn an_older_snapshot_of_who_goes_on_talking_is_followed_by_what_was_said_since_it_was_asked_for() {
    let mut sequencer = Sequencer::default();
    hear(&mut sequencer, false, [(1, 4)]);
    sequencer.asked();
    let (heard, steps) = hear(&mut sequencer, true, [(1, 5), (1, 6), (1, 8), (1, 7), (1, 7)]);
    assert_eq!(heard, [Applied, Applied, Held, Applied, Ignored]);
    assert_eq!(steps, (5..9).map(Some).collect::<Vec<_>>(), "what it says is known at once");
    let mut steps = Vec::new();
    sequencer.splice(&snapshot(1, 4, [9]), |_| unreachable!("4 was not kept"));
    sequencer.splice(&snapshot(0, 7, [9]), |_| unreachable!("of a life before"));
    sequencer.splice(&snapshot(1, 6, [9, 5]), write(&mut steps));
    assert_eq!(steps, [None, Some(9), Some(5), Some(6), Some(7), Some(8)]);
    assert_eq!(sequencer.known(), Some(KvCursor { epoch: 1, next: 9 }));
    assert_eq!((sequencer.held.len(), sequencer.held_weight), (0, 0));
    sequencer.asked();
    hear(&mut sequencer, true, [(1, 9)]);
    assert!(sequencer.held.is_empty(), "of who is known nothing is kept");
}

#[test]
fn what_is_kept_is_bounded_and_goes_with_the_question() {
    let mut sequencer = Sequencer::default();
    hear(&mut sequencer, false, [(1, 4)]);
    sequencer.asked();
    let last = 2 * HELD_MAX as u64;
    hear(&mut sequencer, true, (5..last).map(|seq| (1, seq)));
    assert!(sequencer.held_weight <= HELD_MAX && sequencer.held.len() > HELD_MAX / 3);
    sequencer.splice(&snapshot(1, 5, []), |_| unreachable!("some of what followed is gone"));
    sequencer.answered();
    assert_eq!((sequencer.held.len(), sequencer.held_weight), (0, 0));
    assert!(sequencer.is_partial && !sequencer.is_behind());
}

#[test]
fn who_waits_no_longer_goes_on_behind_the_last_gap() {
    let mut sequencer = Sequencer::default();
    hear(&mut sequencer, true, [(1, 0), (1, 3), (1, 5), (1, 6)]);
    let mut steps = Vec::new();
    sequencer.give_up(write(&mut steps));
    assert_eq!(steps, [None, Some(5), Some(6)]);
    assert!(sequencer.is_partial && !sequencer.is_behind());
    assert_eq!(hear(&mut sequencer, true, [(1, 7)]), (vec![Applied], vec![Some(7)]));
    sequencer.give_up(|_| unreachable!("nothing is missing"));
}

#[test]
fn what_is_held_is_bounded_and_what_is_too_much_is_missing() {
    let mut sequencer = Sequencer::default();
    hear(&mut sequencer, true, (1..2 * HELD_MAX as u64).map(|seq| (1, seq)));
    assert!(sequencer.held_weight <= HELD_MAX && sequencer.held.len() > HELD_MAX / 3);
    // The middle is lost: a snapshot from there does not reach what is held.
    sequencer.splice(&snapshot(1, 9, []), |_| {});
    assert!(sequencer.is_behind());
    let first = *sequencer.held.keys().next().unwrap();
    sequencer.splice(&snapshot(1, first, []), |_| {});
    assert!(!sequencer.is_behind() && sequencer.held_weight == 0);
    // One that is too large alone is missing itself.
    let blocks = vec![block(1); HELD_MAX];
    let change = KvChange::BlockStored { parent: None, blocks, tier: Tier::Host };
    let large = KvEvent { change, ..event(2, 1) };
    assert_eq!(sequencer.hear(&large, true, |_| {}), Held);
    assert!(sequencer.held.is_empty() && sequencer.is_behind());
    sequencer.give_up(|_| {});
    assert_eq!(sequencer.at, Some(KvCursor { epoch: 2, next: 2 }));
}

#[test]
fn the_largest_numbers_do_no_harm() {
    for waits in [false, true] {
        let mut sequencer = Sequencer::default();
        let last = (u64::MAX, u64::MAX);
        let (heard, _) = hear(&mut sequencer, waits, [last, (u64::MAX, u64::MAX - 1), last]);
        assert_eq!(heard, [Ignored, if waits { Held } else { Lost }, Ignored]);
        sequencer.give_up(|_| {});
        sequencer.splice(&snapshot(u64::MAX, u64::MAX, []), |_| {});
    }
}
