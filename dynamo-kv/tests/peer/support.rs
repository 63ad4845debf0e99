use std::sync::Arc;
use std::time::Duration;

use dynamo_core::discovery::{Discovery, MemoryDiscovery};
use dynamo_core::event_plane::MemoryEventPlane;
use dynamo_core::protocol::{BlockSize, InstanceId, LocalHash, SequenceHash, WorkerId};
use dynamo_core::request_plane::{MemoryRequestPlane, TcpConfig, TcpRequestPlane};
use dynamo_core::{Endpoint, Runtime, ServeOptions, Serving};
use dynamo_kv::layout::RankLayout;
use dynamo_kv::tier::peer::{Answer, Owner, OwnerConfig, PeerConfig, PeerTier, Request};
use dynamo_kv::tier::{Miss, StoreError, Stored, Tier as _, TierChange};
use dynamo_kv::{
    BlockIdentity, BlockKey, BlockLayout, BlockManager, DType, ManagerConfig, RegisteredBlock,
    TiersConfig,
};
use dynamo_transfer::{Agent, AgentConfig, MemoryFabric};
use tokio::sync::mpsc::{Receiver, channel};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const OWNER: InstanceId = InstanceId(7);

/// What processes have in common.
pub(crate) enum Ground {
    /// All are one process: one runtime, one fabric.
    Memory(Runtime, MemoryFabric),
    /// Each has planes and an agent of its own, over TCP.
    Tcp(Arc<dyn Discovery>),
}

/// One process, as far as requests and bytes are concerned.
pub(crate) struct Process {
    pub(crate) runtime: Runtime,
    pub(crate) agent: Agent,
}

impl Ground {
    pub(crate) fn memory() -> Self {
        let discovery = Arc::new(MemoryDiscovery::default());
        let plane = Arc::new(MemoryRequestPlane::default());
        let runtime = Runtime::new(discovery, plane, Arc::new(MemoryEventPlane::default()));
        Self::Memory(runtime, MemoryFabric::new())
    }

    pub(crate) fn tcp() -> Self {
        Self::Tcp(Arc::new(MemoryDiscovery::default()))
    }

    pub(crate) async fn process(&self, name: &str) -> Process {
        let config = AgentConfig::default().with_name(name);
        let (runtime, config) = match self {
            Self::Memory(runtime, fabric) => (runtime.clone(), config.with_fabric(fabric.clone())),
            Self::Tcp(discovery) => {
                let loopback = "127.0.0.1:0".parse().unwrap();
                let plane = TcpConfig::default().with_listen(loopback);
                let plane = Arc::new(TcpRequestPlane::start(plane).await.unwrap());
                let events = Arc::new(MemoryEventPlane::default());
                let runtime = Runtime::new(Arc::clone(discovery), plane, events);
                (runtime, config.with_shm(false).with_tcp_listen(loopback))
            }
        };
        Process { runtime, agent: Agent::start(config).await.unwrap() }
    }
}

impl Process {
    fn endpoint(&self) -> Endpoint<Request, Answer> {
        let namespace = self.runtime.namespace("tests").unwrap();
        namespace.component("cache").unwrap().endpoint("blocks").unwrap()
    }

    pub(crate) async fn serve(
        &self,
        manager: &BlockManager,
        config: OwnerConfig,
        incarnation: u64,
    ) -> (Owner, Serving) {
        let owner = Owner::new(self.agent.clone(), manager.clone(), config).unwrap();
        let options = ServeOptions::default().with_instance(OWNER).with_incarnation(incarnation);
        let serving = self.endpoint().serve_with(owner.clone(), options).await.unwrap();
        (owner, serving)
    }

    pub(crate) async fn tier(&self, config: PeerConfig) -> PeerTier {
        self.tier_of(&layout(), config).await
    }

    pub(crate) async fn tier_of(&self, layout: &RankLayout, config: PeerConfig) -> PeerTier {
        let client = self.endpoint().client().await.unwrap();
        client.wait_ready(PATIENCE).await.unwrap();
        PeerTier::new(client, OWNER, self.agent.clone(), layout, config).unwrap()
    }

    pub(crate) async fn end(self) {
        self.agent.shutdown().await;
        self.runtime.shutdown(PATIENCE).await.unwrap();
    }
}

/// Blocks of 1 KiB.
pub(crate) fn layout() -> RankLayout {
    BlockLayout::new(2, 1, 8, BlockSize::new(8).unwrap(), DType::F32).unwrap().into()
}

