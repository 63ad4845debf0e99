use std::time::Duration;

use async_trait::async_trait;
use dynamo_core::protocol;

use super::DiskTier;
use crate::block::MutableBlock;
use crate::identity::BlockKey;
use crate::tier::{Loaded, Miss, Outgoing, StoreError, Stored, Tier, TierSink, TierStats};

#[async_trait]
impl Tier for DiskTier {
    fn kind(&self) -> protocol::Tier {
        protocol::Tier::Disk
    }

    fn watch(&self, sink: Box<dyn TierSink>) -> Vec<BlockKey> {
        // Under one lock, so that no change falls between the two.
        let mut keys = in_order(self.0.shared.index().watch(sink));
        // Leaves go down first, as they are evicted.
        keys.sort_by_key(|key| (key.chain, key.position));
        keys
    }

    async fn match_prefix(&self, keys: &[BlockKey]) -> usize {
        Self::match_prefix(self, keys)
    }

    async fn store(&self, blocks: Vec<(BlockKey, Outgoing)>) -> Vec<Result<Stored, StoreError>> {
        Self::store(self, blocks).await
    }

    async fn load(
        &self,
        targets: Vec<(BlockKey, MutableBlock)>,
    ) -> Vec<Result<Loaded<MutableBlock>, Miss<MutableBlock>>> {
        let targets = targets.into_iter().map(|(key, target)| (key.identity, target));
        Self::load(self, targets.collect()).await
    }

    async fn remove(&self, keys: &[BlockKey]) -> dynamo_core::Result<usize> {
        let (mut removed, mut outcome) = (0, Ok(()));
        for key in keys {
            match Self::remove(self, &key.identity).await {
                Ok(was_there) => removed += usize::from(was_there),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        Ok(outcome.map(|()| removed)?)
    }

    async fn clear(&self) -> dynamo_core::Result<()> {
        Ok(Self::clear(self).await?)
    }

    fn estimate(&self, blocks: usize) -> Duration {
        self.0.pace.estimate(blocks)
    }

    fn stats(&self) -> TierStats {
        let stats = Self::stats(self);
        TierStats {
            blocks: stats.blocks,
            hits_total: stats.hits_total,
            misses_total: stats.absent_total + stats.damaged_total + stats.unreadable_total,
            stored_total: stats.stored_total,
            failed_total: stats.failed_total,
            evicted_total: stats.evicted_total,
            read_bytes_total: stats.read_bytes_total,
            written_bytes_total: stats.written_bytes_total,
            load_time_total: stats.load_time_total,
            store_time_total: stats.store_time_total,
        }
    }

    async fn shutdown(&self, within: Duration) -> dynamo_core::Result<()> {
        Ok(Self::shutdown(self, within).await?)
    }
}

/// Orders keys by when their blocks were stored.
pub(super) fn in_order(mut keys: Vec<(u64, BlockKey)>) -> Vec<BlockKey> {
    keys.sort_unstable_by_key(|(generation, _)| *generation);
    keys.into_iter().map(|(_, key)| key).collect()
}
