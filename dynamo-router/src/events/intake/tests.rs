use std::ops::Range;

use dynamo_core::protocol::{KvChange, KvCursor, Tier};
use dynamo_core::time::{Clock, SystemClock};
use proptest::prelude::*;
use proptest::test_runner::Config;

use super::state::LATE;
use super::*;
use crate::fixtures::block;
use crate::index::{IndexConfig, PrefixIndex};

mod world;

use world::{Faults, NO_FAULTS, WORKERS, World, id, members};

fn faults() -> impl Strategy<Value = Faults> {
    let rare_or_often = || prop_oneof![Just(0usize), Just(5), 0..60usize];
    (
        (rare_or_often(), 0..=100usize, rare_or_often()),
        (rare_or_often(), 0..4usize, prop_oneof![Just(0usize), 0..100usize]),
    )
        .prop_map(|((lost, told, repeated), (late, restarts, unanswered))| Faults {
            lost,
            told,
            repeated,
            late,
            restarts,
            unanswered,
        })
}

/// Longer than every wait: what is wrong is seen at the next audit, at the latest.
const QUIET: Duration = Duration::from_secs(120);

fn run(world: &mut World, steps: usize) {
    for _ in 0..steps {
        world.act();
        let pause = Duration::from_millis(world.random.below(20).unwrap() as u64);
        world.pass(pause);
    }
}

proptest! {
    #![proptest_config(Config { cases: 96, ..Config::default() })]

    #[test]
    fn whatever_is_lost_late_or_repeated_the_index_becomes_what_the_workers_hold(
        seed: u64, faults in faults(), at_once in 1..4usize,
    ) {
        let config = ResyncConfig::default().with_at_once(at_once);
        let mut world = World::new(seed, Some(config), faults);
        run(&mut world, 150);
        world.faults = NO_FAULTS;
        world.pass(QUIET);
        world.assert_converged();
    }

    #[test]
    fn without_snapshots_the_index_never_says_more_than_the_workers_hold(
        seed: u64, faults in faults(),
    ) {
        let mut world = World::new(seed, None, faults);
        run(&mut world, 150);
        world.pass(QUIET);
        prop_assert_eq!(world.intake.stats().snapshots_total, 0);
    }
}

proptest! {
    #![proptest_config(Config { cases: 10, ..Config::default() })]

    #[test]
    fn workers_that_never_stop_talking_are_known_whatever_was_dropped_of_them(
        seed: u64, faults in faults(),
    ) {
        let config = ResyncConfig::default().with_attempts(1);
        let config = config.with_audit_every(Duration::from_millis(500));
        let mut world = World::new(seed, Some(config), faults);
        run(&mut world, 100);
        world.faults = NO_FAULTS;
        run(&mut world, 300);
        let state = world.intake.lock();
        prop_assert!(state.publishers.values().all(|known| known.sequencer.known().is_some()));
    }
}

/// The events that were lost are not the last ones, and nobody answers.
#[test]
fn of_a_worker_that_does_not_answer_what_is_known_is_dropped_and_comes_back_when_it_does() {
    let faults = Faults { lost: 5, unanswered: 100, ..NO_FAULTS };
    let mut world = World::new(1, Some(ResyncConfig::default()), faults);
    run(&mut world, 200);
    world.pass(QUIET);
    let stats = world.intake.stats();
    assert!(stats.dropped_total > 0 && stats.snapshots_total == 0, "{stats:?}");
    assert!(stats.gaps_total > 0 && stats.suspect == 0, "{stats:?}");
    world.faults = NO_FAULTS;
    world.pass(QUIET);
    world.assert_converged();
}

