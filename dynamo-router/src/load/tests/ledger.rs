//! What is booked, corrected and released, whoever does it at once.

use std::sync::Arc;
use std::thread;

use dynamo_core::protocol::{InstanceId, LoadReport, WorkerId};
use dynamo_core::random::Random;
use proptest::prelude::*;

use crate::load::leases::LeaseId;
use crate::load::{Chunk, Claim, Load, Row, Seen};
use crate::workers::Change;

fn claim(prefill_tokens: u32, blocks: u32) -> Claim {
    Claim { prefill_tokens, blocks }
}

fn book(row: &Row, claim: Claim, now: u64) -> LeaseId {
    assert!(row.reserve_anyway(claim));
    row.open(claim, now)
}

fn load(row: &Row) -> Load {
    row.load(row.booked(), 0, 0)
}

/// A lease as its owner knows it.
#[derive(Debug, Clone, Copy)]
struct Owned {
    id: LeaseId,
    claim: Claim,
    is_decoding: bool,
    progress: u64,
    is_expired: bool,
}

fn sum(owned: &[Owned]) -> Load {
    let live = owned.iter().filter(|lease| !lease.is_expired);
    live.fold(Load::default(), |sum, lease| Load {
        requests: sum.requests + 1,
        decoding: sum.decoding + usize::from(lease.is_decoding),
        prefill_tokens: sum.prefill_tokens
            + if lease.is_decoding { 0 } else { lease.claim.prefill_tokens as usize },
        blocks: sum.blocks + lease.claim.blocks as usize,
        blocks_total: 0,
    })
}

proptest! {
    #[test]
    fn the_ledger_is_the_sum_of_the_bookings_that_live(
        ops in prop::collection::vec((0..100u32, 0..10u32, any::<u8>()), 0..80),
    ) {
        const LEASE: u64 = 10;
        let row = Row::default();
        let mut owned: Vec<Owned> = Vec::new();
        for (now, (tokens, blocks, choice)) in (1..).zip(ops) {
            let at = usize::from(choice / 5) % (owned.len() + 1);
            match (choice % 5, owned.get_mut(at)) {
                (0, Some(_)) => {
                    let lease = owned.swap_remove(at);
                    prop_assert_eq!(row.close(lease.id), !lease.is_expired);
                }
                (1 | 2, Some(lease)) => {
                    let is_decoding = choice % 5 == 1;
                    let change = match lease.is_expired {
                        true => Some(Change::More),
                        false => (is_decoding && !lease.is_decoding).then_some(Change::Less),
                    };
                    prop_assert_eq!(row.progress(lease.id, now, is_decoding), change);
                    lease.is_decoding |= is_decoding;
                    (lease.progress, lease.is_expired) = (now, false);
                }
                (3, _) => {
                    let is_late = |lease: &&mut Owned| {
                        !lease.is_expired && lease.progress + LEASE <= now
                    };
                    let late = owned.iter_mut().filter(is_late);
                    let count = late.map(|lease| lease.is_expired = true).count() as u64;
                    prop_assert_eq!(now.checked_sub(LEASE).map_or(0, |by| row.expire(by)), count);
                }
                _ => {
                    let claim = claim(tokens, blocks);
                    let (id, is_decoding) = (book(&row, claim, now), tokens == 0);
                    owned.push(Owned { id, claim, is_decoding, progress: now, is_expired: false });
                }
            }
            prop_assert_eq!(load(&row), sum(&owned));
        }
        owned.iter().for_each(|lease| _ = row.close(lease.id));
        prop_assert_eq!(load(&row), Load::default());
    }
}

