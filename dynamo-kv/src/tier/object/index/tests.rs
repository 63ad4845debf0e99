use std::sync::{Arc, Mutex};

use dynamo_core::protocol::{LocalHash, SequenceHash};
use dynamo_core::random::Random;

use super::*;

fn key(number: u8) -> BlockKey {
    BlockKey {
        identity: BlockIdentity([number; 32]),
        parent: None,
        sequence: SequenceHash(number.into()),
        parent_sequence: None,
        local: LocalHash(number.into()),
        position: number.into(),
        chain: 0,
    }
}

fn index(known_max: usize, on_full: OnFull) -> Index {
    Index::new(&ObjectConfig::new("", 1, 1).with_known_max(known_max, on_full))
}

fn learn(index: &mut Index, number: u8) {
    assert!(index.learn(&key(number), index.now()));
}

fn doomed(index: &mut Index) -> Vec<BlockIdentity> {
    std::iter::from_fn(|| index.overflow()).collect()
}

/// Whatever happens, a listener that folds the changes knows what the index does.
#[test]
fn what_was_said_adds_up_to_what_is_known() {
    let mut random = Random::new(7);
    for round in 0..200 {
        let on_full = if round % 2 == 0 { OnFull::Forget } else { OnFull::Delete };
        let mut index = index(1 + random.below(20).unwrap(), on_full);
        let said = Arc::new(Mutex::new(Vec::<BlockKey>::new()));
        let heard = Arc::clone(&said);
        index.watch(Box::new(move |change| {
            let mut said = heard.lock().unwrap();
            match change {
                TierChange::Stored(key) => {
                    assert!(!said.contains(&key), "said twice");
                    said.push(key);
                }
                TierChange::Removed(key) => {
                    let at = said.iter().position(|known| *known == key);
                    said.remove(at.expect("it was said to be there"));
                }
                TierChange::Cleared => said.clear(),
            }
        }));
        for _ in 0..200 {
            let block = key(u8::try_from(random.below(32).unwrap()).unwrap());
            match random.below(32).unwrap() {
                0 => index.clear(),
                1 => index.survey(index.now(), &[1, 3, 5, 7, 9].map(|number| key(number).identity)),
                2..5 => index.lack(&block.identity, Instant::now()),
                5..8 => index.delete(&block.identity),
                8 => index.spoil(&block.identity),
                9 => index.guess(&block.identity),
                10..13 => drop(index.touch(&block)),
                _ => assert!(index.learn(&block, index.now())),
            }
            let before = index.there.len();
            let doomed = doomed(&mut index);
            let left = before.min(index.known_max);
            assert_eq!(index.there.len(), left);
            let is_deleted = on_full == OnFull::Delete;
            assert_eq!(doomed.len(), if is_deleted { before - left } else { 0 });
            let mut said = said.lock().unwrap().clone();
            said.sort_by_key(|key| key.position);
            let mut known: Vec<_> = index.there.iter().copied().flatten().collect();
            known.sort_by_key(|key| key.position);
            assert_eq!(said, known);
            assert!(index.absent.len() <= index.known_max);
            assert!(index.guessed.len().max(index.damaged.len()) <= index.known_max);
        }
    }
}

#[test]
fn blocks_that_were_used_longest_ago_go_first_and_those_only_seen_before_them() {
    let mut index = index(3, OnFull::Delete);
    [1, 2, 3].into_iter().for_each(|number| learn(&mut index, number));
    assert!(index.touch(&key(1)));
    // Seen, oldest first; 3 is not, and was used before that.
    index.survey(index.now(), &[9, 8, 2, 1].map(|number| key(number).identity));
    assert_eq!(doomed(&mut index), [key(9).identity]);
    learn(&mut index, 4);
    learn(&mut index, 5);
    assert_eq!(doomed(&mut index), [key(8), key(2)].map(|key| key.identity));
}

#[test]
fn what_is_unknown_lies_between_what_is_there_and_what_is_not() {
    let (mut index, now) = (index(9, OnFull::Forget), Instant::now());
    let keys = [1, 2, 3, 4, 5, 6].map(key);
    assert_eq!(index.bounds(&keys, now), (0, 6));
    learn(&mut index, 1);
    index.guess(&keys[1].identity);
    index.lack(&keys[4].identity, now);
    assert_eq!(index.bounds(&keys, now), (2, 4));
    assert_eq!(index.bounds(&keys, now + Duration::from_secs(2)), (2, 6));
    learn(&mut index, 5);
    assert_eq!(index.bounds(&keys, now), (2, 6));
    assert!(!index.touch(&keys[1]), "a guess is no knowledge");
}

#[test]
fn what_was_seen_before_it_was_deleted_is_not_believed() {
    let mut index = index(9, OnFull::Forget);
    let before = index.now();
    index.delete(&key(1).identity);
    assert!(!index.learn(&key(1), before) && index.learn(&key(2), before));
    assert!(index.learn(&key(1), index.now()));
    let seen = index.now();
    index.delete(&key(1).identity);
    index.survey(seen, &[1, 3].map(|number| key(number).identity));
    assert!(!index.touch(&key(1)) && index.touch(&key(3)));
    index.clear();
    assert!(!index.learn(&key(2), seen) && index.learn(&key(2), index.now()));
}

#[test]
fn what_is_not_remembered_of_deletions_is_not_relied_on() {
    let mut index = index(9, OnFull::Forget);
    let identity = |number: usize| BlockIdentity(*blake3::hash(&number.to_le_bytes()).as_bytes());
    let before = index.now();
    index.delete(&key(1).identity);
    let behind = index.now();
    (1..DELETED_MAX).for_each(|number| index.delete(&identity(number)));
    assert!(index.learn(&key(2), before), "all are remembered");
    index.delete(&identity(0));
    assert_eq!(index.deleted.len(), DELETED_MAX);
    assert!(!index.learn(&key(1), before) && !index.learn(&key(3), before));
    assert!(index.learn(&key(1), behind));
}
