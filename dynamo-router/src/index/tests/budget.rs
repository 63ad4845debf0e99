//! How much memory the index takes, at rest and in between.

use dynamo_core::protocol::{SequenceHash, Tier};

use super::worker;
use crate::index::PrefixIndex;
use crate::index::segment::{CHUNK_BLOCKS, SEGMENT_BLOCKS};

/// Returns the hashes of a sequence that fills a segment.
fn sequence(number: u64) -> Vec<SequenceHash> {
    (1..=SEGMENT_BLOCKS as u64).map(|at| SequenceHash((number << 32 | at) * 77)).collect()
}

#[test]
fn a_chunk_of_which_the_last_segment_goes_is_given_back_once() {
    const SEGMENTS: u64 = (CHUNK_BLOCKS / SEGMENT_BLOCKS) as u64;
    let mut index = PrefixIndex::default();
    let sequences: Vec<_> = (0..4 * SEGMENTS).map(sequence).collect();
    for hashes in &sequences {
        index.store(worker(1), Tier::Device, None, hashes);
    }
    // Two segments are left in each chunk but the last: that one has the least, and stands behind.
    let is_left = |at: u64| at == 3 * SEGMENTS || at < 3 * SEGMENTS && at % SEGMENTS < 2;
    for (_, hashes) in (0..).zip(&sequences).filter(|(at, _)| !is_left(*at)) {
        index.remove(worker(1), Tier::Device, hashes);
    }
    assert_eq!(index.view.chunks.len(), 4);
    index.evict_chunk();
    assert_eq!((index.view.chunks.len(), index.len()), (3, 6 * SEGMENT_BLOCKS));
    index.check();
    // It may be taken again.
    for hashes in &sequences {
        index.store(worker(2), Tier::Device, None, hashes);
    }
    assert_eq!(index.held(worker(2)), sequences.len() * SEGMENT_BLOCKS);
    index.check();
}
