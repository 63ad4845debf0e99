//! Who holds which prefix: exact, fed by events; read by any number of threads while one writes.
//!
//! ```text
//! sequence hash ─► Table ─► place: a block of a segment, a run of one sequence's blocks
//! segment       ─► hashes, one after the other ─► the next segment
//!               ─► who holds them all (a bit per worker and tier), who holds some (a mask each)
//! ```
//!
//! A sequence hash stands for a block *and* its whole prefix. So a query compares the last hash of a
//! segment with its own and knows of all before it, and one table leads from any hash to its place,
//! whoever holds it. What a further worker stores that is known already is a bit. Where two sequences
//! part, the segment is split, so that whoever shares a prefix holds all of its segments.
//!
//! | file | what is there |
//! |---|---|
//! | `table` | sequence hash → place |
//! | `segment`, `view` | runs of blocks, and all that readers see |
//! | `coverage`, `lanes` | who holds which blocks of a segment |
//! | `find`, `path`, `matches` | the way of a query, who holds all up to there, and the answer |
//! | `store`, `remove`, `replace`, `spare` | what the writer does |
//! | `sync`, `bits` | what threads share, and arithmetic |
//! | `budget` | how much memory it may take |
//! | `snapshot`, `words` | the index as bytes |
//! | `approximate` | for engines that do not say what they hold |
//! | `provisional` | what was just sent where |

mod approximate;
mod bits;
mod budget;
mod coverage;
mod find;
mod lanes;
mod matches;
mod path;
mod provisional;
mod remove;
mod replace;
mod segment;
mod snapshot;
mod spare;
mod store;
mod sync;
mod table;
mod view;
mod words;

use std::fmt;
use std::sync::Arc;

use dynamo_core::protocol::{SequenceHash, Tier};

pub use approximate::{ApproximateIndex, ApproximateReader};
pub use budget::IndexConfig;
use coverage::Partials;
pub use find::PrefixReader;
use lanes::LaneBook;
pub use matches::Matches;
use path::tier_index;
pub use provisional::ProvisionalCoverage;
use remove::Sweep;
pub use snapshot::SnapshotError;
use spare::Spare;
use sync::{Ordering, Shared};
use view::{Lane, Lanes, View};
pub(crate) use words::{Words, seal};

use crate::workers::Slot;

/// Takes in what workers store and remove; whoever asks does so through a
/// [`reader`](Self::reader).
pub struct PrefixIndex {
    shared: Arc<Shared<View>>,
    /// The same, without asking for it.
    view: Arc<View>,
    lanes: LaneBook,
    sweep: Sweep,
    spare: Spare,
    partials: Partials,
    /// Blocks that anyone holds.
    blocks: usize,
    /// Blocks that the table leads to: those, and holes in the middle of segments.
    places: usize,
    config: IndexConfig,
    /// What [`bytes`](Self::bytes) says, which is asked at every store.
    bytes: usize,
    /// Blocks dropped for want of room.
    dropped_total: u64,
    stores: u64,
}

impl Default for PrefixIndex {
    fn default() -> Self {
        Self::new(IndexConfig::default())
    }
}

impl PrefixIndex {
    /// Creates an index of which nobody holds anything.
    pub fn new(config: IndexConfig) -> Self {
        let view = Arc::new(View::default());
        if config.bytes_max.is_some() {
            view.clock.store(1, Ordering::Relaxed);
        }
        Self {
            config,
            bytes: view.bytes(),
            dropped_total: 0,
            stores: 0,
            shared: Arc::new(Shared::new(Arc::clone(&view))),
            view,
            lanes: LaneBook::default(),
            sweep: Sweep::default(),
            spare: Spare::default(),
            partials: Partials::default(),
            blocks: 0,
            places: 0,
        }
    }

    /// Records that `worker` holds a run of blocks in `tier`: the first follows `parent`, each other its
    /// predecessor.
    pub fn store(
        &mut self,
        worker: Slot,
        tier: Tier,
        parent: Option<SequenceHash>,
        hashes: &[SequenceHash],
    ) {
        if hashes.is_empty() {
            return;
        }
        let number = match self.lanes.get(worker) {
            Some(lane) => lane,
            None => match self.take_lane(worker) {
                Some(lane) => lane,
                None => return self.count_dropped(hashes.len()),
            },
        };
        self.store_run(Lane { number, tier: tier_index(tier) }, parent, hashes);
        self.sweep_some();
    }

    /// Records that `worker` no longer holds the blocks in `tier`.
    pub fn remove(&mut self, worker: Slot, tier: Tier, hashes: &[SequenceHash]) {
        let Some(number) = self.lanes.get(worker) else { return };
        self.remove_run(Lane { number, tier: tier_index(tier) }, hashes);
        self.sweep_some();
        self.tidy();
    }

    /// Records that `worker` holds nothing, or is gone.
    ///
    /// No query that starts from here on finds it, however much it held; its memory is given back
    /// little by little, with what is stored and removed later, or by [`sweep`](Self::sweep).
    pub fn clear(&mut self, worker: Slot) {
        self.clear_all([worker]);
    }

    /// Does the same of many at once.
    pub(crate) fn clear_all(&mut self, workers: impl IntoIterator<Item = Slot>) {
        let holds = |worker: &Slot| self.held(*worker) > 0;
        let workers: Vec<_> = workers.into_iter().filter(holds).collect();
        if !workers.is_empty() {
            self.change_lanes(|book, lanes| {
                workers.into_iter().for_each(|worker| book.end(worker, lanes));
            });
        }
        self.sweep_some();
        self.tidy();
    }

    /// Returns what finds prefixes in this index.
    pub fn reader(&self) -> PrefixReader {
        PrefixReader(Arc::clone(&self.shared))
    }

    /// Returns the number of different blocks that anyone holds.
    ///
    /// What only workers held that were cleared counts until it is swept up.
    pub fn len(&self) -> usize {
        self.blocks
    }

    /// Tells whether nobody holds anything.
    pub fn is_empty(&self) -> bool {
        self.lanes.held_total() == 0
    }

    /// Returns how many blocks `worker` holds.
    pub fn held(&self, worker: Slot) -> usize {
        self.lanes.get(worker).map_or(0, |lane| self.lanes.held(lane))
    }

    /// Returns how many bytes of memory readers and writer look at, with what is there twice while they
    /// are replaced but for the table.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Changes what there is to read, all at once.
    fn change<T>(&mut self, change: impl FnOnce(&mut View) -> T) -> T {
        let mut view = View::clone(&self.view);
        let result = change(&mut view);
        self.view = Arc::new(view);
        self.bytes = self.view.bytes() + self.lanes.bytes();
        self.shared.store(Arc::clone(&self.view));
        result
    }

    /// Gives a worker a lane, if there is room for one.
    fn take_lane(&mut self, worker: Slot) -> Option<u32> {
        let bytes = self.lanes.bytes_for(1, worker.index() + 1);
        self.has_space(bytes).then(|| self.change_lanes(|book, lanes| book.take(worker, lanes)))
    }

    fn change_lanes<T>(&mut self, change: impl FnOnce(&mut LaneBook, &mut Lanes) -> T) -> T {
        let mut lanes = Lanes::clone(&self.view.lanes);
        let result = change(&mut self.lanes, &mut lanes);
        lanes.of_slot = self.lanes.of_slot();
        self.change(|view| view.lanes = Arc::new(lanes));
        result
    }
}

impl fmt::Debug for PrefixIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrefixIndex")
            .field("blocks", &self.blocks)
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
