use std::sync::{Arc, Mutex};

use dynamo_core::protocol::{LocalHash, SequenceHash};
use dynamo_core::random::Random;

use super::*;

fn key(number: u8) -> BlockKey {
    BlockKey {
        identity: BlockIdentity([number; 32]),
        parent: None,
        sequence: SequenceHash(u64::from(number)),
        parent_sequence: None,
        local: LocalHash(0),
        position: 0,
        chain: 0,
    }
}

fn record(number: u8, generation: u64) -> Record {
    Record { key: key(number), generation, digest: [number; 32] }
}

fn index(blocks: u32) -> (Index, Arc<Mutex<Vec<TierChange>>>) {
    let changes = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&changes);
    let sink = move |change| seen.lock().unwrap().push(change);
    let mut index = Index::new(blocks, 1);
    assert!(index.watch(Box::new(sink)).is_empty());
    (index, changes)
}

/// Begins one store, which must get a slot.
fn start(index: &mut Index, number: u8) -> Start {
    match index.begin(&[key(number).identity]).remove(0) {
        Begun::Slot(start) => start,
        _ => panic!("no slot"),
    }
}

fn store(index: &mut Index, number: u8) -> u32 {
    let Start { slot, generation, .. } = start(index, number);
    assert!(index.commit(slot, record(number, generation)));
    index.release(slot);
    slot
}

#[test]
fn the_block_that_was_used_longest_ago_makes_room_and_none_that_is_held() {
    let (mut index, changes) = index(3);
    for number in 0..3 {
        assert_eq!(store(&mut index, number), u32::from(number));
    }
    // 0 is read, 1 is stored again: 2 is the oldest, then 0 once it is released.
    let (held, _) = index.read(&key(0).identity).unwrap();
    assert!(matches!(index.begin(&[key(1).identity])[..], [Begun::Present]));
    assert_eq!(store(&mut index, 3), 2);
    assert_eq!(store(&mut index, 4), 1);
    index.release(held);
    assert_eq!(store(&mut index, 5), 2);
    assert!(index.contains(&key(0).identity) && index.stats().evicted_total == 3);
    let stored = |number| TierChange::Stored(key(number));
    let removed = |number| TierChange::Removed(key(number));
    let expected = [removed(2), stored(3), removed(1), stored(4), removed(3), stored(5)];
    assert_eq!(changes.lock().unwrap()[3..], expected);
}

#[test]
fn slots_of_one_batch_lie_in_its_order_and_what_has_none_is_busy() {
    let (mut index, _) = index(3);
    let held: Vec<_> = (0..3).map(|number| start(&mut index, number)).collect();
    for slot in [2, 0, 1] {
        index.abandon(&key(slot).identity, held[usize::from(slot)].generation);
        index.release(u32::from(slot));
    }
    // They were freed in the order 2, 0, 1.
    let identities: Vec<_> = [5, 6, 5, 7, 8].map(|number| key(number).identity).into();
    let begun = index.begin(&identities);
    let slots: Vec<_> = begun
        .iter()
        .map(|begun| match begun {
            Begun::Slot(start) => Ok(start.slot),
            Begun::Writing(_) => Err("writing"),
            Begun::Busy => Err("busy"),
            Begun::Present => Err("present"),
        })
        .collect();
    assert_eq!(slots, [Ok(0), Ok(1), Err("writing"), Ok(2), Err("busy")]);
    assert!(matches!(index.begin(&identities[4..])[..], [Begun::Busy]), "it is not being written");
}

#[test]
fn a_store_that_was_removed_or_cleared_meanwhile_is_not_committed() {
    let (mut index, _) = index(4);
    let (removed, cleared) = (start(&mut index, 1), start(&mut index, 2));
    assert_eq!(index.remove(&key(1).identity), None);
    assert!(!index.commit(removed.slot, record(1, removed.generation)));
    // Another store of the same block is not taken for the first, nor ended by it.
    let again = start(&mut index, 1);
    assert!(!index.commit(removed.slot, record(1, removed.generation)));
    index.abandon(&key(1).identity, removed.generation);
    assert!(index.commit(again.slot, record(1, again.generation)));
    index.clear(2);
    assert!(!index.commit(cleared.slot, record(2, cleared.generation)));
    [removed.slot, cleared.slot, again.slot].into_iter().for_each(|slot| index.release(slot));
    let stats = index.stats();
    assert_eq!((stats.blocks, stats.free, stats.held), (0, 4, 0));
    assert_eq!(start(&mut index, 3).era, 2);
}

