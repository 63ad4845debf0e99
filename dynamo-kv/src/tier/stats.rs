use std::time::Duration;

/// What is in a tier, and what happened since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TierStats {
    /// Blocks that can be found, as far as the tier knows.
    pub blocks: usize,
    /// Blocks that were loaded.
    pub hits_total: u64,
    /// Blocks that were asked for and were not there, or not whole, or could not be read.
    pub misses_total: u64,
    /// Blocks that were written.
    pub stored_total: u64,
    /// Blocks that could not be stored.
    pub failed_total: u64,
    /// Blocks that made room for others.
    pub evicted_total: u64,
    /// Bytes of blocks that were loaded.
    pub read_bytes_total: u64,
    /// Bytes of blocks that were written.
    pub written_bytes_total: u64,
    /// Time that loading took, summed over the blocks that were loaded.
    pub load_time_total: Duration,
    /// Time that storing took, summed over the blocks that were written.
    pub store_time_total: Duration,
}
