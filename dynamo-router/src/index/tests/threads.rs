//! Readers beside a writer: whatever they see was true at some time.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use dynamo_core::protocol::Tier;
use dynamo_core::random::Random;

use super::{BLOCKS, PATHS, path, worker};
use crate::index::{Matches, PrefixIndex, PrefixReader};

/// Each worker holds only blocks of its own path, the stable one always all of its own.
const STABLE: usize = 0;

fn read(reader: &PrefixReader, is_over: &AtomicBool, cleared: &AtomicUsize) -> usize {
    let paths: Vec<_> = (0..PATHS).map(path).collect();
    let shared =
        |a: usize, b: usize| paths[a].iter().zip(&paths[b]).take_while(|(a, b)| a == b).count();
    let (mut matches, mut rounds) = (Matches::default(), 0);
    while !is_over.load(Ordering::Relaxed) || rounds == 0 {
        for (query, hashes) in paths.iter().enumerate() {
            let was_cleared = cleared.load(Ordering::Acquire);
            reader.find(hashes, &mut matches);
            for (slot, depth) in matches.iter() {
                let own = slot.index() % PATHS;
                assert!(depth <= shared(own, query), "{slot:?} never held so much of path {query}");
                assert!(slot.index() == STABLE || slot.index() > was_cleared, "{slot:?} is gone");
            }
        }
        rounds += 1;
    }
    reader.find(&paths[STABLE], &mut matches);
    assert_eq!(matches.depth(worker(STABLE)), BLOCKS);
    rounds
}

fn write(mut index: PrefixIndex, cleared: &AtomicUsize) -> PrefixIndex {
    let mut random = Random::new(7);
    for id in 1..=GENERATIONS * PATHS {
        let hashes = path(id % PATHS);
        for _ in 0..4 {
            let [a, b] = [(); 2].map(|()| random.below(BLOCKS).unwrap());
            let parent = a.min(b).checked_sub(1).map(|at| hashes[at]);
            index.store(worker(id), Tier::Device, parent, &hashes[a.min(b)..a.max(b)]);
            index.store(worker(id), Tier::Device, None, &hashes[..a]);
            index.remove(worker(id), Tier::Device, &hashes[a.min(b)..a.max(b)]);
        }
        index.clear(worker(id));
        cleared.store(id, Ordering::Release);
    }
    index
}

/// Times that the workers are replaced.
const GENERATIONS: usize = 30;

#[test]
fn readers_see_nothing_that_was_never_true() {
    let mut index = PrefixIndex::default();
    index.store(worker(STABLE), Tier::Device, None, &path(STABLE));
    let (is_over, cleared) = (AtomicBool::new(false), AtomicUsize::new(0));
    let reader = index.reader();
    let index = thread::scope(|scope| {
        let readers = [(); 2].map(|()| scope.spawn(|| read(&reader, &is_over, &cleared)));
        let index = write(index, &cleared);
        is_over.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| assert!(reader.join().unwrap() > 0));
        index
    });
    assert_eq!(index.held(worker(STABLE)), BLOCKS);
    index.check();
}
