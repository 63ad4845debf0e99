use std::time::Duration;

use async_trait::async_trait;
use dynamo_core::{Result, protocol};

use super::ObjectTier;
use crate::block::MutableBlock;
use crate::identity::BlockKey;
use crate::tier::{Loaded, Miss, Outgoing, StoreError, Stored, Tier, TierSink, TierStats};

#[async_trait]
impl Tier for ObjectTier {
    fn kind(&self) -> protocol::Tier {
        protocol::Tier::Remote
    }

    fn watch(&self, sink: Box<dyn TierSink>) -> Vec<BlockKey> {
        self.0.index().watch(sink)
    }

    async fn match_prefix(&self, keys: &[BlockKey]) -> usize {
        Self::match_prefix(self, keys).await
    }

    async fn store(&self, blocks: Vec<(BlockKey, Outgoing)>) -> Vec<Result<Stored, StoreError>> {
        Self::store(self, blocks).await
    }

    async fn load(
        &self,
        targets: Vec<(BlockKey, MutableBlock)>,
    ) -> Vec<Result<Loaded<MutableBlock>, Miss<MutableBlock>>> {
        Self::load(self, targets).await
    }

    async fn remove(&self, keys: &[BlockKey]) -> Result<usize> {
        Self::remove(self, keys).await
    }

    async fn clear(&self) -> Result<()> {
        Self::clear(self).await
    }

    fn estimate(&self, blocks: usize) -> Duration {
        self.0.pace.estimate(blocks)
    }

    fn stats(&self) -> TierStats {
        self.0.index().stats()
    }

    async fn shutdown(&self, within: Duration) -> Result<()> {
        Self::shutdown(self, within).await
    }
}
