mod world;

use proptest::prelude::*;

use self::world::{Step, World, step};
use super::*;
use crate::time::{Clock, ManualClock};

const SECOND: Duration = Duration::from_secs(1);

/// A message whose last event before it is `quiet` old.
fn message(kind: Kind, (publisher, epoch, number): (u64, u64, u64), quiet: Duration) -> Bytes {
    Stamp { publisher, epoch, number, quiet, kind }.encode(&[])
}

fn event(publisher: u64, number: u64) -> Bytes {
    message(Kind::Event, (publisher, 0, number), SECOND)
}

fn sign(publisher: u64, number: u64) -> Bytes {
    message(Kind::SignOfLife, (publisher, 0, number), SECOND)
}

/// Returns how many were missed, and whether an event came.
fn told(judged: &Judged) -> (u64, bool) {
    match judged {
        Judged::Event(_) => (0, true),
        Judged::Nothing => (0, false),
        Judged::Gap { missed, event } => (*missed, event.is_some()),
    }
}

fn judge_all(listened: Duration, messages: &[Bytes]) -> Vec<(u64, bool)> {
    let mut heard = Heard::new(10);
    messages.iter().map(|message| told(&heard.judge(message.clone(), listened))).collect()
}

#[test]
fn a_stamp_has_these_bytes_and_reads_as_it_was_written() {
    let kind = Kind::SignOfLife;
    let stamp = Stamp { publisher: 2, epoch: 3, number: 4, quiet: Duration::from_micros(5), kind };
    let mut bytes = stamp.encode(b"x");
    let numbers = [2u64, 3, 4, 5].map(u64::to_le_bytes).concat();
    assert_eq!(bytes[..], [&[1, 1][..], &numbers, b"x"].concat());
    assert_eq!(bytes.len(), HEADER_BYTES + 1);
    assert_eq!(Stamp::decode(&mut bytes), Some(stamp));
    assert_eq!(bytes, &b"x"[..]);
}

#[test]
fn a_loss_shows_at_the_next_event_or_the_next_sign_of_life() {
    let messages = [event(1, 0), event(1, 1), event(1, 4), sign(1, 5), sign(1, 7), event(1, 7)];
    let all = judge_all(SECOND, &messages);
    assert_eq!(all, [(0, true), (0, true), (2, true), (0, false), (2, false), (0, true)]);
}

#[test]
fn repeats_are_ignored_and_publishers_are_apart() {
    let all = judge_all(SECOND, &[event(1, 0), event(2, 0), event(1, 0), sign(1, 0), event(2, 1)]);
    assert_eq!(all, [(0, true), (0, true), (0, false), (0, false), (0, true)]);
}

#[test]
fn whoever_listened_already_is_told_that_the_first_events_are_lost() {
    assert_eq!(judge_all(SECOND * 2, &[event(1, 3), event(1, 4)]), [(3, true), (0, true)]);
    assert_eq!(judge_all(SECOND * 2, &[sign(1, 3), event(1, 3)]), [(3, false), (0, true)]);
}

#[test]
fn whoever_listens_late_has_lost_nothing() {
    let late = SECOND / 2;
    assert_eq!(judge_all(late, &[event(1, 3), event(1, 4)]), [(0, true), (0, true)]);
    assert_eq!(judge_all(late, &[sign(1, 3), event(1, 3)]), [(0, false), (0, true)]);
}

#[test]
fn clocks_that_run_a_little_fast_make_no_silence() {
    let hour = Duration::from_secs(3600);
    let fast = message(Kind::Event, (1, 0, 3), hour + Duration::from_millis(3600));
    assert_eq!(judge_all(hour, &[fast]), [(3, true)]);
}

#[test]
fn a_publisher_that_comes_back_is_a_gap_for_whoever_heard_it_before() {
    let again = |number| message(Kind::Event, (1, 7, number), SECOND);
    let all = judge_all(SECOND / 2, &[event(1, 0), again(0), again(1)]);
    assert_eq!(all, [(0, true), (1, true), (0, true)]);
    let all = judge_all(SECOND / 2, &[event(1, 0), again(4), again(5)]);
    assert_eq!(all, [(0, true), (4, true), (0, true)]);
}

