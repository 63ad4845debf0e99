use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dynamo_core::protocol::{BlockSize, CacheNamespace, InstanceId, WorkerId};

use super::{BLOCKS, layout};
use crate::block::MutableBlock;
use crate::identity::{BlockIdentity, BlockKey};
use crate::layout::BlockLayout;
use crate::manager::{BlockManager, ManagerConfig};
use crate::sequence::TokenSequence;
use crate::tier::{Loaded, Miss, MissReason, Outgoing, StoreError, Stored, Tier, TierChange};

/// A tier, memory above it, and what the tier has told.
pub(super) struct Stage {
    pub(super) tier: Arc<dyn Tier>,
    pub(super) memory: BlockManager,
    said: Arc<Mutex<HashMap<BlockIdentity, BlockKey>>>,
}

type LoadedBlock = Result<Loaded<MutableBlock>, Miss<MutableBlock>>;

impl Stage {
    pub(super) fn new(tier: Arc<dyn Tier>) -> Self {
        let said = Arc::new(Mutex::new(HashMap::new()));
        let heard = Arc::clone(&said);
        let there = tier.watch(Box::new(move |change| {
            let mut said = lock(&heard);
            match change {
                TierChange::Stored(key) => drop(said.insert(key.identity, key)),
                TierChange::Removed(key) => drop(said.remove(&key.identity)),
                TierChange::Cleared => said.clear(),
            }
        }));
        assert!(there.is_empty(), "a tier that is to be checked has blocks: {there:?}");
        Self { tier, memory: memory(layout()), said }
    }

    pub(super) async fn store(&self, keys: &[BlockKey]) -> Vec<Result<Stored, StoreError>> {
        let outcomes = self.tier.store(self.outgoing(keys)).await;
        assert_eq!(outcomes.len(), keys.len(), "outcomes of a store");
        outcomes
    }

    /// Stores blocks that are not there.
    pub(super) async fn put(&self, keys: &[BlockKey]) {
        let stored = self.store(keys).await;
        assert!(stored.iter().all(|stored| matches!(stored, Ok(Stored::Written))), "{stored:?}");
    }

    pub(super) fn outgoing(&self, keys: &[BlockKey]) -> Vec<(BlockKey, Outgoing)> {
        outgoing(&self.memory, keys)
    }

    pub(super) fn targets(&self, keys: &[BlockKey]) -> Vec<(BlockKey, MutableBlock)> {
        targets(&self.memory, keys)
    }

    /// Loads blocks and returns the reasons of misses, whose targets must be back; a hit must be what
    /// was stored.
    pub(super) async fn load(&self, keys: &[BlockKey]) -> Vec<Option<MissReason>> {
        check(self.tier.load(self.targets(keys)).await, keys)
    }

    /// Loads blocks that must be there.
    pub(super) async fn has(&self, keys: &[BlockKey]) {
        let missed = self.load(keys).await;
        assert!(missed.iter().all(Option::is_none), "{missed:?}");
    }

    /// Loads blocks that must not be there.
    pub(super) async fn lacks(&self, keys: &[BlockKey]) {
        let missed = self.load(keys).await;
        let is_absent = |reason: &Option<_>| matches!(reason, Some(MissReason::Absent));
        assert!(missed.iter().all(is_absent), "{missed:?}");
    }

    /// Waits until the tier says that of `keys` just these are there, and no others.
    pub(super) async fn says(&self, keys: &[BlockKey], there: &[BlockKey]) {
        let told = async {
            while self.said(keys) != there || self.tier.stats().blocks != there.len() {
                tokio::task::yield_now().await;
            }
        };
        let is_told = tokio::time::timeout(PATIENCE, told).await.is_ok();
        assert!(is_told, "it says {:?}, not {there:?}", self.said(keys));
    }

    /// Loads the blocks that the tier says are there.
    pub(super) async fn has_what_it_says(&self, keys: &[BlockKey]) {
        let agreed = async {
            // Others' blocks are told of a little later; one's own at once.
            loop {
                let said = self.said(keys);
                let found =
                    said.iter().map(|key| self.tier.match_prefix(std::slice::from_ref(key)));
                if futures::future::join_all(found).await.iter().all(|found| *found == 1) {
                    break said;
                }
                tokio::task::yield_now().await;
            }
        };
        let said = tokio::time::timeout(PATIENCE, agreed).await.expect("what is said is found");
        self.has(&said).await;
    }

