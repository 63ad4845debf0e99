use std::collections::HashMap;
use std::sync::Arc;

use dynamo_core::protocol::{InstanceId, WorkerId};
use dynamo_core::{Error, Instance, Result};

use super::listed::Listed;
use super::{Seat, Slot};
use crate::load::{Chunk, ROWS};

/// The label by which an instance says how many data-parallel ranks it has (vLLM's word): a number
/// from 1 to 1024, 1 without the label. Each rank is a [`WorkerId`] of its own.
pub const RANKS_LABEL: &str = "data_parallel_size";

/// A set of positions in a fleet, 64 to a word. A worker's position is its slot's index.
pub(crate) type Positions = Vec<u64>;

/// The workers that can be chosen; never changed, only replaced.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    listed: Listed,
    /// By position; not all are of the fleet.
    seats: Vec<Option<Arc<Seat>>>,
    /// Who is, in the order of their ids, and where.
    workers: Vec<(WorkerId, usize)>,
    everyone: Positions,
    /// The rows of the load table, by position; none where nobody is of the fleet.
    chunks: Vec<Option<Arc<Chunk>>>,
    /// By label and value, who has it.
    labels: HashMap<String, HashMap<String, Positions>>,
}

impl Fleet {
    /// Seats the ranks of those `listed`, which are `ordered` by id; `seat` may have none left.
    ///
    /// Who says something of itself that cannot be is left out, and named in the error beside.
    pub(super) fn new(
        listed: &[Instance],
        ordered: &[&Instance],
        mut seat: impl FnMut(WorkerId) -> Option<Arc<Seat>>,
    ) -> (Self, Result<()>) {
        let mut fleet = Self { listed: Listed::of(listed), ..Self::default() };
        let mut outcome = Ok(());
        for instance in ordered {
            let added = ranks(instance).and_then(|ranks| fleet.add(instance, ranks, &mut seat));
            outcome = outcome.and(added);
        }
        (fleet, outcome)
    }

    fn add(
        &mut self,
        instance: &Instance,
        ranks: u32,
        seat: &mut impl FnMut(WorkerId) -> Option<Arc<Seat>>,
    ) -> Result<()> {
        for rank in 0..ranks {
            let worker = WorkerId { instance: instance.id, rank };
            let seat = seat(worker).ok_or_else(|| {
                Error::invalid(format!("worker {worker} is one more than {}", Slot::COUNT))
            })?;
            let position = seat.slot().index();
            if self.seats.len() <= position {
                self.seats.resize(position + 1, None);
                self.chunks.resize(position / ROWS + 1, None);
            }
            self.chunks[position / ROWS] = Some(Arc::clone(seat.load.chunk()));
            self.workers.push((worker, position));
            insert(&mut self.everyone, position);
            for (label, value) in &instance.labels {
                let values = self.labels.entry(label.clone()).or_default();
                insert(values.entry(value.clone()).or_default(), position);
            }
            self.seats[position] = Some(seat);
        }
        Ok(())
    }

    /// Tells whether it is that of `listed`, in whatever order.
    pub(crate) fn is_of(&self, listed: &[Instance]) -> bool {
        self.listed == Listed::of(listed)
    }

    /// Returns all seats, in the order of their workers' ids.
    pub(crate) fn seats(&self) -> impl Iterator<Item = &Arc<Seat>> {
        self.workers.iter().filter_map(|(_, position)| self.seat(*position))
    }

    /// Returns how many workers there are.
    pub(crate) fn count(&self) -> usize {
        self.workers.len()
    }

    /// Returns all positions at which a worker is.
    pub(crate) fn everyone(&self) -> &[u64] {
        &self.everyone
    }

    /// Returns the seat at `position`, if one of the fleet has it.
    pub(crate) fn seat(&self, position: usize) -> Option<&Arc<Seat>> {
        self.seats.get(position)?.as_ref()
    }

    /// Returns the rows of the load table: each is of the next [`ROWS`] positions, if any of the
    /// fleet has one of them.
    pub(crate) fn chunks(&self) -> &[Option<Arc<Chunk>>] {
        &self.chunks
    }

    /// Returns where `worker` is, if it is of the fleet.
    pub(crate) fn find(&self, worker: WorkerId) -> Option<usize> {
        let found = self.workers.binary_search_by_key(&worker, |(worker, _)| *worker);
        found.ok().map(|at| self.workers[at].1)
    }

    /// Returns where the ranks of `instance` are; nowhere if it is not of the fleet.
    pub(crate) fn ranks(&self, instance: InstanceId) -> impl Iterator<Item = usize> {
        let first = self.workers.partition_point(|(worker, _)| worker.instance < instance);
        let ranks = self.workers[first..].iter();
        ranks.take_while(move |(worker, _)| worker.instance == instance).map(|(_, at)| *at)
    }

    /// Returns who has `value` as its `label`; positions past the end are nobody's.
    pub(crate) fn labelled(&self, label: &str, value: &str) -> &[u64] {
        self.labels.get(label).and_then(|values| values.get(value)).map_or(&[], |set| set)
    }
}

/// Tells whether `position` is in `set`.
pub(crate) fn is_in(set: &[u64], position: usize) -> bool {
    set.get(position / 64).is_some_and(|word| (word >> (position % 64)) & 1 == 1)
}

fn insert(set: &mut Positions, position: usize) {
    if set.len() <= position / 64 {
        set.resize(position / 64 + 1, 0);
    }
    set[position / 64] |= 1 << (position % 64);
}

/// Returns how many ranks an instance says that it has.
pub(crate) fn ranks(instance: &Instance) -> Result<u32> {
    let Some(text) = instance.labels.get(RANKS_LABEL) else { return Ok(1) };
    let ranks = text.parse().ok().filter(|ranks| (1..=RANKS_MAX).contains(ranks));
    ranks.ok_or_else(|| {
        let message = format!("{instance}: label {RANKS_LABEL} is {text:?}, not 1 to {RANKS_MAX}");
        Error::invalid(message)
    })
}

/// Far more than a model is replicated inside one instance.
const RANKS_MAX: u32 = 1024;