#[test]
fn many_threads_leave_the_sum_of_what_they_still_hold() {
    let row = Arc::new(Row::default());
    let work = |seed| {
        let row = Arc::clone(&row);
        move || {
            let mut random = Random::new(seed);
            let mut owned = Vec::new();
            for now in 1..2_000 {
                let drawn = random.next_u64();
                let nth = random.below(owned.len());
                match (drawn % 4, nth) {
                    (0, Some(nth)) => _ = row.close(owned.swap_remove(nth)),
                    (1, Some(nth)) => _ = row.progress(owned[nth], now, drawn & 8 == 0),
                    (2, _) => _ = row.expire(now.saturating_sub(20)),
                    _ => owned.push(book(&row, claim((drawn >> 40) as u32 % 50, 1), now)),
                }
            }
            owned
        }
    };
    let threads: Vec<_> = (0..4).map(|seed| thread::spawn(work(seed))).collect();
    let owned: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    // What has expired is booked again, so that all of them count.
    owned.iter().for_each(|id| _ = row.progress(*id, 2_000, true));
    let count = owned.len();
    let all = Load { requests: count, decoding: count, blocks: count, ..Load::default() };
    assert_eq!(load(&row), all);
    owned.into_iter().for_each(|id| assert!(row.close(id)));
    assert_eq!(load(&row), Load::default());
}

#[test]
fn who_was_overtaken_has_to_look_again() {
    let row = Row::default();
    let seen = row.booked();
    let first = book(&row, claim(5, 1), 0);
    let now = row.reserve(seen, claim(5, 1)).unwrap_err();
    assert_eq!((now.requests(), now.prefill_tokens()), (1, 5));
    assert!(row.close(first));
    assert_eq!(row.reserve(seen, claim(5, 1)), Ok(()), "nothing differs from what was seen");
}

#[test]
fn what_cannot_be_counted_is_not_booked() {
    let row = Row::default();
    assert!(row.reserve_anyway(claim(u32::MAX, 1)));
    assert!(!row.reserve_anyway(claim(1, 1)));
    (1..0xffff).for_each(|_| assert!(row.reserve_anyway(claim(0, 1))));
    assert!(!row.reserve_anyway(claim(0, 1)));
    assert_eq!(load(&row).requests, 0xffff);
}

fn report(running: u32, waiting: u32, prefill_tokens: u64) -> LoadReport {
    LoadReport {
        worker: WorkerId::new(InstanceId(1)),
        requests_running: running,
        requests_waiting: waiting,
        prefill_tokens: Some(prefill_tokens),
        blocks_active: 50,
        blocks_total: 100,
    }
}

#[test]
fn a_report_corrects_what_is_booked_and_fades() {
    let row = Row::default();
    let first = book(&row, claim(1_000, 10), 0);
    // Two more are running there that someone else has sent, and half of ours is done.
    assert!(row.report(&report(3, 0, 500), 100));
    let at = |now| row.load(row.booked(), now, 1_000);
    let expected =
        Load { requests: 3, decoding: 3, prefill_tokens: 500, blocks: 50, blocks_total: 100 };
    assert_eq!(at(100), expected);
    let second = book(&row, claim(200, 5), 100);
    assert_eq!((at(100).prefill_tokens, at(100).requests, at(100).blocks), (700, 4, 55));
    assert_eq!(at(600).prefill_tokens, 950, "half of the correction is left");
    assert_eq!(at(1_100), load(&row), "too old: unknown");
    row.close(first);
    assert_eq!(at(100).prefill_tokens, 200, "what came since is all there");
    row.close(second);
}

#[test]
fn what_a_report_does_not_say_stays_as_it_is_booked() {
    let row = Row::default();
    let booked = book(&row, claim(1_000, 10), 0);
    let silent = LoadReport { prefill_tokens: None, ..report(3, 0, 0) };
    assert!(row.report(&silent, 100));
    let load = row.load(row.booked(), 100, 1_000);
    assert_eq!((load.prefill_tokens, load.requests, load.blocks), (1_000, 3, 50));
    assert!(row.close(booked));
}

