#[cfg(dynamo_loom)]
mod models;

use std::sync::Arc;
use std::thread;

use super::*;

/// Slots of a buffer, first slot first.
fn slots(count: usize, slot_bytes: usize) -> Vec<Slot> {
    HostBuffer::new(count * slot_bytes).into_slots(slot_bytes).collect()
}

#[test]
fn slots_are_disjoint_parts_of_the_buffer_and_the_rest_is_left() {
    let mut slots: Vec<_> = HostBuffer::new(50).into_slots(16).collect();
    assert_eq!(slots.iter().map(Slot::index).collect::<Vec<_>>(), [0, 1, 2]);
    for (slot, value) in slots.iter_mut().zip(1..) {
        slot.fill(value);
    }
    assert!(slots.iter().zip(1..).all(|(slot, value)| **slot == [value; 16]));
    assert!(HostBuffer::new(15).into_slots(16).is_empty());
}

#[test]
fn slots_of_no_bytes_have_owners_and_holders_as_all_have() {
    let home = Arc::new(());
    let mut slots: Vec<_> = SlotList::of_numbers(3, Arc::clone(&home)).collect();
    assert!(slots.iter_mut().all(|slot| slot.is_empty() && slot.as_mut().is_empty()));
    let first = slots.remove(0).share();
    let [last, kept] = slots.remove(0).share_behind(Some(first.clone()));
    let run = last.into_run(2);
    assert_eq!(
        (first.index(), run.index(0), run.index(1), run.index(2)),
        (0, Some(0), Some(1), None)
    );
    assert_eq!((&run[0], run.last().holders_count()), (&[][..], 2));
    let first = first.into_owned(None).unwrap_err();
    drop(run);
    let (owned, before) = kept.into_owned(None).unwrap();
    assert_eq!((owned.index(), first.into_owned(before).unwrap().0.index()), (1, 0));
    drop((owned, slots));
    assert_eq!(Arc::strong_count(&home), 1);
    assert!(SlotList::of_numbers(0, ()).is_empty());
}

#[test]
fn what_is_shared_is_read_by_all_and_taken_back_by_the_last() {
    let mut slots = slots(2, 32);
    let mut first = slots.swap_remove(0);
    first.fill(7);
    let shared = first.share();
    let other = shared.clone();
    assert_eq!((shared.holders_count(), &other[..]), (2, &[7; 32][..]));
    let shared = shared.into_owned(None).unwrap_err();
    let (mut first, before) = shared.into_owned(Some(other)).unwrap();
    assert!(before.is_none());
    first.fill(8);
    drop(slots);
    assert_eq!(first[31], 8, "the last slot keeps the memory");
    drop(first.share());
}

/// A chain of slots that hold the value of their place, each behind the one before.
fn chain(slots: Vec<Slot>) -> Vec<SharedSlot> {
    let mut chain: Vec<SharedSlot> = Vec::new();
    for (mut slot, value) in slots.into_iter().zip(0..) {
        slot.fill(value);
        let [shared, _] = slot.share_behind(chain.last().cloned());
        chain.push(shared);
    }
    chain
}

#[test]
fn a_run_keeps_every_slot_of_it_and_gives_out_holds_of_each() {
    let mut holds = chain(slots(5, 8));
    let run = holds[3].clone().into_run(3);
    assert_eq!((run.len(), run[0][0], run[2][7]), (3, 1, 3));
    assert!(run.get(3).is_none() && run.hold(3).is_none());
    // All others let go, but for the first, which wants it back, and cannot have it.
    let first = holds.swap_remove(0);
    drop(holds);
    let first = first.into_owned(None).unwrap_err();
    assert_eq!(first.holders_count(), 2, "by itself, and by the slot behind it");
    let second = run.hold(0).unwrap();
    drop(run);
    assert_eq!(second[0], 1, "held by itself now");
    let (mut second, before) = second.into_owned(None).unwrap();
    second.fill(9);
    assert_eq!(first.into_owned(before).unwrap().0[0], 0, "both holds are here");
}

