use dynamo_core::protocol::{KvChange, SequenceHash, StoredBlock, Tier};

/// Changes in order, what follows each other in one run joined, and how many blocks they are.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) list: Vec<KvChange>,
    pub(super) stored: u64,
    pub(super) removed: u64,
}

impl Changes {
    /// Adds blocks that follow each other, the first one behind `before`.
    pub(super) fn store(
        &mut self,
        before: Option<SequenceHash>,
        blocks: &[StoredBlock],
        tier: Tier,
    ) {
        self.stored += blocks.len() as u64;
        KvChange::push_stored(&mut self.list, before, blocks, tier);
    }

    /// Adds blocks that are gone.
    pub(super) fn remove(&mut self, blocks: &[StoredBlock], tier: Tier) {
        self.removed += blocks.len() as u64;
        let hashes = blocks.iter().map(|block| block.sequence);
        KvChange::push_removed(&mut self.list, hashes, tier);
    }
}
