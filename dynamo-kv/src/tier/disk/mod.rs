//! Blocks in the slots of a preallocated file, found again after a restart.
//!
//! ```
//! use dynamo_core::protocol::{BlockSize, CacheNamespace};
//! use dynamo_kv::TokenSequence;
//! use dynamo_kv::tier::disk::{DiskConfig, DiskTier};
//! use dynamo_transfer::HostBuffer;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = std::env::temp_dir().join(format!("dynamo-kv-disk-{}", std::process::id()));
//! let tokens: Vec<u32> = (0..16).collect();
//! let keys = TokenSequence::new(&CacheNamespace::model("m"), BlockSize::DEFAULT, &tokens);
//! let key = keys.keys()[0];
//!
//! let config = DiskConfig::new(&dir, 64, 4096, 7);
//! let tier = DiskTier::open(config.clone()).await?;
//! tier.store(vec![(key, vec![42u8; 4096])]).await.remove(0)?;
//! tier.shutdown(std::time::Duration::from_secs(5)).await?;
//!
//! let tier = DiskTier::open(config).await?;
//! assert_eq!(tier.match_prefix(keys.keys()), 1);
//! let target = HostBuffer::new(4096);
//! let loaded = tier.load(vec![(key.identity, target)]).await.remove(0).ok().expect("a hit");
//! assert_eq!((loaded.key(), loaded.into_target()[4095]), (key, 42));
//! # tier.shutdown(std::time::Duration::from_secs(5)).await?;
//! # std::fs::remove_dir_all(dir).ok();
//! # Ok(())
//! # }
//! ```
//!
//! # A directory
//! | file | what is in it |
//! |---|---|
//! | `dynamo-kv.blocks` | slots of one size, multiples of 4,096 bytes: the blocks, and nothing else |
//! | `dynamo-kv.manifest` | a superblock, twice, then per slot a record of 256 bytes: key, generation, digest, checksum |
//! | `dynamo-kv.lock` | locked by the process that has the directory open |
//!
//! Every field is in `docs/disk-format.md`.
//!
//! # Why it is never wrong
//! A block is written to a slot that nothing uses, then its record, then the block can be found. No
//! order of these on the device is relied on, and nothing is synced: what proves a block is not that
//! a write was made but that the bytes that were read have the digest in the record, keyed with the
//! block's identity. A record proves itself by its own checksum, which covers slot, fingerprint and
//! era, so that one of another slot, another layout or from before a [`clear`](DiskTier::clear)
//! counts for nothing. Whatever is torn, flipped, lost, old or foreign fails one of the two, and is
//! a miss.
//!
//! Records lie apart from blocks because that costs the least: a block costs 256 bytes of a page
//! that its neighbours share in place of a page of its own, blocks stay whole pages that go past the
//! page cache straight from the caller's memory, and opening reads 256 bytes per slot, one after the
//! other, in place of a page at each. A record lies within one sector. While the tier is open,
//! records are kept in memory (230 to 280 bytes per slot, with its place in the index and in the
//! policy), and a load is one read.
//!
//! Digests find damage, not malice: who can write to the directory can forge a block.
//!
//! # What makes room
//! Of the blocks that nobody reads and that no other block of the tier follows, the one that the policy
//! chooses ([`DiskConfig::with_eviction`]; by default the one that was used longest ago). So a sequence
//! loses its end first, whatever the order in which its blocks came or were loaded, and after a restart
//! too. A block that is written is one that follows: what it needs stays for it.
//!
//! # A slot
//! ```text
//!              begin                commit              evict, remove, damage
//!   free ─────────────▶ written ─────────────▶ stored ──────────────────────▶ free, once no
//!     ▲                    │                    │  ▲                          reader holds it
//!     └── failed, dropped ─┘               read └──┘
//! ```
//! Whoever reads or writes a slot holds it with a guard that travels with the memory through the
//! engine: the slot is used anew when the kernel is done with it, also if nobody waits any more.

mod config;
mod directory;
mod error;
mod format;
mod hold;
mod index;
mod load;
mod open;
mod places;
mod run;
mod stats;
mod store;
mod superblock;
mod tier;

use std::fmt;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dynamo_transfer::file::{FileRange, FileRegion, FileStore};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

