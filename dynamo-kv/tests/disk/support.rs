use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dynamo_core::protocol::{LocalHash, SequenceHash};
use dynamo_core::random::Random;
use dynamo_kv::tier::disk::{DiskConfig, DiskError, DiskTier};
use dynamo_kv::tier::{Loaded, Miss, StoreError, Stored};
use dynamo_kv::{BlockIdentity, BlockKey};
use dynamo_transfer::HostBuffer;
use dynamo_transfer::file::{FileEngine, FileFaults, FileStoreConfig};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const FINGERPRINT: u64 = 0xd15c;

/// A directory that goes when the test ends.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        let name = format!("disk-{:016x}", Random::unseeded().next_u64());
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn config(&self, blocks: u32, block_bytes: usize) -> DiskConfig {
        DiskConfig::new(&self.0, blocks, block_bytes, FINGERPRINT)
    }

    pub(crate) fn blocks(&self) -> PathBuf {
        self.0.join("dynamo-kv.blocks")
    }

    pub(crate) fn manifest(&self) -> PathBuf {
        self.0.join("dynamo-kv.manifest")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn faulty(faults: &FileFaults) -> FileStoreConfig {
    FileStoreConfig::default().with_engine(FileEngine::Pool).with_faults(faults.clone())
}

/// The key of one of any number of blocks, four of which follow each other.
pub(crate) fn key(number: u64) -> BlockKey {
    let identity = |number: u64| BlockIdentity(*blake3::hash(&number.to_le_bytes()).as_bytes());
    let parent = (!number.is_multiple_of(4)).then(|| number - 1);
    BlockKey {
        identity: identity(number),
        parent: parent.map(identity),
        sequence: SequenceHash(number),
        parent_sequence: parent.map(SequenceHash),
        local: LocalHash(!number),
        position: 3,
        chain: number,
    }
}

/// What is in a block, by its identity: different everywhere.
pub(crate) fn truth(identity: BlockIdentity, block_bytes: usize) -> HostBuffer {
    let mut bytes = HostBuffer::new(block_bytes);
    blake3::Hasher::new_keyed(&identity.0).finalize_xof().fill(&mut bytes);
    bytes
}

/// What is in the blocks of a test, made once.
pub(crate) struct Truth {
    blocks: HashMap<BlockIdentity, (BlockKey, HostBuffer)>,
    pub(crate) block_bytes: usize,
}

impl Truth {
    pub(crate) fn new(count: u64, block_bytes: usize) -> Self {
        let block = |number| {
            let key = key(number);
            (key.identity, (key, truth(key.identity, block_bytes)))
        };
        Self { blocks: (0..count).map(block).collect(), block_bytes }
    }

    pub(crate) fn block(&self, number: u64) -> (BlockKey, HostBuffer) {
        let (key, bytes) = &self.blocks[&key(number).identity];
        (*key, bytes.clone())
    }

    /// Loads blocks; each hit must be what was stored. Returns the misses.
    pub(crate) async fn load(
        &self,
        tier: &DiskTier,
        identities: &[BlockIdentity],
    ) -> Vec<Miss<HostBuffer>> {
        let targets = identities.iter().map(|id| (*id, HostBuffer::new(self.block_bytes)));
        let outcomes = tier.load(targets.collect()).await;
        assert_eq!(outcomes.len(), identities.len());
        let outcomes = outcomes.into_iter().zip(identities);
        outcomes.filter_map(|(outcome, id)| self.check(*id, outcome).err()).collect()
    }

    fn check(
        &self,
        identity: BlockIdentity,
        outcome: Result<Loaded<HostBuffer>, Miss<HostBuffer>>,
    ) -> Result<(), Miss<HostBuffer>> {
        let loaded = outcome?;
        let (key, bytes) = &self.blocks[&identity];
        assert_eq!(loaded.key(), *key, "another block");
        assert!(loaded.into_target()[..] == bytes[..], "wrong bytes");
        Ok(())
    }
}

/// Stores blocks by number.
pub(crate) async fn store(
    tier: &DiskTier,
    truth: &Truth,
    numbers: impl IntoIterator<Item = u64>,
) -> Vec<Result<Stored, StoreError>> {
    tier.store(numbers.into_iter().map(|number| truth.block(number)).collect()).await
}

/// Opens a directory once whoever had it before is gone, and the kernel has closed its files.
pub(crate) async fn open(config: DiskConfig) -> Result<DiskTier, DiskError> {
    let opened = async {
        loop {
            match DiskTier::open(config.clone()).await {
                Err(DiskError::Locked { .. }) => tokio::time::sleep(Duration::from_millis(1)).await,
                opened => break opened,
            }
        }
    };
    tokio::time::timeout(PATIENCE, opened).await.unwrap()
}

/// Waits until the kernel is done with what was dropped.
pub(crate) async fn quiet(tier: &DiskTier) {
    let quiet = async {
        while tier.stats().held > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, quiet).await.unwrap();
}

pub(crate) async fn shut(tier: DiskTier) {
    tier.shutdown(PATIENCE).await.unwrap();
}

pub(crate) fn read_at(path: &Path, offset: u64, len: usize) -> Vec<u8> {
    let mut file = OpenOptions::new().read(true).open(path).unwrap();
    file.seek(SeekFrom::Start(offset)).unwrap();
    let mut bytes = vec![0; len];
    file.read_exact(&mut bytes).unwrap();
    bytes
}

pub(crate) fn write_at(path: &Path, offset: u64, bytes: &[u8]) {
    let mut file = OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.write_all(bytes).unwrap();
}

/// Returns where the record of a slot is.
pub(crate) fn record_at(slot: u64) -> u64 {
    8192 + 256 * slot
}

/// Returns how far slots are apart.
pub(crate) fn stride(block_bytes: usize) -> u64 {
    (block_bytes as u64).next_multiple_of(4096)
}
