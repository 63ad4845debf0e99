use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dynamo_core::protocol::{
    self, BlockSize, CacheNamespace, InstanceId, KvChange, KvEvent, SequenceHash, WorkerId,
};
use dynamo_core::random::Random;
use dynamo_kv::tier::disk::{DiskConfig, DiskTier};
use dynamo_kv::tier::{Loaded, Miss, Outgoing, StoreError, Stored, Tier, TierSink, TierStats};
use dynamo_kv::{
    Acquired, BlockIdentity, BlockKey, BlockLayout, BlockManager, BlockRun, DType, ManagerConfig,
    MutableBlock, TierConfig, TiersConfig, TokenSequence,
};
use tokio::sync::Semaphore;

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A directory that goes when the test ends.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        let name = format!("tiers-{:016x}", Random::unseeded().next_u64());
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn config(&self, blocks: u32) -> DiskConfig {
        DiskConfig::new(&self.0, blocks, layout().block_bytes(), 7)
    }

    pub(crate) async fn disk(&self, blocks: u32) -> Arc<DiskTier> {
        Arc::new(DiskTier::open(self.config(blocks)).await.unwrap())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Blocks of a token and 256 bytes.
pub(crate) fn layout() -> BlockLayout {
    BlockLayout::new(2, 1, 16, BlockSize::new(1).unwrap(), DType::F32).unwrap()
}

/// The keys of a sequence that has nothing in common with others.
pub(crate) fn keys(sequence: u32, blocks: u32) -> Vec<BlockKey> {
    let tokens: Vec<u32> = (0..blocks).map(|token| sequence * 1000 + token).collect();
    let size = BlockSize::new(1).unwrap();
    TokenSequence::new(&CacheNamespace::default(), size, &tokens).keys().to_vec()
}

/// The first keys of one of the sequences that oracles ask for.
pub(crate) fn any_keys(random: &mut Random) -> Vec<BlockKey> {
    const SEQUENCES: usize = 14;
    const BLOCKS: usize = 8;
    let mut below = |count| u32::try_from(random.below(count).unwrap()).unwrap();
    let sequence = below(SEQUENCES);
    keys(sequence, 1 + below(BLOCKS))
}

/// Polls a call so many times, unless it ends before, and drops it.
pub(crate) async fn give_up(call: impl Future, polls: usize) {
    let mut call = std::pin::pin!(call);
    for _ in 0..polls {
        if futures::poll!(&mut call).is_ready() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// Says something past what captures the output of tests.
pub(crate) fn say(what: &str) {
    std::io::Write::write_all(&mut std::io::stderr(), format!("{what}\n").as_bytes()).unwrap();
}

/// Writes what is in a block: it is different for each.
pub(crate) fn write(identity: &BlockIdentity, bytes: &mut [u8]) {
    bytes.chunks_mut(32).for_each(|bytes| bytes.copy_from_slice(&identity.0[..bytes.len()]));
}

pub(crate) fn check(blocks: &BlockRun, keys: &[BlockKey]) {
    for ((block, identity), key) in blocks.iter().zip(blocks.identities()).zip(keys) {
        assert_eq!(identity, key.identity, "another block");
        let mut truth = vec![0; block.len()];
        write(&key.identity, &mut truth);
        assert!(*block == truth[..], "wrong bytes of {key:?}");
    }
}

pub(crate) type Events = Arc<Mutex<Vec<KvEvent>>>;

/// A manager of `blocks` blocks, and what it publishes.
pub(crate) fn manager(blocks: usize, tiers: TiersConfig) -> (BlockManager, Events) {
    let events = Events::default();
    let heard = Arc::clone(&events);
    let config = ManagerConfig::new(layout(), blocks).with_tiers(tiers);
    let publish = Box::new(move |event| heard.lock().unwrap().push(event));
    let manager = BlockManager::new(config, WorkerId::new(InstanceId(1)), publish).unwrap();
    (manager, events)
}

/// Waits for its tiers for longer than any machine stalls, so that what they do is certain.
pub(crate) fn patient() -> TiersConfig {
    let never = Duration::from_secs(60 * 60);
    TiersConfig::default().with_acquire_timeout(never).with_reserve_timeout(never)
}

/// One tier that gets what is evicted.
pub(crate) fn over(tier: &Arc<impl Tier>) -> TiersConfig {
    patient().with_tier(TierConfig::new(tier.clone()))
}

/// Acquires a sequence, checks what came, and computes the rest.
pub(crate) async fn serve(manager: &BlockManager, keys: &[BlockKey]) -> Acquired {
    let mut acquired = manager.acquire(keys).await;
    check(&acquired.blocks, keys);
    assert_eq!(acquired.compute, acquired.blocks.len()..keys.len());
    let rest = &keys[acquired.compute.clone()];
    let blocks = compute(manager.reserve(rest.len()).await.unwrap(), rest);
    acquired.blocks.append(manager.register_all(blocks));
    acquired
}

pub(crate) fn compute(
    blocks: Vec<MutableBlock>,
    keys: &[BlockKey],
) -> Vec<dynamo_kv::CompleteBlock> {
    let blocks = blocks.into_iter().zip(keys).map(|(mut block, key)| {
        write(&key.identity, &mut block);
        block.complete(*key)
    });
    blocks.collect()
}

/// Puts a sequence into memory without waiting.
pub(crate) fn fill(manager: &BlockManager, keys: &[BlockKey]) {
    let blocks = manager.allocate(keys.len()).unwrap();
    drop(manager.register_all(compute(blocks, keys)));
}

/// Waits until something is so.
pub(crate) async fn until(is_so: impl Fn() -> bool) {
    let waited = async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waited).await.unwrap();
}

/// Waits until nothing is on its way down.
pub(crate) async fn written(manager: &BlockManager, spares: usize) {
    until(|| {
        let tiers = manager.tiers().unwrap();
        tiers.spares == spares && tiers.tiers.iter().all(|tier| tier.queued == 0)
    })
    .await;
}

/// Which tiers have which block by the events: nothing is stored or removed twice.
pub(crate) fn replay<'a>(
    changes: impl IntoIterator<Item = &'a KvChange>,
) -> BTreeMap<SequenceHash, Vec<protocol::Tier>> {
    let mut known: BTreeMap<SequenceHash, Vec<protocol::Tier>> = BTreeMap::new();
    for change in changes {
        match change {
            KvChange::BlockStored { blocks, tier, .. } => {
                for block in blocks {
                    let tiers = known.entry(block.sequence).or_default();
                    assert!(!tiers.contains(tier), "stored twice");
                    tiers.push(*tier);
                    tiers.sort_unstable();
                }
            }
            KvChange::BlockRemoved { sequence_hashes, tier } => {
                for hash in sequence_hashes {
                    let tiers = known.get_mut(hash).unwrap();
                    tiers.remove(tiers.iter().position(|known| known == tier).unwrap());
                    if tiers.is_empty() {
                        known.remove(hash);
                    }
                }
            }
            other => unreachable!("{other:?}"),
        }
    }
    known
}

/// A tier of another name whose loads and stores wait for permits.
#[derive(Debug)]
pub(crate) struct Gate {
    tier: Arc<DiskTier>,
    kind: protocol::Tier,
    pub(crate) loads: Semaphore,
    pub(crate) stores: Semaphore,
    /// Loads that have begun to wait.
    pub(crate) loading: AtomicUsize,
}

impl Gate {
    pub(crate) fn new(tier: Arc<DiskTier>, kind: protocol::Tier) -> Arc<Self> {
        let [loads, stores] = [(); 2].map(|()| Semaphore::new(0));
        Arc::new(Self { tier, kind, loads, stores, loading: AtomicUsize::new(0) })
    }

    pub(crate) fn open(semaphore: &Semaphore) {
        semaphore.add_permits(Semaphore::MAX_PERMITS / 2);
    }
}

#[async_trait]
impl Tier for Gate {
    fn kind(&self) -> protocol::Tier {
        self.kind
    }

    fn watch(&self, sink: Box<dyn TierSink>) -> Vec<BlockKey> {
        self.tier.watch(sink)
    }

    async fn match_prefix(&self, keys: &[BlockKey]) -> usize {
        DiskTier::match_prefix(&self.tier, keys)
    }

    async fn store(&self, blocks: Vec<(BlockKey, Outgoing)>) -> Vec<Result<Stored, StoreError>> {
        let _open = self.stores.acquire().await;
        Tier::store(&*self.tier, blocks).await
    }

    async fn load(
        &self,
        targets: Vec<(BlockKey, MutableBlock)>,
    ) -> Vec<Result<Loaded<MutableBlock>, Miss<MutableBlock>>> {
        self.loading.fetch_add(1, Ordering::SeqCst);
        let _open = self.loads.acquire().await;
        Tier::load(&*self.tier, targets).await
    }

    async fn remove(&self, keys: &[BlockKey]) -> dynamo_core::Result<usize> {
        Tier::remove(&*self.tier, keys).await
    }

    async fn clear(&self) -> dynamo_core::Result<()> {
        Tier::clear(&*self.tier).await
    }

    fn estimate(&self, blocks: usize) -> Duration {
        self.tier.estimate(blocks)
    }

    fn stats(&self) -> TierStats {
        Tier::stats(&*self.tier)
    }

    async fn shutdown(&self, within: Duration) -> dynamo_core::Result<()> {
        Tier::shutdown(&*self.tier, within).await
    }
}