pub use config::{DiskConfig, OnForeign};
pub use error::{DiskError, Foreign};
pub use stats::{DiskStats, Recovery};

use crate::identity::{BlockIdentity, BlockKey};
use crate::tier::Pace;
use directory::Directory;
use format::{Geometry, RECORD_BYTES};
use hold::{Held, Hold};
use index::Index;

/// Keeps blocks of one size in a directory; cheap to clone.
///
/// Nothing runs in the background: operations make progress while they are polled, and hold one of
/// [`DiskConfig::in_flight`] places each. Dropping the last clone ends the engine and unlocks the
/// directory once the kernel is done with it; [`shutdown`](Self::shutdown) also waits for that.
#[derive(Clone)]
pub struct DiskTier(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    files: FileStore,
    blocks: FileRegion,
    manifest: FileRegion,
    geometry: Geometry,
    /// Places for blocks that are being read or written.
    room: Arc<Semaphore>,
    in_flight: usize,
    /// Blocks that are moved by one operation.
    run_blocks: usize,
    /// Guards of slots, and work on threads.
    tasks: TaskTracker,
    pace: Pace,
    /// The era that the next clear begins.
    next_era: tokio::sync::Mutex<u64>,
    recovery: Recovery,
}

/// What guards of slots keep alive, after the tier itself too.
struct Shared {
    index: Mutex<Index>,
    dir: Arc<Directory>,
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DiskTier {
    /// Opens the directory, makes it if there is none, and finds the blocks that are there.
    ///
    /// It reads 256 bytes per slot, and no block. What is damaged there, or cannot be read, is not
    /// found, and [`recovery`](Self::recovery) says how much that is. Fails with [`DiskError::Locked`]
    /// if another tier has it open, with [`DiskError::Foreign`] if it was made for something else, or
    /// [`DiskError::File`] if nothing can be read that says what for, and the config does not say to
    /// start anew, and with [`DiskError::StorageFull`] if its files have no room.
    ///
    /// # Cancel safety
    /// Cancel safe: the directory is locked until what was begun has come to its end, and whoever opens
    /// it then finds what was made so far.
    pub async fn open(config: DiskConfig) -> Result<Self, DiskError> {
        open::open(config).await.map(|inner| Self(Arc::new(inner)))
    }

    /// Tells whether a block can be found; it may still turn out to be damaged. After a shutdown none
    /// can be.
    pub fn contains(&self, identity: &BlockIdentity) -> bool {
        !self.0.room.is_closed() && self.0.shared.index().contains(identity)
    }

    /// Returns how many of the first keys can be found without a gap, after a shutdown none.
    pub fn match_prefix(&self, keys: &[BlockKey]) -> usize {
        if self.0.room.is_closed() {
            return 0;
        }
        let index = self.0.shared.index();
        keys.iter().take_while(|key| index.contains(&key.identity)).count()
    }

    /// Returns the keys of all blocks, those that were stored first in front: after a restart,
    /// what there is to publish.
    pub fn keys(&self) -> Vec<BlockKey> {
        tier::in_order(self.0.shared.index().keys())
    }

    /// Returns what is there and what happened since it was opened.
    pub fn stats(&self) -> DiskStats {
        self.0.shared.index().stats()
    }

    /// Returns what was found when it was opened.
    pub fn recovery(&self) -> Recovery {
        self.0.recovery
    }

    /// Removes a block, and its record; tells whether it was there.
    ///
    /// A store of it that is under way ends with
    /// [`StoreError::Removed`](crate::tier::StoreError::Removed). Fails if the record cannot
    /// be written: then the block may be found again after a restart.
    ///
    /// # Cancel safety
    /// If it is dropped, the block may be gone until a restart only.
    pub async fn remove(&self, identity: &BlockIdentity) -> Result<bool, DiskError> {
        let inner = &self.0;
        let permit = Arc::clone(&inner.room).acquire_owned().await;
        let permit = permit.map_err(|_| DiskError::Closed)?;
        let found = inner.shared.index().remove(identity);
        let Some(slot) = found else { return Ok(false) };
        inner.erase(inner.hold(slot, permit)).await?;
        Ok(true)
    }

    /// Removes all blocks, for good: none is found again after a restart, nor is one whose store is
    /// under way, which ends with [`StoreError::Removed`](crate::tier::StoreError::Removed).
    ///
    /// Begins an era, with two writes that are synced, and fails with the error of those.
    ///
    /// # Cancel safety
    /// If it is dropped, the blocks may be gone after a restart only.
    pub async fn clear(&self) -> Result<(), DiskError> {
        let inner = &self.0;
        let mut next_era = inner.next_era.lock().await;
        let permit = Arc::clone(&inner.room).acquire_owned().await;
        let _permit = permit.map_err(|_| DiskError::Closed)?;
        // Not used again, whatever becomes of this write.
        let era = *next_era;
        *next_era = era.wrapping_add(1);
        superblock::write(&inner.files, &inner.manifest, &inner.shared.dir, era).await?;
        inner.sync().await?;
        inner.shared.index().clear(era);
        Ok(())
    }

    /// Refuses what comes from now on, waits until what is under way has ended, syncs the files,
    /// joins the engine's threads and unlocks the directory.
    ///
    /// Fails with [`DiskError::Busy`] if that takes longer than `within`: then the directory is
    /// unlocked once the kernel is done with it and the last clone is dropped.
    ///
    /// # Cancel safety
    /// Cancel safe; what comes is refused all the same. It may be called again.
    pub async fn shutdown(&self, within: Duration) -> Result<(), DiskError> {
        let inner = &self.0;
        inner.room.close();
        inner.tasks.close();
        let ended = tokio::time::timeout(within, async {
            inner.tasks.wait().await;
            inner.sync().await?;
            inner.files.shutdown(within).await.map_err(DiskError::from)
        });
        match ended.await {
            Ok(ended) => ended?,
            Err(_) => {
                // What waits for the engine fails at once; it has ended, or says that it has not.
                let _ = inner.files.shutdown(Duration::ZERO).await;
                return Err(DiskError::Busy);
            }
        }
        inner.shared.dir.unlock();
        Ok(())
    }
}

impl Inner {
    fn hold(&self, slot: u32, permit: tokio::sync::OwnedSemaphorePermit) -> Hold {
        Hold::new(Arc::clone(&self.shared), slot, permit, self.tasks.token())
    }