#[test]
fn who_stores_on_while_its_snapshot_is_under_way_is_known_by_that_one() {
    let intake = Intake::default();
    let config = ResyncConfig::default().with_attempts(1);
    let (feed, audit) = (intake.open(config.clone()), config.audit_every * 2);
    let (now, mut members) = (SystemClock.now(), members());
    let store =
        |hash| KvChange::BlockStored { parent: None, blocks: vec![block(hash)], tier: Tier::Host };
    let mut say = |seqs: Range<u64>| {
        for seq in seqs {
            let event = KvEvent { worker: id(0), epoch: 1, seq, change: store(seq) };
            intake.apply(&event, Some(feed), now, |id| members.hear_of(id));
        }
    };
    say(5..6);
    let unanswered = intake.due(feed, now + LATE).0[0];
    intake.settle(unanswered, None, now);
    say(6..8);
    assert_eq!((intake.stats().dropped_total, intake.stats().blocks), (1, 3));
    let question = intake.due(feed, now + audit).0[0];
    say(8..20);
    let cursor = KvCursor { epoch: 1, next: 12 };
    let snapshot = Snapshot { cursor, stored: (0..12).map(store).collect() };
    say(20..30);
    intake.settle(question, Some(&snapshot), now);
    say(30..31);
    assert_eq!((intake.stats().snapshots_total, intake.stats().blocks), (1, 31));
    let known = intake.due(feed, now + 2 * audit).0[0].request.known;
    assert_eq!(known, Some(KvCursor { epoch: 1, next: 31 }));
}

#[test]
fn while_a_snapshot_is_under_way_the_old_coverage_serves_on() {
    let faults = Faults { unanswered: 100, ..NO_FAULTS };
    let mut world = World::new(3, Some(ResyncConfig::default()), faults);
    run(&mut world, 100);
    let before = world.intake.stats();
    assert!(before.blocks > 0 && before.suspect == 0, "{before:?}");
    world.faults.lost = 100;
    world.act();
    world.faults.lost = 0;
    // The same worker or others: the one that lost says more sooner or later.
    while world.intake.stats().suspect == 0 {
        world.act();
        world.pass(Duration::ZERO);
    }
    let stats = world.intake.stats();
    assert!(stats.blocks > 0 && stats.dropped_total == 0, "{stats:?}");
    world.faults = NO_FAULTS;
    world.pass(Duration::from_secs(1));
    let stats = world.intake.stats();
    assert_eq!((stats.suspect, stats.dropped_total), (0, 0), "{stats:?}");
    world.assert_converged();
}

#[test]
fn a_few_events_that_overtake_each_other_ask_for_nothing() {
    let mut world = World::new(5, Some(ResyncConfig::default()), NO_FAULTS);
    for _ in 0..50 {
        world.act();
        world.faults.late = 100;
        world.act();
        world.faults.late = 0;
        world.act();
        world.pass(Duration::ZERO);
        // What is late arrives within 60 ms, of which a gap has 20.
        world.pass(Duration::from_millis(100));
    }
    let stats = world.intake.stats();
    assert!(stats.gaps_total > 0 && stats.snapshots_total < stats.gaps_total, "{stats:?}");
    assert_eq!(stats.dropped_total, 0);
    world.assert_converged();
}

#[test]
fn blocks_that_there_is_no_room_for_are_counted() {
    let intake = Intake::default();
    intake.lock().index = PrefixIndex::new(IndexConfig::default().with_bytes_max(0));
    let (now, mut members) = (SystemClock.now(), members());
    let blocks = 1000;
    let stored = (0..300).inspect(|seq| {
        let blocks = (0..blocks).map(|at| block(seq << 32 | at)).collect();
        let change = KvChange::BlockStored { parent: None, blocks, tier: Tier::Host };
        let event = KvEvent { worker: id(0), epoch: 1, seq: *seq, change };
        intake.apply(&event, None, now, |id| members.hear_of(id));
    });
    let stored = stored.count() as u64 * blocks;
    let stats = intake.stats();
    assert!(stats.blocks_dropped_total > 0, "{stats:?}");
    assert_eq!(stats.blocks as u64 + stats.blocks_dropped_total, stored);
}

