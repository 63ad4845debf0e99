use dynamo_core::protocol::{KvChange, SequenceHash};

use super::sequencer::Step;
use crate::index::PrefixIndex;
use crate::workers::Slot;

/// The blocks of one worker in the index.
pub(super) struct Table<'a> {
    pub(super) index: &'a mut PrefixIndex,
    pub(super) slot: Slot,
    /// Room for the hashes of a change.
    pub(super) hashes: &'a mut Vec<SequenceHash>,
}

impl Table<'_> {
    pub(super) fn follow(&mut self, step: Step<'_>) {
        match step {
            Step::Clear => self.index.clear(self.slot),
            Step::Apply(change) => self.apply(change),
            Step::Replace { stored, since } => {
                let Self { index, slot, hashes } = self;
                index.replace(*slot, |index| {
                    let mut table = Table { index, slot: *slot, hashes };
                    stored.iter().chain(since).for_each(|change| table.apply(change));
                });
            }
        }
    }

    fn apply(&mut self, change: &KvChange) {
        match change {
            KvChange::BlockStored { parent, blocks, tier } => {
                self.hashes.clear();
                self.hashes.extend(blocks.iter().map(|block| block.sequence));
                self.index.store(self.slot, *tier, *parent, self.hashes);
            }
            KvChange::BlockRemoved { sequence_hashes, tier } => {
                self.index.remove(self.slot, *tier, sequence_hashes);
            }
            KvChange::AllBlocksCleared => self.index.clear(self.slot),
            _ => tracing::warn!("KV event of an unknown kind"),
        }
    }
}
