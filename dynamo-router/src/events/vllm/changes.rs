use dynamo_core::protocol::{KvChange, SequenceHash, StoredBlock, Tier};

/// Changes in order, what follows each other in one run joined.
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
        stored_in: Tier,
    ) {
        if blocks.is_empty() {
            return;
        }
        self.stored += blocks.len() as u64;
        if let Some(KvChange::BlockStored { blocks: run, tier, .. }) = self.list.last_mut()
            && *tier == stored_in
            && before.is_some()
            && run.last().map(|block| block.sequence) == before
        {
            return run.extend_from_slice(blocks);
        }
        let (parent, blocks) = (before, blocks.to_vec());
        self.list.push(KvChange::BlockStored { parent, blocks, tier: stored_in });
    }

    /// Adds blocks that are gone.
    pub(super) fn remove(&mut self, blocks: &[StoredBlock], removed_from: Tier) {
        if blocks.is_empty() {
            return;
        }
        self.removed += blocks.len() as u64;
        let hashes = blocks.iter().map(|block| block.sequence);
        if let Some(KvChange::BlockRemoved { sequence_hashes, tier }) = self.list.last_mut()
            && *tier == removed_from
        {
            return sequence_hashes.extend(hashes);
        }
        let sequence_hashes = hashes.collect();
        self.list.push(KvChange::BlockRemoved { sequence_hashes, tier: removed_from });
    }
}
