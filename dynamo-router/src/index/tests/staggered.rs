//! Workers that hold more and less of one prompt: of one segment, too.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use dynamo_core::protocol::Tier;
use proptest::prelude::*;

use super::{BLOCKS, TIERS, path, worker};
use crate::index::reference::Reference;
use crate::index::{Matches, PrefixIndex};

const WORKERS: usize = 100;

/// Returns how many segments are in use.
fn segments(index: &PrefixIndex) -> usize {
    index.spare.used.iter().sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn whoever_holds_less_of_a_segment_is_found_there(
        changes in prop::collection::vec(
            (0..WORKERS, prop_oneof![9 => Just(0), 1 => 0..4_usize], 0..=BLOCKS, 0..4),
            1..120,
        ),
    ) {
        let (mut index, mut reference) = (PrefixIndex::default(), Reference::default());
        let hashes = path(0);
        for (id, tier, depth, kind) in changes {
            let (id, tier) = (worker(id), TIERS[tier]);
            let held = reference.depth(id, &hashes);
            if kind == 0 {
                // As engines evict, from the end on.
                index.remove(id, tier, &hashes[depth..]);
                reference.remove(id, tier, &hashes[depth..]);
            } else if held < depth {
                // As engines store, behind what they have.
                let parent = held.checked_sub(1).map(|parent| hashes[parent]);
                index.store(id, tier, parent, &hashes[held..depth]);
                reference.store(id, tier, &hashes[held..depth]);
            }
        }
        index.check();
        let mut matches = Matches::default();
        // A query may end within a segment, or part from it there.
        for end in [BLOCKS, BLOCKS - 1, 100, 37, 5] {
            let other = path(1);
            let query: Vec<_> = hashes[..end].iter().chain(&other[end..]).copied().collect();
            index.reader().find(&query, &mut matches);
            for id in (0..WORKERS).map(worker) {
                prop_assert_eq!(matches.tiers(id), reference.tiers(id, &query), "{:?}", id);
                prop_assert_eq!(index.held(id), reference.held(id));
            }
        }
    }
}

#[test]
fn workers_that_hold_a_block_more_each_share_segments() {
    let mut index = PrefixIndex::default();
    let hashes = path(0);
    for id in 0..128 {
        index.store(worker(id), Tier::Device, None, &hashes[..=id]);
    }
    assert_eq!(segments(&index), 2, "of 64 blocks each");
    let mut matches = Matches::default();
    index.reader().find(&hashes, &mut matches);
    assert!((0..128).all(|id| matches.depth(worker(id)) == id + 1));
    index.check();
    (0..128).for_each(|id| index.remove(worker(id), Tier::Device, &hashes));
    assert!(index.is_empty() && index.view.bytes() < 4096);
}

#[test]
fn a_segment_that_many_hold_ends_where_they_do() {
    let mut index = PrefixIndex::default();
    let hashes = path(0);
    (0..40).for_each(|id| index.store(worker(id), Tier::Device, None, &hashes[..20]));
    index.store(worker(50), Tier::Device, None, &hashes[..30]);
    assert_eq!(segments(&index), 2);
    let mut matches = Matches::default();
    index.reader().find(&hashes, &mut matches);
    assert!((0..40).all(|id| matches.depth(worker(id)) == 20));
    assert_eq!(matches.depth(worker(50)), 30);
}

#[test]
fn who_holds_some_of_a_segment_that_grows_is_never_seen_with_more() {
    const HELD: usize = 40;
    let mut index = PrefixIndex::default();
    let hashes = path(0);
    index.store(worker(0), Tier::Device, None, &hashes[..HELD]);
    let (is_over, reader) = (AtomicBool::new(false), index.reader());
    thread::scope(|scope| {
        let read = || {
            let (mut matches, mut rounds) = (Matches::default(), 0);
            while !is_over.load(Ordering::Relaxed) || rounds == 0 {
                reader.find(&hashes, &mut matches);
                assert!(matches.depth(worker(0)) <= HELD);
                assert!(matches.depth(worker(1)) <= 60);
                rounds += 1;
            }
        };
        let readers = [(); 2].map(|()| scope.spawn(read));
        for round in 0..2_000 {
            let to = HELD + 1 + round % 20;
            index.store(worker(1), Tier::Device, None, &hashes[..to]);
            index.remove(worker(1), Tier::Device, &hashes[round % HELD..to]);
        }
        is_over.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
    index.check();
}
