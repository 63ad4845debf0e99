//! The way of a query: from segment to segment.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use dynamo_core::protocol::SequenceHash;

use super::matches::Matches;
use super::path::Stretch;
use super::segment::Segment;
use super::sync::Shared;
use super::table::{NONE, Place};
use super::view::View;

/// Finds prefixes in an index, from any thread; cheap to clone.
#[derive(Debug, Clone)]
pub struct PrefixReader(pub(super) Arc<Shared<View>>);

impl PrefixReader {
    /// Finds each worker's longest prefix of `hashes`, the sequence hashes of a prompt.
    ///
    /// It takes no lock and waits for nobody. What is stored or removed meanwhile may be seen or not;
    /// a worker whose clearing was over before is not seen.
    pub fn find(&self, hashes: &[SequenceHash], matches: &mut Matches) {
        find(&self.0.load(), hashes, matches);
    }
}

pub(super) fn find(view: &View, hashes: &[SequenceHash], matches: &mut Matches) {
    matches.begin(&view.lanes);
    let mut way = Way { next: NONE, is_behind: false, fetched: 0, now: view.clock.load(Relaxed) };
    let mut depth = 0;
    while depth < hashes.len() && matches.path.is_anyone() {
        let count = way.go_on(view, hashes, depth, matches);
        if count == 0 {
            break;
        }
        depth += count;
    }
    matches.end(depth);
}

/// Where a query goes on.
struct Way {
    /// Where the sequence goes on, if it does so as it did for another; `NONE` if it did for nobody.
    next: Place,
    /// Whether that is right behind, as it mostly is.
    is_behind: bool,
    /// Segments in a row that are on their way into the cache.
    fetched: usize,
    /// The index's own time, if it asks what is used.
    now: u32,
}

impl Way {
    /// Goes over one segment from number `depth` of `hashes` on; returns how many stand in it.
    fn go_on(
        &mut self,
        view: &View,
        hashes: &[SequenceHash],
        depth: usize,
        matches: &mut Matches,
    ) -> usize {
        let SequenceHash(hash) = hashes[depth];
        let mut count = 0;
        if self.is_behind {
            count = self.step(view, hashes, (self.next, depth), matches);
        } else if self.next != NONE && view.is_at(self.next, hash) {
            self.fetched = 0;
            count = self.step(view, hashes, (self.next, depth), matches);
        }
        for attempt in 0..MOVES_MAX {
            if count > 0 {
                break;
            }
            // Hardly ever another block looks like this one: that shows where it is looked at.
            let is_it = |place| attempt == 0 || view.is_at(place, hash);
            let Some(place) = view.table.find(hash, is_it) else { break };
            self.fetched = 0;
            count = self.step(view, hashes, (place, depth), matches);
        }
        count
    }

    #[inline]
    fn step(
        &mut self,
        view: &View,
        hashes: &[SequenceHash],
        (place, depth): (Place, usize),
        matches: &mut Matches,
    ) -> usize {
        let Some((segment, offset)) = view.segment(place) else { return 0 };
        let hashes = &hashes[depth..];
        if self.fetched == 0 {
            self.fetched = segment.fetch_row(hashes.len());
        }
        self.fetched -= 1;
        let count = pass(view, &segment, (offset, depth), hashes, matches);
        if count > 0 {
            segment.use_at(self.now);
        }
        // The place right behind is known without waiting for memory: the next step may begin before.
        let (next, behind) = (segment.head().next.load(Relaxed), segment.end());
        self.is_behind = next == behind;
        self.next = if self.is_behind { behind } else { next };
        count
    }
}

/// Goes over one segment; returns how many of `hashes` stand in it from `offset` on.
#[inline]
fn pass(
    view: &View,
    segment: &Segment<'_>,
    (offset, depth): (usize, usize),
    hashes: &[SequenceHash],
    matches: &mut Matches,
) -> usize {
    let read = segment.read(|| {
        let count = segment.matching(offset, hashes);
        (count, count == 0 || matches.path.read(view, segment))
    });
    let (count, all_go_on) = read.unwrap_or((0, true));
    if !all_go_on {
        matches.pass(Stretch { offset, count, depth });
    }
    count
}

/// A block that is moved between its being looked up and looked at is looked up again.
const MOVES_MAX: usize = 4;
