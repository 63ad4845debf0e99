use std::sync::atomic::{AtomicU64, Ordering};

/// What an owner lends, and what leases have come to so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OwnerStats {
    /// Blocks that are lent, those that are still moving after their lease among them.
    pub lent_blocks: usize,
    /// Leases that have not ended.
    pub leases: usize,
    /// Clients that are told what is there.
    pub watchers: usize,
    /// Leases that clients have given back.
    pub released_total: u64,
    /// Leases that ended with blocks to be shared.
    pub committed_total: u64,
    /// Leases whose time was over.
    pub expired_total: u64,
    /// Leases that were refused: too much was lent.
    pub refused_total: u64,
    /// Blocks that clients have written and that were not what they had said.
    pub damaged_total: u64,
}

/// What is counted where it happens.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) released: AtomicU64,
    pub(super) committed: AtomicU64,
    pub(super) damaged: AtomicU64,
}

impl Counters {
    pub(super) fn add(counter: &AtomicU64, count: usize) {
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Adds what is counted here.
    pub(super) fn read(&self, stats: OwnerStats) -> OwnerStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        OwnerStats {
            released_total: read(&self.released),
            committed_total: read(&self.committed),
            damaged_total: read(&self.damaged),
            ..stats
        }
    }
}
