use std::time::Duration;

/// What is in a disk tier, and what happened since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskStats {
    /// Slots in all: `blocks` + `free` + `held` + `lost`.
    pub capacity: usize,
    /// Blocks that can be found.
    pub blocks: usize,
    /// Slots that nothing is in.
    pub free: usize,
    /// Slots whose block cannot be found, or not yet: they are written, or a reader still has them.
    pub held: usize,
    /// Slots whose records could not be read when it was opened: they are not used.
    pub lost: usize,
    /// Blocks that were loaded.
    pub hits_total: u64,
    /// Blocks that were asked for and not there.
    pub absent_total: u64,
    /// Blocks whose bytes were not those that were stored.
    pub damaged_total: u64,
    /// Blocks whose bytes could not be read.
    pub unreadable_total: u64,
    /// Blocks that were written.
    pub stored_total: u64,
    /// Blocks that were to be stored and there already.
    pub present_total: u64,
    /// Blocks that could not be stored.
    pub failed_total: u64,
    /// Blocks that made room for others.
    pub evicted_total: u64,
    /// Bytes of blocks that were loaded.
    pub read_bytes_total: u64,
    /// Bytes of blocks that were stored.
    pub written_bytes_total: u64,
    /// Time that loading took, summed over the blocks that were loaded.
    pub load_time_total: Duration,
    /// Time that storing took, from when a block had its place, summed over those that were written.
    pub store_time_total: Duration,
}

/// What was found when a directory was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovery {
    /// The directory was made anew, by the config or since its file of blocks was missing or short, or
    /// its manifest missing or empty.
    pub is_new: bool,
    /// Blocks that can be found.
    pub blocks: usize,
    /// Records that are damaged, of another version, or of another slot.
    pub damaged: usize,
    /// Records that the device fails to read; their slots are not used.
    pub unreadable: usize,
    /// Records of another era or fingerprint.
    pub stale: usize,
    /// Records of blocks that a later record is about too.
    pub repeated: usize,
}
