//! The part of a pool that a quota counts: shards of its own, and how many blocks they may take.

use std::sync::{Arc, PoisonError};

use super::shard::{Locked, Shard};
use super::sync::{AtomicUsize, Mutex, MutexGuard, Ordering};
use crate::manager::PoolStats;

/// The blocks of one quota, or those of none.
pub(super) struct Partition {
    pub(super) shards: Box<[Shard]>,
    /// `None` for that of the manager itself.
    pub(super) quota: Option<Quota>,
}

pub(super) struct Quota {
    /// Differs from that of every other quota of the manager that is or was.
    pub(super) number: u32,
    pub(super) blocks: usize,
    /// Blocks of all states. It is raised before a slot is taken, and lowered when one is out of the
    /// quota's hands: never too low, and never above `blocks`.
    taken: AtomicUsize,
}

/// The partitions of quotas that are in use.
#[derive(Default)]
pub(super) struct Quotas {
    /// As many as are in the list; whoever sees none does not look there.
    count: AtomicUsize,
    list: Mutex<List>,
}

#[derive(Default)]
pub(super) struct List {
    /// In the order of their numbers.
    pub(super) partitions: Arc<Vec<Arc<Partition>>>,
    last_number: u32,
    /// What happened in those that are no more.
    pub(super) gone: PoolStats,
}

/// A partition, and others.
#[derive(Clone, Copy)]
pub(super) struct Among<'a> {
    pub(super) first: &'a Partition,
    pub(super) others: &'a [Arc<Partition>],
}

impl Partition {
    /// Counts blocks that are about to be taken, as many of so many as the quota leaves room for.
    pub(super) fn count_up(&self, blocks: usize) -> usize {
        let Some(Quota { taken, blocks: most, .. }) = &self.quota else { return blocks };
        if blocks == 0 {
            return 0;
        }
        let room = |taken: usize| blocks.min(most - taken);
        let raised = |taken: usize| Some(taken + room(taken));
        // Only a number: slots are handed over under the locks of shards.
        taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, raised).map_or(0, room)
    }

    /// Counts blocks that the quota has no more.
    pub(super) fn count_down(&self, blocks: usize) {
        if let Some(quota) = &self.quota {
            quota.taken.fetch_sub(blocks, Ordering::Relaxed);
        }
    }

    /// Returns how many blocks may be evicted, as it was a moment ago.
    pub(super) fn cached(&self) -> usize {
        self.shards.iter().map(|shard| shard.counts.cached.load(Ordering::Relaxed)).sum()
    }

    /// Returns how many slots nothing is in, as it was a moment ago.
    pub(super) fn free(&self) -> usize {
        self.shards.iter().map(|shard| shard.counts.free.load(Ordering::Relaxed)).sum()
    }
}

impl Quota {
    pub(super) fn new(number: u32, blocks: usize) -> Self {
        Self { number, blocks, taken: AtomicUsize::new(0) }
    }

    /// Returns how many blocks it has, in whatever state.
    pub(super) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Quotas {
    /// Adds a partition with the next number.
    pub(super) fn add(
        &self,
        partition: impl FnOnce(u32) -> Partition,
    ) -> dynamo_core::Result<Arc<Partition>> {
        let mut list = self.lock();
        let number = list.last_number.checked_add(1).filter(|_| list.partitions.len() < QUOTAS_MAX);
        let number = number.ok_or_else(|| {
            let message = format!("{QUOTAS_MAX} quotas of one block pool, the limit");
            dynamo_core::Error::new(dynamo_core::ErrorKind::Overloaded, message)
        })?;
        let partition = Arc::new(partition(number));
        list.last_number = number;
        Arc::make_mut(&mut list.partitions).push(Arc::clone(&partition));
        self.count.store(list.partitions.len(), Ordering::Relaxed);
        Ok(partition)
    }

    /// Removes a partition that has no blocks; what happened in it is kept in mind.
    pub(super) fn remove(&self, partition: &Arc<Partition>) {
        let mut list = self.lock();
        for shard in &partition.shards {
            shard.lock().add_totals(&mut list.gone);
        }
        Arc::make_mut(&mut list.partitions).retain(|other| !Arc::ptr_eq(other, partition));
        self.count.store(list.partitions.len(), Ordering::Relaxed);
    }

    /// Counts down for the quota of a number, if it is there still.
    pub(super) fn count_down(&self, number: u32, blocks: usize) {
        let partitions = self.partitions();
        let number_of = |partition: &Arc<Partition>| partition.quota.as_ref().map(|its| its.number);
        if let Ok(at) = partitions.binary_search_by_key(&Some(number), number_of) {
            partitions[at].count_down(blocks);
        }
    }

    /// Returns those that there are.
    pub(super) fn partitions(&self) -> Arc<Vec<Arc<Partition>>> {
        Arc::clone(&self.lock().partitions)
    }

    /// Tells whether there is none.
    ///
    /// Whoever is told so has no block of any: one that was added since was not seen yet.
    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// Keeps the list as it is; taken before the locks of shards.
    pub(super) fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> Among<'a> {
    pub(super) fn one(partition: &'a Partition) -> Self {
        Self { first: partition, others: &[] }
    }

    pub(super) fn partitions(self) -> impl Iterator<Item = &'a Partition> {
        std::iter::once(self.first).chain(self.others.iter().map(|other| &**other))
    }

    pub(super) fn shards(self) -> impl Iterator<Item = (&'a Partition, &'a Shard)> {
        self.partitions().flat_map(|of| of.shards.iter().map(move |shard| (of, shard)))
    }

    /// Locks the shard whose next victim goes first, and says up to which rank its victims do.
    ///
    /// A shard that is busy is passed over if there is another: whoever is in there takes what goes
    /// first from it, or is about to use it.
    pub(super) fn oldest(self) -> Option<(&'a Partition, Locked<'a>, u64)> {
        let mut busy: Vec<usize> = Vec::new();
        loop {
            let ranked = self.shards().enumerate().map(|(at, (of, shard))| {
                let rank = shard.rank();
                (rank, at, of, shard)
            });
            let (mut oldest, mut limit) = (None::<(u64, usize, _, _)>, u64::MAX);
            for next in ranked.filter(|next| next.0 != u64::MAX && !busy.contains(&next.1)) {
                let later = match oldest {
                    Some(first) if first.0 <= next.0 => next.0,
                    passed => {
                        oldest = Some(next);
                        passed.map_or(u64::MAX, |passed| passed.0)
                    }
                };
                limit = limit.min(later);
            }
            let Some((_, at, of, shard)) = oldest else {
                // Nobody else has any: now it is worth the wait.
                let (of, shard) = self.shards().nth(*busy.first()?)?;
                return Some((of, shard.lock(), u64::MAX));
            };
            if let Some(locked) = shard.try_lock() {
                return Some((of, locked, limit));
            }
            busy.push(at);
        }
    }
}

/// As many are looked at to find a victim.
const QUOTAS_MAX: usize = 1024;