#[test]
fn no_more_workers_are_asked_at_once_than_the_config_says_and_all_are_in_the_end() {
    let intake = Intake::default();
    let feed = intake.open(ResyncConfig::default().with_at_once(2));
    let now = World::new(0, None, NO_FAULTS).now;
    let mut members = members();
    (0..5).for_each(|worker| intake.expect(id(worker), feed, now, |id| members.hear_of(id)));
    let mut asked = Vec::new();
    let (mut under_way, next) = intake.due(feed, now);
    assert_eq!((under_way.len(), next), (2, None));
    while let Some(question) = under_way.pop() {
        assert!(intake.due(feed, now).0.is_empty(), "as many as may be are under way");
        asked.push(question.request.worker);
        let cursor = KvCursor { epoch: 1, next: 3 };
        intake.settle(question, Some(&Snapshot { cursor, stored: Vec::new() }), now);
        under_way.extend(intake.due(feed, now).0);
    }
    asked.sort_unstable();
    assert_eq!(asked, (0..5).map(id).collect::<Vec<_>>());
}

#[test]
fn workers_that_do_not_answer_keep_no_other_one_waiting() {
    let intake = Intake::default();
    let (second, config) = (Duration::from_secs(1), ResyncConfig::default());
    let config = config.with_at_once(1).with_attempts(1).with_audit_every(second);
    let feed = intake.open(config);
    let mut now = World::new(0, None, NO_FAULTS).now;
    let mut members = members();
    (0..4).for_each(|worker| intake.expect(id(worker), feed, now, |id| members.hear_of(id)));
    for _ in 0..3 {
        let mut asked = Vec::new();
        for _ in 0..4 {
            let question = intake.due(feed, now).0[0];
            asked.push(question.request.worker);
            // Longer than it takes until those that were asked before are due again.
            now += 10 * second;
            intake.settle(question, None, now);
            now += 2 * second;
        }
        asked.sort_unstable();
        assert_eq!(asked, (0..4).map(id).collect::<Vec<_>>());
    }
}

#[test]
fn a_question_about_who_was_forgotten_ends_and_says_nothing_of_who_came_back() {
    let intake = Intake::default();
    let feed = intake.open(ResyncConfig::default());
    let now = World::new(0, None, NO_FAULTS).now;
    let mut members = members();
    intake.expect(id(0), feed, now, |id| members.hear_of(id));
    let question = intake.due(feed, now).0[0];
    intake.forget(id(0).instance);
    intake.expect(id(0), feed, now, |id| members.hear_of(id));
    let cursor = KvCursor { epoch: 9, next: 3 };
    intake.settle(question, Some(&Snapshot { cursor, stored: Vec::new() }), now);
    let again = intake.due(feed, now).0[0];
    assert_eq!(again.request.known, None, "the answer was of its former life");
}

#[test]
fn what_is_lost_while_a_worker_is_asked_is_asked_for_again() {
    let intake = Intake::default();
    let feed = intake.open(ResyncConfig::default());
    let now = World::new(0, None, NO_FAULTS).now;
    let mut members = members();
    intake.expect(id(0), feed, now, |id| members.hear_of(id));
    let question = intake.due(feed, now).0[0];
    intake.lost(feed, now);
    let snapshot = Snapshot { cursor: KvCursor { epoch: 1, next: 3 }, stored: Vec::new() };
    intake.settle(question, Some(&snapshot), now);
    let (questions, next) = intake.due(feed, now);
    assert!(questions.is_empty() && next <= Some(now + 2 * DOUBT), "{next:?}");
    let again = intake.due(feed, now + 2 * DOUBT).0[0];
    assert_eq!(again.request.known, Some(snapshot.cursor));
}

#[test]
fn a_feed_that_is_closed_leaves_no_worker_waiting() {
    let faults = Faults { lost: 30, unanswered: 100, ..NO_FAULTS };
    let mut world = World::new(7, Some(ResyncConfig::default()), faults);
    while world.intake.stats().suspect < WORKERS {
        world.act();
        world.pass(Duration::ZERO);
    }
    world.intake.close(FeedId(1));
    let stats = world.intake.stats();
    assert_eq!(stats.suspect, 0);
    assert!(stats.dropped_total >= WORKERS as u64);
}
