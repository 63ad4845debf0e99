//! Blocks in an object store that many processes share: a directory, S3, or any other that the crate
//! [`object_store`] reaches.
//!
//! ```
//! use std::sync::Arc;
//!
//! use dynamo_core::protocol::{BlockSize, CacheNamespace};
//! use dynamo_kv::TokenSequence;
//! use dynamo_kv::tier::object::object_store::memory::InMemory;
//! use dynamo_kv::tier::object::{ObjectConfig, ObjectTier};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let tokens: Vec<u32> = (0..16).collect();
//! let keys = TokenSequence::new(&CacheNamespace::model("m"), BlockSize::DEFAULT, &tokens);
//! let key = keys.keys()[0];
//!
//! // Or `LocalFileSystem`, or `AmazonS3` with the feature `aws` of that crate.
//! let store = Arc::new(InMemory::new());
//! let config = ObjectConfig::new("kv", 4096, 7);
//! let here = ObjectTier::new(store.clone(), config.clone())?;
//! here.store(vec![(key, vec![42u8; 4096])]).await.remove(0)?;
//!
//! let elsewhere = ObjectTier::new(store, config)?;
//! assert_eq!(elsewhere.match_prefix(keys.keys()).await, 1);
//! let loaded = elsewhere.load(vec![(key, vec![0; 4096])]).await.remove(0).ok().expect("a hit");
//! assert_eq!(loaded.into_target()[4095], 42);
//! # Ok(())
//! # }
//! ```
//!
//! # An object
//! Each block is one object, named by fingerprint and identity: a header of 96 bytes, then the block.
//! Every field is in `docs/object-format.md`. Its name, and all of its header but the digest, are known
//! to whoever wants the block; the digest, keyed with the block's identity, proves the rest. What is
//! torn, flipped, cut or another's fails one of them, and is a miss. A digest finds damage, not malice:
//! who can write to the store can forge a block.
//!
//! A store puts an object in one step, so nothing is ordered and nothing recovered: what is there after
//! a restart is what was there before. Of many who store a block one writes, where the store can put
//! what is absent (S3, directories and memory can); elsewhere they write the same bytes.
//!
//! # Copies
//! A block is sent from its own memory and read from a file straight into its target; a body that comes
//! in pieces, as from S3, is copied into the target once. What stores do themselves is theirs:
//! `InMemory` copies what it is given, and S3's client hashes what it signs.
//!
//! # What is there
//! The tier keeps in mind which blocks it has stored, loaded or found, and for a while which it has not
//! found; of the rest it asks by few requests ([`match_prefix`](ObjectTier::match_prefix)) or lists the
//! store ([`refresh`](ObjectTier::refresh)). Others may delete what it takes to be there: that is a miss
//! once it is loaded.
//!
//! # Bounds
//! Requests under way, the time and number of attempts, and what is kept in mind are bounded
//! ([`ObjectConfig`]). The crate's own clients may retry too, within an attempt's time.

mod config;
mod format;
mod index;
mod load;
mod presence;
mod recent;
mod request;
mod store;
mod tier;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::object_store::ObjectStore;
use dynamo_core::{Error, ErrorKind, Result};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

pub use ::object_store;
pub use config::{ObjectConfig, OnFull};

use crate::identity::BlockKey;
use crate::tier::Pace;
use format::Format;
use index::Index;

/// Keeps blocks of one size in an object store; cheap to clone.
///
/// Nothing runs in the background: requests make progress while whoever waits for them does.
#[derive(Clone)]
pub struct ObjectTier(Arc<Inner>);

struct Inner {
    store: Arc<dyn ObjectStore>,
    config: ObjectConfig,
    format: Format,
    index: Mutex<Index>,
    /// Places for requests that are under way.
    room: Semaphore,
    /// Requests, and work on threads.
    tasks: TaskTracker,
    pace: Pace,
}

impl ObjectTier {
    /// Creates a tier of the blocks that are in `store` under the prefix; it asks nothing of it yet.
    ///
    /// Fails with [`InvalidArgument`](ErrorKind::InvalidArgument) if a limit is 0 or the prefix is no
    /// path.
    pub fn new(store: Arc<dyn ObjectStore>, config: ObjectConfig) -> Result<Self> {
        Ok(Self(Arc::new(Inner {
            store,
            format: config.format()?,
            index: Mutex::new(Index::new(&config)),
            room: Semaphore::new(config.in_flight),
            tasks: TaskTracker::new(),
            pace: Pace::new(config.load_time),
            config,
        })))
    }

    /// Removes blocks, whoever has stored them; returns how many of them were there.
    ///
    /// Fails with what the first one that could not be removed came to, once the others were tried.
    ///
    /// # Cancel safety
    /// If it is dropped, some of the blocks may be removed.
    pub async fn remove(&self, keys: &[BlockKey]) -> Result<usize> {
        let removed = futures::future::join_all(keys.iter().map(|key| self.0.remove_one(key)));
        removed
            .await
            .into_iter()
            .try_fold(0, |count, was_there| Ok(count + usize::from(was_there?)))
    }

    /// Removes all blocks of this fingerprint under the prefix, whoever has stored them.
    ///
    /// A block whose store is under way here is not stored; others may store blocks meanwhile.
    ///
    /// # Cancel safety
    /// If it is dropped, some of the blocks may be there still.
    pub async fn clear(&self) -> Result<()> {
        let _place = self.0.place().await?;
        Ok(self.0.delete_all().await?)
    }

    /// Refuses what comes from now on, and waits until what is under way has ended.
    ///
    /// Fails with [`DeadlineExceeded`](ErrorKind::DeadlineExceeded) if that takes longer than `within`.
    ///
    /// # Cancel safety
    /// Cancel safe; what comes is refused all the same. It may be called again.
    pub async fn shutdown(&self, within: Duration) -> Result<()> {
        self.0.room.close();
        self.0.tasks.close();
        tokio::time::timeout(within, self.0.tasks.wait()).await.map_err(|_| {
            Error::new(ErrorKind::DeadlineExceeded, "requests of an object tier under way")
        })
    }
}

impl Inner {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the blocks that are known to be used: the last one first, so that those behind others make
    /// room first.
    fn used(&self, keys: &[BlockKey]) {
        let mut index = self.index();
        for key in keys.iter().rev() {
            index.touch(key);
        }
    }

    async fn remove_one(&self, key: &BlockKey) -> Result<bool> {
        let _place = self.place().await?;
        let was_there = self.is_whole(&self.format.path(&key.identity)).await?;
        self.delete(&key.identity).await?;
        Ok(was_there)
    }
}

impl fmt::Debug for ObjectTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectTier")
            .field("store", &self.0.store)
            .field("format", &self.0.format)
            .finish_non_exhaustive()
    }
}

/// Hashed in the time that it takes to wake a thread.
const INLINE_BYTES_MAX: usize = 64 << 10;
