use dynamo_core::protocol::{KvChange, StoredBlock, Tier};

use super::engine::Change;

/// Returns the changes as workers tell them: runs of blocks that follow each other, and removals.
pub(super) fn as_events(changes: Vec<Change>) -> Vec<KvChange> {
    let mut events = Vec::new();
    for change in changes {
        match change {
            Change::Stored { parent, local, sequence } => {
                let block = StoredBlock { sequence, local };
                KvChange::push_stored(&mut events, parent, &[block], Tier::Device);
            }
            Change::Removed(hash) => KvChange::push_removed(&mut events, [hash], Tier::Device),
        }
    }
    events
}
