use super::hash::{LocalHash, SequenceHash};
use super::worker::WorkerId;

/// Where a block lives, fastest first.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[non_exhaustive]
pub enum Tier {
    /// Memory of the accelerator.
    Device,
    /// Memory of the host.
    Host,
    /// A local file.
    Disk,
    /// Another agent or an object store.
    Remote,
}

/// One change of what a worker holds in its KV cache.
///
/// A publisher numbers its events 0, 1, 2, … within an epoch and takes a new, larger epoch when it
/// restarts, so that a listener sees every gap, repeat and restart.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct KvEvent {
    /// Whose cache changed.
    pub worker: WorkerId,
    /// The life of the publisher; a larger epoch replaces everything said in a smaller one.
    pub epoch: u64,
    /// The number of this event within its epoch.
    pub seq: u64,
    /// What happened.
    pub change: KvChange,
}

/// What happened to the cache; the names are vLLM's.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum KvChange {
    /// A run of blocks became readable; the first one follows `parent`, each other its predecessor.
    BlockStored {
        /// The block before the run; `None` when the run starts a sequence.
        parent: Option<SequenceHash>,
        /// The blocks, in sequence order.
        blocks: Vec<StoredBlock>,
        /// Where they live.
        tier: Tier,
    },
    /// Blocks are no longer readable.
    BlockRemoved {
        /// The blocks, in no particular order.
        sequence_hashes: Vec<SequenceHash>,
        /// Where they lived.
        tier: Tier,
    },
    /// The worker's cache is empty, in every tier.
    AllBlocksCleared,
}

/// A block named in [`KvChange::BlockStored`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StoredBlock {
    /// The block's content and prefix.
    pub sequence: SequenceHash,
    /// The block's content alone.
    pub local: LocalHash,
}