    /// Returns which blocks the tier has said are there, in the order of `keys`.
    fn said(&self, keys: &[BlockKey]) -> Vec<BlockKey> {
        let said = lock(&self.said);
        keys.iter().filter(|key| said.get(&key.identity) == Some(key)).copied().collect()
    }

    /// Waits until nothing holds memory.
    pub(super) async fn rests(&self) {
        let rest = async {
            while self.memory.stats().free + self.memory.stats().cached < BLOCKS as usize {
                tokio::task::yield_now().await;
            }
        };
        let rest = tokio::time::timeout(PATIENCE, rest).await;
        assert!(rest.is_ok(), "memory is held: {:?}", self.memory.stats());
    }

    pub(super) async fn shutdown(&self) {
        self.tier.shutdown(PATIENCE).await.expect("shuts down");
    }
}

pub(super) fn memory(layout: BlockLayout) -> BlockManager {
    let config = ManagerConfig::new(layout, BLOCKS as usize);
    let worker = WorkerId::new(InstanceId(1));
    BlockManager::new(config, worker, Box::new(|_| {})).expect("a manager")
}

/// Returns the keys of so many blocks that follow each other and have nothing in common with those of
/// another chain.
pub(super) fn keys(chain: u32, count: u32) -> Vec<BlockKey> {
    let tokens: Vec<u32> = (0..8 * count).map(|token| (chain << 16) + token).collect();
    let size = BlockSize::new(8).expect("more than none");
    TokenSequence::new(&CacheNamespace::model("conformance"), size, &tokens).keys().to_vec()
}

pub(super) fn outgoing(memory: &BlockManager, keys: &[BlockKey]) -> Vec<(BlockKey, Outgoing)> {
    let blocks = targets(memory, keys).into_iter().map(|(key, mut block)| {
        let truth = truth(&key, block.len());
        block.copy_from_slice(&truth);
        block.complete(key)
    });
    let blocks = memory.register_all(blocks.collect()).into_iter().map(Outgoing::from);
    keys.iter().copied().zip(blocks).collect()
}

pub(super) fn targets(memory: &BlockManager, keys: &[BlockKey]) -> Vec<(BlockKey, MutableBlock)> {
    let blocks = memory.allocate(keys.len()).expect("room in memory");
    keys.iter().copied().zip(blocks).collect()
}

pub(super) fn check(outcomes: Vec<LoadedBlock>, keys: &[BlockKey]) -> Vec<Option<MissReason>> {
    assert_eq!(outcomes.len(), keys.len(), "outcomes of a load");
    let outcomes = outcomes.into_iter().zip(keys).map(|(outcome, key)| match outcome {
        Ok(loaded) => {
            assert_eq!(loaded.key().identity, key.identity, "another block");
            let bytes = loaded.into_target();
            assert!(bytes[..] == truth(key, bytes.len())[..], "wrong bytes of {key:?}");
            None
        }
        Err(miss) => {
            assert!(miss.target.is_some(), "{:?} without the target", miss.reason);
            Some(miss.reason)
        }
    });
    outcomes.collect()
}

/// Polls a future so many times, and lets what else there is run; returns what it came to.
pub(super) async fn step<F: Future + ?Sized>(
    future: &mut Pin<Box<F>>,
    polls: usize,
) -> Option<F::Output> {
    for _ in 0..polls {
        if let std::task::Poll::Ready(done) = futures::poll!(&mut *future) {
            return Some(done);
        }
        tokio::task::yield_now().await;
    }
    None
}

/// What is in a block: different everywhere.
fn truth(key: &BlockKey, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new_keyed(&key.identity.0).finalize_xof().fill(&mut bytes);
    bytes
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Longer than anything takes that is not lost.
const PATIENCE: Duration = Duration::from_secs(20);

/// After how many polls of a call something else happens, at most: in the middle of each step of one.
pub(super) const POLLS: u32 = 12;