#[test]
fn a_recovered_block_is_the_later_of_two_and_blocks_line_up_by_generation() {
    let (mut index, _) = index(4);
    index.recover(3, record(1, 10));
    index.recover(0, record(2, 30));
    index.recover(1, record(1, 20));
    let mut recovery = Recovery::default();
    index.recovered(&mut recovery);
    assert_eq!((recovery.blocks, recovery.repeated), (2, 1));
    let mut keys = index.keys();
    keys.sort_unstable_by_key(|(generation, _)| *generation);
    assert_eq!(keys, [(20, key(1)), (30, key(2))]);
    assert_eq!(index.slot_of(&key(1).identity), Some(1));
    assert_eq!(start(&mut index, 9).generation, 31);
    let free = store(&mut index, 4);
    assert!([2, 3].contains(&free));
    assert_eq!(store(&mut index, 5), 1, "the oldest");
}

/// Held slots of the model, by what they do.
#[derive(Default)]
struct Model {
    writing: Vec<(u8, Start)>,
    reading: Vec<(u32, Record)>,
}

#[test]
fn whatever_is_done_each_slot_is_in_one_state_and_none_is_given_twice() {
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let (mut index, changes) = index(5);
        let mut model = Model::default();
        for _ in 0..500 {
            step(&mut index, &mut model, &mut random);
            check(&index, &model, &changes);
        }
    }
}

fn step(index: &mut Index, model: &mut Model, random: &mut Random) {
    let number = u8::try_from(random.below(9).unwrap()).unwrap();
    let identity = key(number).identity;
    match random.below(12).unwrap() {
        0..4 => {
            if let Begun::Slot(start) = index.begin(&[identity]).remove(0) {
                model.writing.push((number, start));
            }
        }
        4..6 => {
            let Some(at) = random.below(model.writing.len()) else { return };
            let (number, start) = model.writing.swap_remove(at);
            index.commit(start.slot, record(number, start.generation));
            index.abandon(&key(number).identity, start.generation);
            index.release(start.slot);
        }
        6 => {
            let Some(at) = random.below(model.writing.len()) else { return };
            let (number, start) = model.writing.swap_remove(at);
            index.abandon(&key(number).identity, start.generation);
            index.release(start.slot);
        }
        7 | 8 => model.reading.extend(index.read(&identity)),
        9 => {
            let Some(at) = random.below(model.reading.len()) else { return };
            let (slot, record) = model.reading.swap_remove(at);
            if random.below(3) == Some(0) {
                index.forget(slot, record.generation);
            }
            index.release(slot);
        }
        10 => {
            if let Some(slot) = index.remove(&identity) {
                assert!(!index.contains(&identity));
                index.release(slot);
            }
        }
        _ if random.below(20) == Some(0) => index.clear(index.era + 1),
        _ => {}
    }
}

fn check(index: &Index, model: &Model, changes: &Mutex<Vec<TierChange>>) {
    let lined_up: Vec<_> = index.line.iter().collect();
    for (slot, state) in (0u32..).zip(&index.slots) {
        let is_free = index.free.contains(&slot);
        let is_lined_up = lined_up.contains(&slot);
        assert_eq!(is_free, state.holds == 0 && state.record.is_none());
        assert_eq!(is_lined_up, state.holds == 0 && state.record.is_some());
        let writers = model.writing.iter().filter(|(_, start)| start.slot == slot).count();
        let readers = model.reading.iter().filter(|(held, _)| *held == slot).count();
        assert!(writers == 0 || (writers == 1 && readers == 0), "one writes, or many read");
        assert_eq!(state.holds as usize, writers + readers);
        if let Some(record) = state.record {
            assert_eq!(index.slot_of(&record.key.identity), Some(slot));
        }
    }
    let stats = index.stats();
    assert_eq!(stats.blocks + stats.free + stats.held, stats.capacity);
    assert_eq!(
        lined_up.len() + index.free.len(),
        index.slots.iter().filter(|s| s.holds == 0).count()
    );
    // Who only listens knows what can be found.
    let mut heard = Vec::new();
    for change in changes.lock().unwrap().iter() {
        match change {
            TierChange::Stored(key) => heard.push(key.identity),
            TierChange::Removed(key) => heard.retain(|identity| *identity != key.identity),
            TierChange::Cleared => heard.clear(),
        }
    }
    assert!(heard.len() == stats.blocks && heard.iter().all(|identity| index.contains(identity)));
}