    /// Writes the record of a slot that nothing can be found in.
    async fn erase(&self, hold: Hold) -> dynamo_transfer::Result<()> {
        self.write_record(hold, [0; RECORD_BYTES]).await.map(drop)
    }

    /// Writes the record of a slot; the slot comes back.
    async fn write_record(
        &self,
        hold: Hold,
        record: [u8; RECORD_BYTES],
    ) -> dynamo_transfer::Result<Option<Hold>> {
        let place =
            FileRange { offset: format::record_offset(hold.slot()), at: 0, len: RECORD_BYTES };
        let held = Held { bytes: record, hold };
        let (written, held) = self.files.write(&self.manifest, &[place], held).await;
        written.map(|_| held.map(|held| held.hold))
    }

    /// Returns where in the file a slot is.
    fn place(&self, slot: u32) -> u64 {
        u64::from(slot) * self.geometry.stride()
    }

    /// Hashes so many blocks, on a thread if that is worth it; `None` if the runtime shuts down.
    async fn hash<T: Send + 'static>(
        &self,
        blocks: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        if blocks * self.geometry.block_bytes <= INLINE_BYTES_MAX {
            return Some(work());
        }
        blocking(&self.tasks, work).await
    }

    async fn sync(&self) -> Result<(), DiskError> {
        self.shared.dir.run(&self.tasks, Directory::sync).await
    }
}

impl fmt::Debug for DiskTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskTier")
            .field("blocks", &self.0.blocks)
            .field("geometry", &self.0.geometry)
            .finish_non_exhaustive()
    }
}

/// Runs what takes long on a thread; `None` if the runtime shuts down.
async fn blocking<T: Send + 'static>(
    tasks: &TaskTracker,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    match tasks.spawn_blocking(work).await {
        Ok(done) => Some(done),
        Err(error) => error.try_into_panic().map_or(None, |panic| resume_unwind(panic)),
    }
}

/// Hashed in the time that it takes to wake a thread.
const INLINE_BYTES_MAX: usize = 64 << 10;
