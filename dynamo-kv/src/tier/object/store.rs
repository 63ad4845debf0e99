use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use object_store::PutMode;
use object_store::path::Path;
use tokio::time::Instant;

use super::request::Failure;
use super::{INLINE_BYTES_MAX, Inner, ObjectTier};
use crate::identity::BlockKey;
use crate::tier::{self, StoreError, Stored};

impl ObjectTier {
    /// Stores blocks; the outcomes are in their order.
    ///
    /// A block is put where nothing is: of many who store it, in this process or others, one writes, if
    /// the store can tell. It is written over an object of another size, and over one that a
    /// [`load`](Self::load) of this tier found damaged and could not delete; any other is taken to be
    /// whole. It is held, in memory, until its request has ended. No more than
    /// [`in_flight`](super::ObjectConfig::in_flight) requests are under way at once, and the call waits,
    /// in order, while others have the places.
    ///
    /// # Cancel safety
    /// If it is dropped, blocks whose requests were under way may be there, whole.
    pub async fn store<B>(&self, blocks: Vec<(BlockKey, B)>) -> Vec<Result<Stored, StoreError>>
    where
        B: AsRef<[u8]> + Send + 'static,
    {
        let inner = Arc::clone(&self.0);
        let keys: Vec<_> = blocks.iter().map(|(key, _)| *key).collect();
        let outcomes: Vec<_> = stream::iter(blocks)
            .map(move |(key, block)| {
                let inner = Arc::clone(&inner);
                async move { inner.store_one(&key, block).await }
            })
            .buffered(self.0.config.in_flight)
            .collect()
            .await;
        self.0.used(&keys);
        self.0.make_room().await;
        outcomes
    }
}

impl Inner {
    async fn store_one<B>(&self, key: &BlockKey, block: B) -> Result<Stored, StoreError>
    where
        B: AsRef<[u8]> + Send + 'static,
    {
        let begun = Instant::now();
        let outcome = self.write(key, block).await;
        let bytes = self.format.block_bytes() as u64;
        self.index().count(|stats| match &outcome {
            Ok(Stored::Written) => {
                stats.stored_total += 1;
                stats.written_bytes_total += bytes;
                stats.store_time_total += begun.elapsed();
            }
            Ok(_) => {}
            Err(_) => stats.failed_total += 1,
        });
        outcome
    }

    async fn write<B>(&self, key: &BlockKey, block: B) -> Result<Stored, StoreError>
    where
        B: AsRef<[u8]> + Send + 'static,
    {
        let (expected, found) = (self.format.block_bytes(), block.as_ref().len());
        if expected != found {
            return Err(StoreError::Length { expected, found });
        }
        let _place = self.place().await?;
        let (begun, is_damaged) = {
            let mut index = self.index();
            if index.touch(key) {
                return Ok(Stored::Present);
            }
            (index.now(), index.is_damaged(&key.identity))
        };
        // The store gets the block's own memory.
        let block = Bytes::from_owner(block);
        let digest = self.digest(key, &block).await?;
        let path = self.format.path(&key.identity);
        let object = [self.format.header(&key.identity, &digest), block];
        let stored = self.create(&path, &object, is_damaged).await?;
        let is_there = self.index().learn(key, begun);
        if !is_there {
            // Whoever deletes it may have been there before.
            self.delete(&key.identity).await?;
            return Err(StoreError::Removed);
        }
        Ok(stored)
    }

    /// Puts an object where there is none that is whole, as far as that is known.
    async fn create(
        &self,
        path: &Path,
        object: &[Bytes; 2],
        is_damaged: bool,
    ) -> Result<Stored, Failure> {
        if !is_damaged {
            match self.put(path, object, &PutMode::Create).await {
                Ok(()) => return Ok(Stored::Written),
                Err(Failure::Exists) if self.is_whole(path).await? => return Ok(Stored::Present),
                Err(Failure::Exists | Failure::Unsupported(_)) => {}
                Err(failure) => return Err(failure),
            }
        }
        self.put(path, object, &PutMode::Overwrite).await?;
        Ok(Stored::Written)
    }

    async fn digest(&self, key: &BlockKey, block: &Bytes) -> Result<[u8; 32], StoreError> {
        let (identity, block) = (key.identity, block.clone());
        let work = move || tier::digest(&identity, &block);
        if self.format.block_bytes() <= INLINE_BYTES_MAX {
            return Ok(work());
        }
        self.tasks.spawn_blocking(work).await.map_err(|_| StoreError::Closed)
    }

    /// Forgets, or deletes, the blocks that were used longest ago.
    pub(super) async fn make_room(&self) {
        let doomed = stream::iter(std::iter::from_fn(|| self.index().overflow()));
        doomed
            .for_each_concurrent(self.config.in_flight, async |identity| {
                let deleted = async {
                    let _place = self.place().await?;
                    self.delete(&identity).await
                };
                if let Err(error) = deleted.await {
                    tracing::warn!(?identity, %error, "an object that was to make room stays");
                }
            })
            .await;
    }
}
