use dynamo_core::protocol::{KvChange, StoredBlock, Tier};

use super::engine::Change;

/// Returns the changes as workers tell them: runs of blocks that follow each other, and removals.
pub(super) fn as_events(changes: Vec<Change>) -> Vec<KvChange> {
    let mut events: Vec<KvChange> = Vec::new();
    for change in changes {
        match (change, events.last_mut()) {
            (
                Change::Stored { parent, local, sequence },
                Some(KvChange::BlockStored { blocks, .. }),
            ) if parent.is_some() && blocks.last().map(|block| block.sequence) == parent => {
                blocks.push(StoredBlock { sequence, local });
            }
            (Change::Stored { parent, local, sequence }, _) => {
                let blocks = vec![StoredBlock { sequence, local }];
                events.push(KvChange::BlockStored { parent, blocks, tier: Tier::Device });
            }
            (Change::Removed(hash), Some(KvChange::BlockRemoved { sequence_hashes, .. })) => {
                sequence_hashes.push(hash);
            }
            (Change::Removed(hash), _) => {
                let sequence_hashes = vec![hash];
                events.push(KvChange::BlockRemoved { sequence_hashes, tier: Tier::Device });
            }
        }
    }
    events
}
