use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dynamo_core::protocol::{LocalHash, SequenceHash};
use dynamo_core::random::Random;
use dynamo_kv::tier::object::object_store::ObjectStore;
use dynamo_kv::tier::object::object_store::local::LocalFileSystem;
use dynamo_kv::tier::object::object_store::memory::InMemory;
use dynamo_kv::tier::object::object_store::path::Path;
use dynamo_kv::tier::object::{ObjectConfig, ObjectTier};
use dynamo_kv::tier::{Miss, StoreError, Stored, Tier as _, TierChange};
use dynamo_kv::{BlockIdentity, BlockKey};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A store, and the directory that it is in if it is in one, which goes when the test ends.
pub(crate) struct Shelf {
    pub(crate) store: Arc<dyn ObjectStore>,
    dir: Option<PathBuf>,
}

impl Shelf {
    pub(crate) fn memory() -> Self {
        Self { store: Arc::new(InMemory::new()), dir: None }
    }

    pub(crate) fn directory() -> Self {
        let name = format!("objects-{:016x}", Random::unseeded().next_u64());
        let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let store = Arc::new(LocalFileSystem::new_with_prefix(&dir).unwrap());
        Self { store, dir: Some(dir) }
    }

    pub(crate) fn tier(&self, config: ObjectConfig) -> ObjectTier {
        ObjectTier::new(Arc::clone(&self.store), config).unwrap()
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        if let Some(dir) = &self.dir {
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}

pub(crate) fn config(block_bytes: usize) -> ObjectConfig {
    ObjectConfig::new("tests/kv", block_bytes, 0xd15c)
}

/// The key of one of any number of blocks, each of which follows the one before it.
pub(crate) fn key(number: u32) -> BlockKey {
    let identity = |number: u32| BlockIdentity(*blake3::hash(&number.to_le_bytes()).as_bytes());
    BlockKey {
        identity: identity(number),
        parent: number.checked_sub(1).map(identity),
        sequence: SequenceHash(number.into()),
        parent_sequence: number.checked_sub(1).map(|number| SequenceHash(number.into())),
        local: LocalHash(!u64::from(number)),
        position: number,
        chain: 1,
    }
}

pub(crate) fn keys(numbers: impl IntoIterator<Item = u32>) -> Vec<BlockKey> {
    numbers.into_iter().map(key).collect()
}

/// Where the object of a block is.
pub(crate) fn object(number: u32) -> Path {
    let name = blake3::Hash::from_bytes(key(number).identity.0).to_hex();
    Path::from(format!("tests/kv/v1/000000000000d15c/{}/{name}", &name[..2]))
}

/// What is in a block: different everywhere.
pub(crate) fn truth(number: u32, block_bytes: usize) -> Vec<u8> {
    let mut bytes = vec![0; block_bytes];
    blake3::Hasher::new_keyed(&key(number).identity.0).finalize_xof().fill(&mut bytes);
    bytes
}

pub(crate) async fn store(
    tier: &ObjectTier,
    numbers: impl IntoIterator<Item = u32>,
    block_bytes: usize,
) -> Vec<Result<Stored, StoreError>> {
    let blocks = numbers.into_iter().map(|number| (key(number), truth(number, block_bytes)));
    tier.store(blocks.collect()).await
}

/// What a tier says is there.
#[derive(Clone, Default)]
pub(crate) struct Known(Arc<Mutex<BTreeSet<u32>>>);

impl Known {
    /// Listens to a tier from now on.
    pub(crate) fn of(tier: &ObjectTier) -> Self {
        let known = Self::default();
        let heard = known.clone();
        let there = tier.watch(Box::new(move |change| {
            let mut known = heard.0.lock().unwrap();
            match change {
                TierChange::Stored(key) => assert!(known.insert(key.position), "said twice"),
                TierChange::Removed(key) => {
                    assert!(known.remove(&key.position), "it was not there")
                }
                TierChange::Cleared => known.clear(),
                change => unreachable!("{change:?}"),
            }
        }));
        known.0.lock().unwrap().extend(there.iter().map(|key| key.position));
        known
    }

    pub(crate) fn numbers(&self) -> Vec<u32> {
        self.0.lock().unwrap().iter().copied().collect()
    }
}

/// Loads blocks; each hit must be what was stored. Returns the misses.
pub(crate) async fn load(
    tier: &ObjectTier,
    numbers: impl IntoIterator<Item = u32>,
    block_bytes: usize,
) -> Vec<Miss<Vec<u8>>> {
    let numbers: Vec<_> = numbers.into_iter().collect();
    let targets = numbers.iter().map(|number| (key(*number), vec![0xee; block_bytes]));
    let outcomes = tier.load(targets.collect()).await;
    assert_eq!(outcomes.len(), numbers.len());
    let mut misses = Vec::new();
    for (outcome, number) in outcomes.into_iter().zip(numbers) {
        match outcome {
            Ok(loaded) => {
                assert_eq!(loaded.key(), key(number), "another block");
                assert!(loaded.into_target() == truth(number, block_bytes), "wrong bytes");
            }
            Err(miss) => misses.push(miss),
        }
    }
    misses
}
