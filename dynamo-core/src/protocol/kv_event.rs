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

impl Tier {
    /// All tiers, fastest first.
    pub const ALL: [Self; 4] = [Self::Device, Self::Host, Self::Disk, Self::Remote];
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

impl KvChange {
    /// Adds to `changes` that blocks were stored in `tier` which follow each other, the first of them
    /// `parent`: to the last run, if that is where they go on.
    pub fn push_stored(
        changes: &mut Vec<Self>,
        parent: Option<SequenceHash>,
        blocks: &[StoredBlock],
        tier: Tier,
    ) {
        if blocks.is_empty() {
            return;
        }
        if let Some(Self::BlockStored { blocks: run, tier: of, .. }) = changes.last_mut()
            && *of == tier
            && parent.is_some()
            && run.last().map(|block| block.sequence) == parent
        {
            return run.extend_from_slice(blocks);
        }
        changes.push(Self::BlockStored { parent, blocks: blocks.to_vec(), tier });
    }

    /// Adds to `changes` that blocks are no longer in `tier`: to the last one, if that says so of others.
    pub fn push_removed(
        changes: &mut Vec<Self>,
        hashes: impl IntoIterator<Item = SequenceHash>,
        tier: Tier,
    ) {
        let mut hashes = hashes.into_iter().peekable();
        if hashes.peek().is_none() {
            return;
        }
        if let Some(Self::BlockRemoved { sequence_hashes, tier: of }) = changes.last_mut()
            && *of == tier
        {
            return sequence_hashes.extend(hashes);
        }
        changes.push(Self::BlockRemoved { sequence_hashes: hashes.collect(), tier });
    }
}

/// A block named in [`KvChange::BlockStored`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StoredBlock {
    /// The block's content and prefix.
    pub sequence: SequenceHash,
    /// The block's content alone.
    pub local: LocalHash,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(hashes: &[u64]) -> Vec<StoredBlock> {
        let block = |hash| StoredBlock { sequence: SequenceHash(hash), local: LocalHash(hash) };
        hashes.iter().map(|hash| block(*hash)).collect()
    }

    #[test]
    fn what_goes_on_where_the_last_run_ends_is_joined_with_it_and_nothing_else_is() {
        use Tier::{Device, Host};
        let mut changes = Vec::new();
        let mut store = |parent: Option<u64>, hashes: &[u64], tier| {
            KvChange::push_stored(&mut changes, parent.map(SequenceHash), &blocks(hashes), tier);
        };
        store(None, &[1], Device);
        store(Some(1), &[2, 3], Device);
        store(Some(3), &[], Device);
        store(Some(3), &[4], Host);
        store(None, &[5], Host);
        store(Some(4), &[6], Host);
        for (hashes, tier) in [(&[1_u64, 2][..], Device), (&[3], Device), (&[], Host), (&[4], Host)]
        {
            KvChange::push_removed(&mut changes, hashes.iter().copied().map(SequenceHash), tier);
        }
        let stored = |parent: Option<u64>, hashes: &[u64], tier| KvChange::BlockStored {
            parent: parent.map(SequenceHash),
            blocks: blocks(hashes),
            tier,
        };
        let removed = |hashes: &[u64], tier| KvChange::BlockRemoved {
            sequence_hashes: hashes.iter().copied().map(SequenceHash).collect(),
            tier,
        };
        let joined = [
            stored(None, &[1, 2, 3], Device),
            stored(Some(3), &[4], Host),
            stored(None, &[5], Host),
            stored(Some(4), &[6], Host),
            removed(&[1, 2, 3], Device),
            removed(&[4], Host),
        ];
        assert_eq!(changes, joined);
    }
}
