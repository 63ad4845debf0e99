use std::path::{Path, PathBuf};
use std::time::Duration;

use dynamo_transfer::file::FileStoreConfig;

use super::error::DiskError;
use super::format::Geometry;
use crate::evict::{EntryId, Eviction, EvictionFactory};

/// What becomes of a directory that was made for something else, or of which both superblocks are
/// damaged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnForeign {
    /// Opening fails with [`DiskError::Foreign`], or [`DiskError::File`] if the device fails to read
    /// both superblocks, and nothing is touched.
    #[default]
    Refuse,
    /// What is there is given up, and the directory made anew.
    Reinitialise,
}

/// How a disk tier is set up.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DiskConfig {
    /// The directory, which no other tier uses.
    pub dir: PathBuf,
    /// How many blocks fit, from 1 to [`EntryId::COUNT_MAX`]; their room is allocated when the directory is made.
    pub blocks: u32,
    /// The size of every block in bytes; a multiple of 4,096 goes past the page cache as a whole.
    pub block_bytes: usize,
    /// What blocks must share to be interchangeable, such as
    /// [`RankLayout::fingerprint`](crate::layout::RankLayout::fingerprint).
    pub fingerprint: u64,
    /// Blocks being read or written at once; others wait, in order. 8 MiB by default, but 32 blocks at
    /// least and 128 at most.
    pub in_flight: usize,
    /// Blocks go past the page cache where filesystem and memory allow it.
    pub direct: bool,
    /// How long a block is taken to load until loads were measured.
    pub load_time: Duration,
    /// What becomes of a directory that was made for something else.
    pub on_foreign: OnForeign,
    /// The engine that moves the bytes.
    pub files: FileStoreConfig,
    pub(super) eviction: EvictionFactory,
}

impl DiskConfig {
    /// Describes a directory of `blocks` blocks of `block_bytes` bytes each, evicted least recently
    /// used first.
    pub fn new(dir: impl AsRef<Path>, blocks: u32, block_bytes: usize, fingerprint: u64) -> Self {
        Self {
            dir: dir.as_ref().to_owned(),
            blocks,
            block_bytes,
            fingerprint,
            in_flight: IN_FLIGHT_BYTES.checked_div(block_bytes).map_or(1, in_flight),
            direct: true,
            load_time: LOAD_LATENCY + Duration::from_nanos(block_bytes as u64),
            on_foreign: OnForeign::default(),
            files: FileStoreConfig::default(),
            eviction: EvictionFactory::default(),
        }
    }

    /// Limits the blocks that are read or written at once.
    #[must_use]
    pub fn with_in_flight(mut self, in_flight: usize) -> Self {
        self.in_flight = in_flight;
        self
    }

    /// Sets whether blocks go past the page cache.
    #[must_use]
    pub fn with_direct(mut self, direct: bool) -> Self {
        self.direct = direct;
        self
    }

    /// Says how long a block is taken to load until loads were measured.
    #[must_use]
    pub fn with_load_time(mut self, load_time: Duration) -> Self {
        self.load_time = load_time;
        self
    }

    /// Says what becomes of a directory that was made for something else.
    #[must_use]
    pub fn with_on_foreign(mut self, on_foreign: OnForeign) -> Self {
        self.on_foreign = on_foreign;
        self
    }

    /// Sets up the engine; it must take as many operations as there are places in flight.
    #[must_use]
    pub fn with_files(mut self, files: FileStoreConfig) -> Self {
        self.files = files;
        self
    }

    /// Chooses the blocks that make room by a policy that `eviction` makes.
    #[must_use]
    pub fn with_eviction<E: Eviction>(
        mut self,
        eviction: impl Fn() -> E + Send + Sync + 'static,
    ) -> Self {
        self.eviction = EvictionFactory::new(eviction);
        self
    }

    /// Checks the numbers.
    pub(super) fn geometry(&self) -> Result<Geometry, DiskError> {
        let Self { blocks, block_bytes, fingerprint, .. } = *self;
        let geometry = Geometry { blocks, block_bytes, fingerprint };
        let is_sound = (1..=EntryId::COUNT_MAX).contains(&blocks)
            && (1..=self.files.operations_max).contains(&self.in_flight)
            && geometry.is_addressable();
        is_sound.then_some(geometry).ok_or(DiskError::Config {
            blocks,
            block_bytes,
            in_flight: self.in_flight,
        })
    }
}

/// Returns how many blocks are in flight if so many are what a device wants.
fn in_flight(wanted: usize) -> usize {
    wanted.clamp(32, 128)
}

/// Enough for an NVMe device to be busy while what has come is hashed.
const IN_FLIGHT_BYTES: usize = 8 << 20;

/// With a gigabyte per second, what a flash device does at the least.
const LOAD_LATENCY: Duration = Duration::from_micros(100);