#[test]
fn a_publisher_that_was_forgotten_is_a_gap_when_it_is_heard_again() {
    let mut heard = Heard::new(4);
    let mut judge = |publisher, number| told(&heard.judge(event(publisher, number), SECOND / 2));
    for publisher in 0..4 {
        assert_eq!(judge(publisher, 0), (0, true));
    }
    assert_eq!(judge(1, 1), (0, true));
    assert_eq!(judge(4, 0), (0, true), "the fifth has never been heard");
    assert_eq!(judge(1, 2), (0, true), "it was heard lately");
    assert_eq!(judge(0, 2), (2, true), "it was forgotten");
    assert_eq!(judge(0, 3), (0, true));
    assert_eq!(judge(9, 0), (1, true), "it may have been");
}

#[test]
fn what_makes_no_sense_is_a_gap_of_one() {
    let good = event(1, 0);
    let last = event(1, u64::MAX);
    let other_version = [&[2], &good[1..]].concat().into();
    let other_kind = [&good[..1], &[7], &good[2..]].concat().into();
    let bad = [Bytes::new(), good.slice(..HEADER_BYTES - 1), last, other_version, other_kind];
    assert_eq!(judge_all(SECOND, &bad), [(1, false); 5]);
}

#[test]
fn signs_of_life_become_rare_and_never_end() {
    let clock = ManualClock::new();
    let mut numbering = Numbering::new(1, 2);
    assert_eq!(numbering.signs(clock.now()), []);
    numbering.event("t", clock.now());
    let mut due = Vec::new();
    for turn in 1..=3600u32 {
        clock.advance(SECOND);
        for (topic, stamp) in numbering.signs(clock.now()) {
            assert_eq!((&*topic, stamp.number, stamp.quiet), ("t", 1, SECOND * turn));
            due.push(turn);
        }
    }
    assert!(due[..60].iter().copied().eq(1..=60));
    assert!(due[60..].iter().copied().eq((2..=60).map(|minute| minute * 60)));
    assert_eq!(numbering.event("t", clock.now()).number, 1);
    assert_eq!(numbering.signs(clock.now()).len(), 1, "they are frequent again");
}

proptest! {
    #[test]
    fn whatever_is_lost_late_or_restarted_no_event_since_the_subscription_is_silent(
        before in prop::collection::vec(step(), 0..20),
        after in prop::collection::vec(step(), 1..80),
        remembers in 1..5usize,
    ) {
        let mut world = World::new(remembers);
        world.run(&before);
        world.since = Some(world.clock.now());
        world.run(&after);
        world.run(&[0, 1, 2].map(|publisher| Step::Signs { publisher, arrives: true }));
        world.deliver();
        for (life, events) in &world.events {
            prop_assert!(events.is_sorted_by(|a, b| a < b), "once and in order: {life:?}");
        }
        for life in world.known.keys() {
            prop_assert!(world.told(*life) >= world.owed(*life), "{life:?}");
        }
    }

    #[test]
    fn who_listened_before_a_publisher_began_is_told_exactly_what_it_lost(
        arrives in prop::collection::vec(any::<bool>(), 1..80),
    ) {
        let mut world = World::new(4);
        world.since = Some(world.clock.now());
        for arrives in arrives {
            world.run(&[Step::Wait(10), Step::Publish { publisher: 0, arrives }, Step::Deliver]);
        }
        world.run(&[Step::Signs { publisher: 0, arrives: true }, Step::Deliver]);
        prop_assert_eq!(world.told((0, 0)), world.published[&(0, 0)].len() as u64);
    }

    #[test]
    fn where_nothing_is_lost_or_late_nobody_is_told_a_gap(
        before in 0..20u16,
        after in 1..20u16,
    ) {
        let mut world = World::new(4);
        let publish = |publisher| Step::Publish { publisher, arrives: true };
        for _ in 0..before {
            world.run(&[publish(0), publish(1), Step::Wait(10)]);
        }
        world.since = Some(world.clock.now());
        for _ in 0..after {
            world.run(&[publish(0), publish(1), Step::Deliver, Step::Wait(10)]);
        }
        prop_assert!(world.missed.values().all(|missed| *missed == 0), "{:?}", world.missed);
        prop_assert!(world.events.values().all(|events| events.len() == usize::from(after)));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..40), listened in any::<u64>()) {
        let mut heard = Heard::new(2);
        for _ in 0..2 {
            heard.judge(bytes.clone().into(), Duration::from_micros(listened));
        }
        let versioned = [&[1, 0][..], &bytes].concat();
        heard.judge(versioned.into(), Duration::MAX);
    }
}
