use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use dynamo_core::protocol::{LocalHash, SequenceHash};
use dynamo_core::random::Random;

use super::*;
use crate::evict::Lru;
use crate::tier::disk::stats::Recovery;

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

/// The key of a block that follows another one.
fn behind(number: u8, parent: u8) -> BlockKey {
    BlockKey { parent: Some(key(parent).identity), ..key(number) }
}

fn index(blocks: u32) -> (Index, Arc<Mutex<Vec<TierChange>>>) {
    let changes = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&changes);
    let sink = move |change| seen.lock().unwrap().push(change);
    let mut index = Index::new(blocks, 1, Box::new(Lru::default()));
    assert!(index.watch(Box::new(sink)).is_empty());
    (index, changes)
}

/// Begins one store, which must get a slot.
fn start(index: &mut Index, number: u8) -> Start {
    start_of(index, key(number))
}

fn start_of(index: &mut Index, key: BlockKey) -> Start {
    match index.begin(&[key]).remove(0) {
        Begun::Slot(start) => start,
        _ => panic!("no slot"),
    }
}

fn store(index: &mut Index, number: u8) -> u32 {
    store_of(index, key(number))
}

fn store_of(index: &mut Index, key: BlockKey) -> u32 {
    let Start { slot, generation, .. } = start_of(index, key);
    assert!(index.commit(slot, Record { key, generation, digest: [0; 32] }));
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
    assert!(matches!(index.begin(&[key(1)])[..], [Begun::Present]));
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
    let keys = [5, 6, 5, 7, 8].map(key);
    let begun = index.begin(&keys);
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
    assert!(matches!(index.begin(&keys[4..])[..], [Begun::Busy]), "it is not being written");
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
fn a_recovered_block_is_the_later_of_two_and_blocks_go_by_generation() {
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

/// Stores a block that nothing follows; returns which block made room.
fn victim(index: &mut Index, changes: &Mutex<Vec<TierChange>>, number: u8) -> BlockKey {
    changes.lock().unwrap().clear();
    store(index, number);
    match changes.lock().unwrap()[..] {
        [TierChange::Removed(key), TierChange::Stored(_)] => key,
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn a_block_goes_before_what_it_needs_in_whatever_order_they_came_or_were_used() {
    let chain = [key(0), behind(1, 0), behind(2, 1), behind(3, 2)];
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
        let (mut index, changes) = index(4);
        for at in order {
            store_of(&mut index, chain[at]);
        }
        // The first one was used longest before the others, as a load does.
        for key in &chain {
            let (slot, _) = index.read(&key.identity).unwrap();
            index.release(slot);
        }
        let victims = [10, 11, 12, 13, 14].map(|number| victim(&mut index, &changes, number));
        assert_eq!(victims, [chain[3], chain[2], chain[1], chain[0], key(10)], "{order:?}");
    }
}

#[test]
fn after_a_restart_too_a_block_goes_before_what_it_needs() {
    let (mut index, changes) = index(3);
    let found = [(2, key(0)), (0, behind(1, 0)), (1, behind(2, 1))];
    for (generation, (slot, key)) in (1..).zip(found) {
        index.recover(slot, Record { key, generation, digest: [0; 32] });
    }
    index.recovered(&mut Recovery::default());
    let victims = [10, 11, 12].map(|number| victim(&mut index, &changes, number));
    assert_eq!(victims, [found[2].1, found[1].1, found[0].1]);
}

#[test]
fn nothing_makes_room_for_what_needs_it_nor_while_that_is_written() {
    let (mut index, changes) = index(2);
    store(&mut index, 0);
    store_of(&mut index, behind(1, 0));
    assert!(matches!(index.begin(&[behind(2, 1)])[..], [Begun::Busy]));
    assert_eq!(victim(&mut index, &changes, 9), behind(1, 0), "nothing follows it any more");
    let writing = start_of(&mut index, behind(1, 0));
    assert!(!index.contains(&key(9).identity), "it has made room");
    assert!(matches!(index.begin(&[key(8)])[..], [Begun::Busy]), "what is written needs the other");
    index.abandon(&key(1).identity, writing.generation);
    index.release(writing.slot);
    assert_eq!((store(&mut index, 7), index.stats().free), (writing.slot, 0));
    assert_eq!(victim(&mut index, &changes, 6), key(0));
    assert_eq!(index.places.len(), 2, "who is not there and not needed is forgotten");
}

#[test]
fn a_slot_takes_168_bytes() {
    assert_eq!(size_of::<Slot>(), 168);
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
        let offered = Arc::new(Mutex::new(BTreeSet::new()));
        index.policy = Box::new(Offered(Lru::default(), Arc::clone(&offered)));
        let mut model = Model::default();
        for _ in 0..500 {
            step(&mut index, &mut model, &mut random);
            check(&index, &model, &changes, &offered.lock().unwrap());
        }
    }
}

/// Three sequences of three blocks.
fn model_key(number: u8) -> BlockKey {
    if number.is_multiple_of(3) { key(number) } else { behind(number, number - 1) }
}

fn step(index: &mut Index, model: &mut Model, random: &mut Random) {
    let number = u8::try_from(random.below(9).unwrap()).unwrap();
    let identity = key(number).identity;
    match random.below(12).unwrap() {
        0..4 => {
            if let Begun::Slot(start) = index.begin(&[model_key(number)]).remove(0) {
                model.writing.push((number, start));
            }
        }
        4..6 => {
            let Some(at) = random.below(model.writing.len()) else { return };
            let (number, start) = model.writing.swap_remove(at);
            let record = Record { key: model_key(number), ..record(number, start.generation) };
            index.commit(start.slot, record);
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

/// A policy, and which slots it has.
#[derive(Debug)]
struct Offered(Lru, Arc<Mutex<BTreeSet<u32>>>);

impl Eviction for Offered {
    fn insert(&mut self, block: EntryId, usage: Use) {
        assert!(self.1.lock().unwrap().insert(block.0), "offered twice");
        self.0.insert(block, usage);
    }

    fn remove(&mut self, block: EntryId) {
        assert!(self.1.lock().unwrap().remove(&block.0), "taken back and not offered");
        self.0.remove(block);
    }

    fn victim(&mut self) -> Option<EntryId> {
        let victim = self.0.victim()?;
        assert!(self.1.lock().unwrap().remove(&victim.0));
        Some(victim)
    }

    fn rank(&self) -> Option<u64> {
        self.0.rank()
    }
}

fn check(index: &Index, model: &Model, changes: &Mutex<Vec<TierChange>>, offered: &BTreeSet<u32>) {
    let stored = index.keys().into_iter().map(|(_, key)| key);
    let written = index.writing.keys().map(|identity| model_key(identity.0[0]));
    let needed: Vec<_> = stored.chain(written).filter_map(|key| key.parent).collect();
    for (slot, state) in (0u32..).zip(&index.slots) {
        let is_free = index.free.contains(&slot);
        assert_eq!(is_free, state.holds == 0 && state.record.is_none());
        let is_needed = |record: Record| needed.contains(&record.key.identity);
        let is_evictable =
            state.holds == 0 && state.record.is_some_and(|record| !is_needed(record));
        assert_eq!(offered.contains(&slot), is_evictable, "it is a leaf that nobody holds");
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
    let known: BTreeSet<_> =
        index.keys().iter().map(|(_, key)| key.identity).chain(needed).collect();
    assert_eq!(index.places.len(), known.len(), "nothing else is kept");
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
