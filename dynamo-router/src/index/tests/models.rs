//! Every order in which one reads while another stores, removes and clears, with little room for
//! each: a table is soon full, a segment soon another's.

use dynamo_core::protocol::{SequenceHash, Tier};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use super::worker;
use crate::index::{IndexConfig, Matches, PrefixIndex, PrefixReader};

const GONE: usize = 0;
const YOUNG: usize = 1;
const STAYS: usize = 2;

/// Tries what one thread does and what another reads meanwhile: how much of `asked` each worker holds.
///
/// `prepare` is over before they begin.
fn model(
    prepare: impl Fn(&mut PrefixIndex) + Sync + Send + 'static,
    write: fn(&mut PrefixIndex, &AtomicBool),
    asked: &'static [u64],
    check: fn([usize; 3], bool),
) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.max_branches = BRANCHES_MAX;
    builder.check(move || {
        let mut index = PrefixIndex::new(IndexConfig::default());
        prepare(&mut index);
        let reader = index.reader();
        let is_published = Arc::new(AtomicBool::new(false));
        let writes = thread::spawn({
            let is_published = Arc::clone(&is_published);
            move || {
                write(&mut index, &is_published);
                index
            }
        });
        let was_published = is_published.load(Ordering::Acquire);
        check(depths(&reader, asked), was_published);
        let index = writes.join().unwrap();
        check(depths(&reader, asked), true);
        index.check();
    });
}

/// Preemptions of a thread by the other: what goes wrong does so with few.
const PREEMPTIONS: usize = 2;

/// Accesses of one execution.
const BRANCHES_MAX: usize = 50_000;

fn depths(reader: &PrefixReader, asked: &[u64]) -> [usize; 3] {
    let mut matches = Matches::default();
    reader.find(&hashes(asked), &mut matches);
    [GONE, YOUNG, STAYS].map(|id| matches.depth(worker(id)))
}

fn hashes(blocks: &[u64]) -> Vec<SequenceHash> {
    blocks.iter().map(|block| SequenceHash(*block)).collect()
}

fn store(index: &mut PrefixIndex, id: usize, parent: Option<u64>, blocks: &[u64]) {
    index.store(worker(id), Tier::Device, parent.map(SequenceHash), &hashes(blocks));
}

#[test]
fn nobody_holds_more_than_was_stored_while_a_sequence_grows_and_parts() {
    model(
        |index| store(index, STAYS, None, &[1, 2]),
        |index, _| {
            store(index, YOUNG, None, &[1]);
            // Parts the segment behind its first block, and fills the table.
            store(index, YOUNG, Some(1), &[8, 9, 10]);
        },
        &[1, 2, 3],
        |[gone, young, stays], _| {
            assert_eq!(gone, 0);
            assert!(young <= 1 && stays <= 2, "{young} and {stays} blocks");
        },
    );
}

#[test]
fn a_worker_whose_clearing_was_over_is_not_seen() {
    model(
        |index| {
            // This is swept first, and nothing else before the clearing is over.
            store(index, STAYS, None, &[20]);
            store(index, STAYS, None, &[1]);
            store(index, GONE, None, &[1, 2]);
        },
        |index, is_published| {
            index.clear(worker(GONE));
            is_published.store(true, Ordering::Release);
            store(index, GONE, None, &[7]);
        },
        &[1, 2],
        |[gone, young, stays], was_cleared| {
            assert!(gone <= if was_cleared { 0 } else { 2 }, "{gone} blocks");
            assert!(young == 0 && stays <= 1);
        },
    );
}

#[test]
fn nobody_is_taken_for_who_had_the_number_before() {
    model(
        |index| {
            store(index, STAYS, None, &[1, 2, 3]);
            store(index, GONE, None, &[1]);
        },
        |index, _| {
            index.clear(worker(GONE));
            // Whoever is next may have its number, if no reader can mean it by that.
            index.sweep();
            store(index, YOUNG, None, &[1, 2]);
        },
        &[1, 2, 3],
        |[gone, young, stays], is_over| {
            assert!(gone <= 1, "{gone} blocks of one that held one");
            assert!(young <= 2 && stays <= 3);
            assert!(!is_over || (gone, young, stays) == (0, 2, 3));
        },
    );
}

#[test]
fn a_segment_that_is_used_again_is_not_taken_for_what_it_was() {
    model(
        |index| {
            store(index, STAYS, None, &[1]);
            store(index, GONE, Some(1), &[2, 3]);
        },
        |index, _| {
            index.remove(worker(GONE), Tier::Device, &hashes(&[2, 3]));
            store(index, YOUNG, Some(1), &[8, 9]);
        },
        &[2, 3],
        |[gone, young, stays], is_over| {
            assert!(gone <= if is_over { 0 } else { 2 }, "{gone} blocks");
            assert!((young, stays) == (0, 0), "{young} and {stays} blocks that they never stored");
        },
    );
}

#[test]
fn an_index_that_is_empty_again_gives_back_what_a_reader_still_looks_at() {
    model(
        |index| store(index, GONE, None, &[1, 2]),
        |index, is_published| {
            index.clear(worker(GONE));
            is_published.store(true, Ordering::Release);
            store(index, YOUNG, None, &[1]);
        },
        &[1, 2],
        |[gone, young, stays], was_cleared| {
            assert!(gone <= if was_cleared { 0 } else { 2 }, "{gone} blocks");
            assert!(young <= 1 && stays == 0);
        },
    );
}