pub(crate) fn manager(blocks: usize) -> BlockManager {
    manager_above(blocks, TiersConfig::default())
}

pub(crate) fn manager_above(blocks: usize, tiers: TiersConfig) -> BlockManager {
    let config = ManagerConfig::new(layout(), blocks).with_tiers(tiers);
    BlockManager::new(config, WorkerId::new(InstanceId(1)), Box::new(|_| {})).unwrap()
}

/// The key of one of any number of blocks; ten follow each other.
pub(crate) fn key(number: u32) -> BlockKey {
    let identity = |number: u32| BlockIdentity(*blake3::hash(&number.to_le_bytes()).as_bytes());
    let parent = (!number.is_multiple_of(10)).then(|| number - 1);
    BlockKey {
        identity: identity(number),
        parent: parent.map(identity),
        sequence: SequenceHash(number.into()),
        parent_sequence: parent.map(|parent| SequenceHash(parent.into())),
        local: LocalHash(!u64::from(number)),
        position: number % 10,
        chain: (number / 10).into(),
    }
}

pub(crate) fn keys(numbers: impl IntoIterator<Item = u32>) -> Vec<BlockKey> {
    numbers.into_iter().map(key).collect()
}

/// What is in a block: different everywhere.
pub(crate) fn truth(key: &BlockKey) -> Vec<u8> {
    let mut bytes = vec![0; layout().block_bytes()];
    blake3::Hasher::new_keyed(&key.identity.0).finalize_xof().fill(&mut bytes);
    bytes
}

/// Has as many of the blocks as there is room for.
pub(crate) fn fill(manager: &BlockManager, keys: &[BlockKey]) -> Vec<(BlockKey, RegisteredBlock)> {
    let mut blocks = Vec::new();
    for key in keys {
        let Ok(mut block) = manager.allocate(1).map(|mut blocks| blocks.remove(0)) else { break };
        block.copy_from_slice(&truth(key));
        blocks.push((*key, manager.register(block.complete(*key))));
    }
    blocks
}

pub(crate) async fn store(
    tier: &PeerTier,
    from: &BlockManager,
    numbers: impl IntoIterator<Item = u32>,
) -> Vec<Result<Stored, StoreError>> {
    let blocks = fill(from, &keys(numbers)).into_iter();
    tier.store(blocks.map(|(key, block)| (key, block.into())).collect()).await
}

/// Loads blocks; each hit must be what was stored. Returns the misses.
pub(crate) async fn load(
    tier: &PeerTier,
    into: &BlockManager,
    numbers: impl IntoIterator<Item = u32>,
) -> Vec<Miss<dynamo_kv::MutableBlock>> {
    let keys = keys(numbers);
    let targets = into.allocate(keys.len()).unwrap();
    let outcomes = tier.load(keys.iter().copied().zip(targets).collect()).await;
    assert_eq!(outcomes.len(), keys.len());
    let mut misses = Vec::new();
    for (outcome, key) in outcomes.into_iter().zip(keys) {
        match outcome {
            Ok(loaded) => {
                assert_eq!(loaded.key(), key, "another block");
                assert!(loaded.into_target()[..] == truth(&key)[..], "wrong bytes");
            }
            Err(miss) => misses.push(miss),
        }
    }
    misses
}

/// Has the tier follow its owner, and what it tells queued.
pub(crate) fn listen(tier: &PeerTier) -> Receiver<TierChange> {
    let (sender, heard) = channel(1 << 16);
    let there = tier.watch(Box::new(move |change| {
        // Nobody may listen any more.
        let _ = sender.try_send(change);
    }));
    assert!(there.is_empty(), "it has asked nobody");
    heard
}

/// Waits for a change that is wanted; returns it and those before it.
pub(crate) async fn hear(
    heard: &mut Receiver<TierChange>,
    mut is_wanted: impl FnMut(&TierChange) -> bool,
) -> Vec<TierChange> {
    let mut changes = Vec::new();
    let hearing = async {
        loop {
            let change = heard.recv().await.unwrap();
            changes.push(change);
            if is_wanted(&change) {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, hearing).await.unwrap();
    changes
}

/// Waits until nothing is lent, and looks at the owner's pool then.
pub(crate) async fn at_rest(owner: &Owner, manager: &BlockManager) {
    let rest = async {
        while owner.lent_blocks() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, rest).await.unwrap();
    let stats = manager.stats();
    assert_eq!((stats.mutable, stats.complete, stats.active), (0, 0, 0), "{stats:?}");
    assert_eq!(stats.free + stats.cached, stats.capacity);
}
