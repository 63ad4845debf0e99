/// What events and snapshots of workers have come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventStats {
    /// Workers that are known, also those that have not said anything.
    pub workers: usize,
    /// Those of them that events are missing of: their old coverage serves on.
    pub suspect: usize,
    /// Different blocks in the index.
    pub blocks: usize,
    /// Blocks that the index has dropped to stay within its bytes, so far.
    pub blocks_dropped_total: u64,
    /// Events that arrived.
    pub events_total: u64,
    /// Those of them that were repeats, of an earlier life of their publisher, or of a worker that is
    /// not listed and was forgotten.
    pub ignored_total: u64,
    /// Times events of a worker were missing.
    pub gaps_total: u64,
    /// Snapshots of workers that have arrived, those that said that nothing has changed included.
    pub snapshots_total: u64,
    /// Requests for snapshots that failed.
    pub snapshots_failed_total: u64,
    /// Times what was known of a worker was dropped because its events were lost.
    pub dropped_total: u64,
}