#[test]
fn a_report_hides_nothing_that_is_booked_after_it() {
    let row = Row::default();
    let others = Load { requests: 2, prefill_tokens: 300, blocks: 4, ..Load::default() };
    row.set_others(others);
    let first = book(&row, claim(1_000, 10), 0);
    let idle = LoadReport { blocks_active: 0, ..report(0, 0, 0) };
    assert!(row.report(&idle, 100));
    let at = |now| Load { blocks_total: 0, ..row.load(row.booked(), now, 1_000) };
    assert_eq!(at(100), Load::default());
    // What it had too much is released, and does not count against what is booked then.
    row.progress(first, 100, true);
    assert_eq!(at(100), Load::default());
    row.close(first);
    row.set_others(Load::default());
    assert_eq!(at(100), Load::default());
    let second = book(&row, claim(200, 5), 100);
    let own = Load { requests: 1, prefill_tokens: 200, blocks: 5, ..Load::default() };
    assert_eq!(at(100), own);
    row.set_others(others);
    assert_eq!(at(100), own.plus(others));
    assert!(row.close(second));
}

#[test]
fn no_speed_is_learned_from_a_worker_that_prefills_for_others_as_well() {
    const SECOND: u64 = 1_000_000_000;
    let row = Row::default();
    let waiting = Load { requests: 2, decoding: 1, ..Load::default() };
    row.began(SECOND);
    row.set_others(waiting);
    assert!(row.first_token(1_000, 3 * SECOND).is_none());
    // They got theirs in between.
    row.set_others(Load::default());
    assert!(row.first_token(1_000, 5 * SECOND).is_none());
    assert_eq!(row.first_token(1_000, 6 * SECOND).map(|took| took.seconds), Some(1.0));
    row.set_others(Load { decoding: 2, ..waiting });
    assert!(row.first_token(1_000, 7 * SECOND).is_some(), "who decodes is not in the way");
}

#[test]
fn no_speed_is_learned_of_a_prefill_that_began_behind_one_who_has_left() {
    const SECOND: u64 = 1_000_000_000;
    let row = Row::default();
    let [left, next] = [(); 2].map(|()| book(&row, claim(1_000, 5), SECOND));
    row.began(SECOND);
    // It hung for a minute, and its client went away.
    row.close(left);
    assert!(row.first_token(1_000, 61 * SECOND).is_none());
    row.progress(next, 61 * SECOND, true);
    row.close(next);
    assert_eq!(row.first_token(1_000, 62 * SECOND).map(|took| took.seconds), Some(1.0));
}

#[test]
fn a_prompt_of_another_router_waits_whole_however_long_ago_this_ones_was() {
    const SECOND: u64 = 1_000_000_000;
    let chunk = Arc::new(Chunk::default());
    let row = Row::take(&chunk, 0);
    let busy_s = |now| {
        let mut seen = Seen::default();
        chunk.see(1, now, u64::MAX, &mut seen);
        assert_eq!(seen.requests[0], row.load(row.booked(), now, u64::MAX).requests as f32);
        seen.busy_s[0]
    };
    row.began(SECOND);
    let own = book(&row, claim(1_000, 5), SECOND);
    assert_eq!(busy_s(3 * SECOND), 2.0);
    row.progress(own, 3 * SECOND, true);
    row.close(own);
    row.set_others(Load { requests: 1, prefill_tokens: 50_000, ..Load::default() });
    assert_eq!(busy_s(20 * SECOND), 0.0);
}

#[test]
fn an_older_report_is_ignored() {
    let row = Row::default();
    assert!(row.report(&report(1, 1, 10), 200));
    assert!(!row.report(&report(9, 9, 90), 100));
    assert!(!row.report(&report(9, 9, 90), 200));
    assert_eq!(row.load(row.booked(), 200, 1_000).requests, 2);
    assert!(row.report(&report(9, 0, 90), 201));
    assert_eq!(row.load(row.booked(), 201, 1_000).requests, 9);
}
