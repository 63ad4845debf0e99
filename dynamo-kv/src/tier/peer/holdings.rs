//! What an owner has: who may know of it, and who may have it removed.

use std::time::Duration;

use dynamo_core::{Context, Error, ErrorKind, ResponseStream, Result};
use futures::stream::{self, StreamExt};

use super::message::{Answer, MATCH_MAX, PART_BLOCKS, Told};
use super::owner::Inner;
use crate::identity::BlockKey;

impl Inner {
    /// Tells what is there, and from there on what changes.
    pub(super) fn watch(&self, ctx: &Context, beat_ms: u64) -> Result<ResponseStream<Answer>> {
        // Nothing changes between the two.
        let (blocks, watch) = self.manager.pool().keys_while(|| self.feed.watch());
        let watch = watch?;
        let (epoch, seq) = (watch.epoch, watch.seq);
        let parts = blocks.len().div_ceil(PART_BLOCKS).max(1);
        let mut blocks = blocks.into_iter();
        let there = (1..=parts).map(move |part| {
            let blocks = blocks.by_ref().take(PART_BLOCKS).collect();
            Ok(Answer(Told::There { epoch, seq, blocks, is_last: part == parts }))
        });
        let beat = Duration::from_millis(beat_ms).max(BEAT_MIN);
        Ok(ResponseStream::new(ctx, stream::iter(there).chain(watch.answers(beat))))
    }

    /// Removes blocks from memory, then from the tiers below: a block does not go down in between.
    ///
    /// What waits to be written to a tier at that moment may come to be there.
    pub(super) async fn remove(&self, keys: &[BlockKey]) -> Result<Told> {
        self.check_removable()?;
        if keys.len() > MATCH_MAX {
            let message = format!("{} blocks to remove, up to {MATCH_MAX} allowed", keys.len());
            return Err(Error::invalid(message));
        }
        let (pool, below) = (self.manager.pool(), self.manager.pool().below());
        let levels = |key| below.map_or(0, |below| below.levels(key));
        let levels: Vec<_> = keys.iter().map(levels).collect();
        let (was_there, kept) = pool.remove(keys);
        let mut outcome = Ok(());
        for (level, tier) in below.into_iter().flat_map(|below| below.tiers()).enumerate() {
            let there = keys.iter().zip(&levels).filter(|(_, levels)| **levels & (1 << level) != 0);
            let there: Vec<_> = there.map(|(key, _)| *key).collect();
            if !there.is_empty() {
                outcome = outcome.and(tier.remove(&there).await.map(drop));
            }
        }
        outcome?;
        if kept > 0 {
            let message = format!("{kept} blocks of {} are in use", keys.len());
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        let removed =
            was_there.iter().zip(levels).filter(|(there, levels)| **there || *levels != 0);
        Ok(Told::Removed(u32::try_from(removed.count()).unwrap_or(u32::MAX)))
    }

    /// Removes all blocks that nobody holds.
    pub(super) async fn clear(&self) -> Result<Told> {
        self.check_removable()?;
        self.manager.clear();
        let mut outcome = Ok(());
        for tier in self.manager.pool().below().into_iter().flat_map(|below| below.tiers()) {
            outcome = outcome.and(tier.clear().await);
        }
        outcome.map(|()| Told::Cleared)
    }

    fn check_removable(&self) -> Result<()> {
        let refused = || Error::invalid("an owner of blocks lets no client remove them");
        self.config.is_removable.then_some(()).ok_or_else(refused)
    }
}

/// What one watcher may cost.
const BEAT_MIN: Duration = Duration::from_millis(10);
