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
                1 => {
                    let begun = index.begin_survey();
                    index.survey(begun, &[1, 3, 5, 7, 9].map(|number| key(number).identity));
                }
                2..6 => index.lack(&block.identity, Instant::now()),
                6..9 => drop(index.forget(&block.identity)),
                9..12 => drop(index.touch(&block)),
                _ => index.learn(&block),
            }
            let before = index.there.len();
            let doomed = index.overflow();
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
        }
    }
}

#[test]
fn blocks_that_were_used_longest_ago_go_first_and_those_only_seen_before_them() {
    let mut index = index(3, OnFull::Delete);
    [1, 2, 3].iter().for_each(|number| index.learn(&key(*number)));
    assert!(index.touch(&key(1)));
    let begun = index.begin_survey();
    // Seen, oldest first; 3 is not, and was used before that.
    index.survey(begun, &[9, 8, 2, 1].map(|number| key(number).identity));
    assert_eq!(index.overflow(), [key(9).identity]);
    index.learn(&key(4));
    index.learn(&key(5));
    assert_eq!(index.overflow(), [key(8), key(2)].map(|key| key.identity));
}

#[test]
fn what_is_unknown_lies_between_what_is_there_and_what_is_not() {
    let (mut index, now) = (index(9, OnFull::Forget), Instant::now());
    let keys = [1, 2, 3, 4, 5, 6].map(key);
    assert_eq!(index.bounds(&keys, now), (0, 6));
    index.learn(&keys[0]);
    index.learn(&keys[1]);
    index.lack(&keys[4].identity, now);
    assert_eq!(index.bounds(&keys, now), (2, 4));
    assert_eq!(index.bounds(&keys, now + Duration::from_secs(2)), (2, 6));
    index.learn(&keys[4]);
    assert_eq!(index.bounds(&keys, now), (2, 6));
}