#[test]
fn runs_are_joined_where_one_holds_the_other_and_nowhere_else() {
    let holds = chain(slots(6, 8));
    let run = |last: usize| holds[last].clone().into_run(2);
    let (mut run, next, behind) = (run(1), run(3), run(5));
    let behind = run.append(behind).unwrap_err();
    run.append(next).unwrap();
    run.append(behind).unwrap();
    assert!((0..6).all(|at| usize::from(run[at][0]) == at));
    let strange = chain(slots(1, 8)).remove(0).into_run(1);
    assert!(run.append(strange).is_err());
    drop(holds);
    assert_eq!((run.len(), run.last().holders_count()), (6, 1));
}

#[test]
#[should_panic(expected = "slots of one buffer")]
fn a_slot_holds_none_of_another_buffer() {
    let before = slots(1, 8).remove(0).share();
    let [_, _] = slots(1, 8).remove(0).share_behind(Some(before));
}

#[test]
fn a_chain_of_any_length_goes_with_its_last_hold() {
    const LENGTH: usize = if cfg!(miri) { 500 } else { 100_000 };
    let home = Arc::new(());
    let mut slots = HostBuffer::new(LENGTH).into_slots_of(1, Arc::clone(&home));
    let mut last = slots.pop().unwrap().share();
    for slot in slots {
        [_, last] = slot.share_behind(Some(last));
    }
    assert_eq!((last.clone().into_run(LENGTH + 1).len(), Arc::strong_count(&home)), (LENGTH, 2));
    drop(last);
    assert_eq!(Arc::strong_count(&home), 1, "the buffer went, and what its slots led to");
}

#[test]
fn lists_keep_slots_and_holds_until_they_are_taken_or_dropped() {
    let home = Arc::new(());
    let mut free = HostBuffer::new(40).into_slots_of(8, Arc::clone(&home));
    let mut holds = SharedSlots::default();
    let first = free.pop().unwrap();
    assert!(Arc::ptr_eq(first.home(), &home));
    holds.insert(3, first.share());
    let before = holds.get(3).unwrap().clone();
    let [second, _] = free.pop().unwrap().share_behind(Some(before));
    holds.insert(0, second);
    assert_eq!(holds.get(3).unwrap().holders_count(), 2);
    assert!(holds.get(1).is_none() && holds.get(9).is_none() && holds.take(1).is_none());
    free.push(holds.take(0).unwrap().into_owned(None).unwrap().0);
    assert_eq!((holds.get(3).unwrap().holders_count(), free.len()), (1, 4));
    let mut others = free.split_off(1);
    others.shrink();
    assert_eq!((free.len(), others.len()), (1, 3));
    drop((free, others));
    assert_eq!(Arc::strong_count(&home), 2, "one hold is left");
    drop(holds);
    assert_eq!(Arc::strong_count(&home), 1);
}

#[test]
fn whoever_takes_a_slot_back_writes_after_all_have_read() {
    const READERS: u8 = 3;
    let mut both = slots(2, 8);
    let mut slot = Some(both.pop().unwrap());
    let before = both.pop().unwrap().share();
    for round in (0..=255).cycle().take(if cfg!(miri) { 10 } else { 1000 }) {
        let mut owned = slot.take().unwrap();
        owned.fill(round);
        let [shared, _] = owned.share_behind(Some(before.clone()));
        let kept = thread::scope(|scope| {
            for _ in 0..READERS {
                let mine = shared.clone().into_run(2);
                scope.spawn(move || {
                    assert!(mine[1].iter().all(|&byte| byte == round));
                    drop(mine);
                });
            }
            let mut shared = shared;
            loop {
                match shared.into_owned(None) {
                    Ok((owned, _)) => break owned,
                    Err(held) => shared = held,
                }
                thread::yield_now();
            }
        });
        slot = Some(kept);
    }
    assert_eq!(before.holders_count(), 1);
}
