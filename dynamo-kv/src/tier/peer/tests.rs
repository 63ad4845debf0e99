use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use dynamo_core::protocol::{BlockSize, CacheNamespace, InstanceId, WorkerId};
use dynamo_core::{Context, Engine, ErrorKind, Result, Runtime, ServeOptions, engine_fn};
use dynamo_transfer::{Agent, AgentConfig, MemoryFabric, RemoteAgent, TransferOptions};

use super::message::{Ask, Lent, Place, Told, Wanted};
use super::*;
use crate::identity::BlockKey;
use crate::layout::{BlockLayout, DType, RankLayout};
use crate::manager::{BlockManager, ManagerConfig};
use crate::sequence::TokenSequence;
use crate::tier::{Damage, Miss, MissReason, StoreError, digest};

mod reach;

const TTL: Duration = Duration::from_secs(10);

fn layout() -> RankLayout {
    BlockLayout::new(2, 1, 4, BlockSize::DEFAULT, DType::F32).unwrap().into()
}

fn manager(blocks: usize) -> BlockManager {
    let worker = WorkerId::new(InstanceId(1));
    BlockManager::new(ManagerConfig::new(layout(), blocks), worker, Box::new(|_| {})).unwrap()
}

fn keys(blocks: u32) -> Vec<BlockKey> {
    let tokens: Vec<u32> = (0..16 * blocks).collect();
    TokenSequence::new(&CacheNamespace::model("m"), BlockSize::DEFAULT, &tokens).keys().to_vec()
}

/// Shares blocks that are full of their positions.
fn fill(manager: &BlockManager, keys: &[BlockKey]) {
    let blocks = manager.allocate(keys.len()).unwrap().into_iter().zip(keys);
    let blocks = blocks.map(|(mut block, key)| {
        block.fill(u8::try_from(key.position).unwrap());
        block.complete(*key)
    });
    drop(manager.register_all(blocks.collect()));
}

struct World {
    owner: Owner,
    manager: BlockManager,
    /// The agent of a client.
    agent: Agent,
}

async fn world(blocks: usize, config: OwnerConfig) -> World {
    let fabric = MemoryFabric::new();
    let agent =
        |name| Agent::start(AgentConfig::default().with_name(name).with_fabric(fabric.clone()));
    let manager = manager(blocks);
    let owner = agent("owner").await.unwrap();
    let owner = Owner::new(owner, manager.clone(), config.with_ttl(TTL)).unwrap();
    World { owner, manager, agent: agent("client").await.unwrap() }
}

impl World {
    async fn ask(&self, ask: Ask) -> Result<Told> {
        let mut answers =
            self.owner.generate(Context::new(), Request(ask)).await?.collect().await?;
        Ok(answers.remove(0).0)
    }

    async fn borrow(&self, client: u64, keys: &[BlockKey]) -> Result<Option<Lent>> {
        match self.ask(Ask::Borrow(wanted(client, keys))).await? {
            Told::Lent { lent, .. } => Ok(lent),
            told => panic!("{told:?}"),
        }
    }

    async fn reserve(&self, client: u64, keys: &[BlockKey]) -> (Vec<Place>, Option<Lent>) {
        match self.ask(Ask::Reserve(wanted(client, keys))).await.unwrap() {
            Told::Reserved { blocks, lent } => (blocks, lent),
            told => panic!("{told:?}"),
        }
    }

    fn peer(&self, lent: &Lent) -> RemoteAgent {
        self.agent.load_metadata(&lent.metadata).unwrap()
    }

    /// Writes blocks full of their positions to what is lent.
    async fn write(&self, lent: &Lent, keys: &[BlockKey]) -> dynamo_transfer::Result<()> {
        let source = self.agent.register(keys.iter().map(bytes).collect())?;
        let len = source.len();
        let remote = self.peer(lent).regions()[0].descriptor([(0, len)])?;
        let options = TransferOptions::default();
        self.agent.write(source.descriptor([(0, len)])?, remote, options).await.map(drop)
    }

    async fn commit(&self, lent: &Lent, keys: &[BlockKey]) -> Result<Vec<bool>> {
        let digests = keys.iter().map(|key| digest(&key.identity, &bytes(key))).collect();
        match self.ask(Ask::Commit { lease: lent.lease, digests }).await? {
            Told::Committed(taken) => Ok(taken),
            told => panic!("{told:?}"),
        }
    }

    /// Nothing is lent, held or written.
    fn assert_at_rest(&self) {
        let stats = self.manager.stats();
        assert_eq!((stats.mutable, stats.complete, stats.active), (0, 0, 0), "{stats:?}");
        assert_eq!(stats.free + stats.cached, stats.capacity);
        assert_eq!(self.owner.lent_blocks(), 0);
    }
}

fn wanted(client: u64, keys: &[BlockKey]) -> Wanted {
    Wanted { client, fingerprint: layout().fingerprint(), keys: keys.to_vec() }
}

fn bytes(key: &BlockKey) -> Vec<u8> {
    vec![u8::try_from(key.position).unwrap(); layout().block_bytes()]
}

/// Passes time, and lets tasks see it.
async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_client_that_died_had_is_back_when_its_time_is_over() {
    let world = world(8, OwnerConfig::new(8)).await;
    let keys = keys(8);
    fill(&world.manager, &keys[..4]);
    let lent = world.borrow(1, &keys[..4]).await.unwrap().unwrap();
    let (places, reserved) = world.reserve(1, &keys[4..]).await;
    assert_eq!(places, [Place::Open; 4]);
    let reserved = reserved.unwrap();
    let stats = world.manager.stats();
    assert_eq!((world.owner.lent_blocks(), stats.active, stats.mutable), (8, 4, 4));
    pass(TTL - Duration::from_millis(1)).await;
    assert_eq!(world.owner.lent_blocks(), 8);
    pass(Duration::from_millis(2)).await;
    world.assert_at_rest();

    // Whoever comes late is refused, and nothing is shared.
    let target = world.agent.register_mut(vec![vec![0; layout().block_bytes()]]).unwrap();
    let (local, remote) =
        (target.descriptor([(0, 8)]), world.peer(&lent).regions()[0].descriptor([(0, 8)]));
    world
        .agent
        .read(local.unwrap(), remote.unwrap(), TransferOptions::default())
        .await
        .unwrap_err();
    world.write(&reserved, &keys[4..]).await.unwrap_err();
    let error = world.commit(&reserved, &keys[4..]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(world.manager.match_prefix(&keys).len(), 4);
}

#[tokio::test]
async fn a_block_is_found_once_it_is_committed_with_its_digest_and_not_before() {
    let world = world(8, OwnerConfig::new(8)).await;
    let keys = keys(3);
    let lent = world.reserve(1, &keys).await.1.unwrap();
    world.write(&lent, &keys).await.unwrap();
    assert_eq!(world.manager.match_prefix(&keys).len(), 0);
    // The second one is not what was written.
    let mut digests: Vec<_> = keys.iter().map(|key| digest(&key.identity, &bytes(key))).collect();
    digests[1][0] ^= 1;
    let told = world.ask(Ask::Commit { lease: lent.lease, digests }).await.unwrap();
    assert!(matches!(told, Told::Committed(taken) if taken == [true, false, true]));
    assert_eq!(world.manager.match_prefix(&keys).len(), 1);
    world.assert_at_rest();
    // Written once, and not again.
    world.write(&lent, &keys).await.unwrap_err();
    assert_eq!(world.commit(&lent, &keys).await.unwrap_err().kind(), ErrorKind::NotFound);

    let (places, lent) = world.reserve(1, &keys).await;
    assert_eq!(places, [Place::Present, Place::Open, Place::Present]);
    let lent = lent.unwrap();
    world.write(&lent, &keys[1..2]).await.unwrap();
    assert_eq!(world.commit(&lent, &keys[1..2]).await.unwrap(), [true]);
    let found = world.manager.match_prefix(&keys);
    assert!(found.iter().zip(&keys).all(|(block, key)| block[..] == bytes(key)[..]));
    assert_eq!(found.len(), 3);
    drop(found);
    world.assert_at_rest();
}

#[tokio::test]
async fn no_more_is_lent_than_the_config_says() {
    let config = OwnerConfig::new(10).with_client_limits(4, 2);
    let world = world(16, config).await;
    let keys = keys(16);
    fill(&world.manager, &keys);
    let refused = |outcome: Result<Option<Lent>>| outcome.map(drop).unwrap_err();
    let told = world.ask(Ask::Borrow(wanted(1, &keys[..5]))).await.unwrap();
    assert!(matches!(told, Told::TooMany(4)), "{told:?}");
    assert_eq!(refused(world.borrow(1, &[]).await).kind(), ErrorKind::InvalidArgument);
    let first = world.borrow(1, &keys[..4]).await.unwrap().unwrap();
    world.borrow(1, &keys[..4]).await.unwrap().unwrap();
    let error = refused(world.borrow(1, &keys[..1]).await);
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Overloaded, true));
    // Another client has what is left of all.
    assert_eq!(refused(world.borrow(2, &keys[..3]).await).kind(), ErrorKind::Overloaded);
    world.borrow(2, &keys[..2]).await.unwrap().unwrap();
    assert_eq!(world.owner.lent_blocks(), 10);
    assert!(matches!(world.ask(Ask::Release(first.lease)).await.unwrap(), Told::Released));
    world.borrow(1, &keys[..4]).await.unwrap().unwrap();
    world.owner.shutdown().await;
    world.assert_at_rest();
    assert_eq!(refused(world.borrow(1, &keys[..1]).await).kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn blocks_that_are_not_there_or_have_no_room_hold_nothing() {
    let world = world(2, OwnerConfig::new(8)).await;
    let keys = keys(4);
    assert!(world.borrow(1, &keys).await.unwrap().is_none());
    world.assert_at_rest();
    let (places, lent) = world.reserve(1, &keys).await;
    assert_eq!(places, [Place::Open, Place::Open, Place::None, Place::None]);
    assert_eq!(world.owner.lent_blocks(), 2);
    world.ask(Ask::Release(lent.unwrap().lease)).await.unwrap();
    world.assert_at_rest();
    let other = Wanted { fingerprint: 1, ..wanted(1, &keys) };
    let error = world.ask(Ask::Borrow(other)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    for config in [
        OwnerConfig::new(0),
        OwnerConfig::new(1).with_ttl(Duration::MAX),
        OwnerConfig::new(1).with_client_limits(0, 1),
    ] {
        let owner = Owner::new(world.agent.clone(), world.manager.clone(), config);
        assert_eq!(owner.unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
}

/// How an owner lies; it does so as long as it is told to.
const LIES: [(u8, &str); 6] = [
    (1, "another digest"),
    (2, "fewer blocks"),
    (3, "no region"),
    (4, "another answer"),
    (5, "no metadata"),
    (6, "nothing taken"),
];

fn lie(kind: u8, told: Told) -> Told {
    match (kind, told) {
        (1, Told::Lent { mut blocks, lent }) => {
            blocks.iter_mut().flatten().for_each(|digest| digest[5] ^= 4);
            Told::Lent { blocks, lent }
        }
        (2, Told::Lent { mut blocks, lent }) => {
            blocks.pop();
            Told::Lent { blocks, lent }
        }
        (2, Told::Reserved { mut blocks, lent }) => {
            blocks.pop();
            Told::Reserved { blocks, lent }
        }
        (3, Told::Lent { blocks, .. }) => Told::Lent { blocks, lent: None },
        (3, Told::Reserved { blocks, .. }) => Told::Reserved { blocks, lent: None },
        (4, _) => Told::Released,
        (5, Told::Lent { blocks, lent: Some(lent) }) => {
            Told::Lent { blocks, lent: Some(Lent { metadata: "none".into(), ..lent }) }
        }
        (5, Told::Reserved { blocks, lent: Some(lent) }) => {
            Told::Reserved { blocks, lent: Some(Lent { metadata: "none".into(), ..lent }) }
        }
        (6, Told::Committed(taken)) => Told::Committed(vec![false; taken.len()]),
        (_, told) => told,
    }
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_answers_nonsense_gives_misses_and_failed_stores() {
    let world = world(8, OwnerConfig::new(8)).await;
    let keys = keys(4);
    fill(&world.manager, &keys[..2]);
    let kind = Arc::new(AtomicU8::new(0));
    let (lying, owner) = (Arc::clone(&kind), world.owner.clone());
    let liar = engine_fn(move |ctx: Context, request: Request| {
        let (owner, kind) = (owner.clone(), lying.load(Ordering::SeqCst));
        async move {
            let answers = owner.generate(ctx, request).await?;
            Ok(answers.map(move |answer| Ok(Answer(lie(kind, answer.0)))))
        }
    });
    let runtime = Runtime::in_process();
    let endpoint = runtime.namespace("n").unwrap().component("c").unwrap().endpoint("e").unwrap();
    let options = ServeOptions::default().with_instance(InstanceId(7));
    let _serving = endpoint.serve_with(liar, options).await.unwrap();
    let client = endpoint.client().await.unwrap();
    let config = PeerConfig::default();
    let tier =
        PeerTier::new(client, InstanceId(7), world.agent.clone(), &layout(), config).unwrap();
    let here = manager(4);
    fill(&here, &keys);
    for (number, lie) in LIES {
        kind.store(number, Ordering::SeqCst);
        let there = tier.match_prefix(&keys).await;
        assert_eq!(there, if number == 4 { 0 } else { 2 }, "{lie}");
        if number < 6 {
            let spare = manager(2);
            let targets = keys[..2].iter().copied().zip(spare.allocate(2).unwrap());
            for outcome in tier.load(targets.collect()).await {
                let miss = outcome.map(drop).unwrap_err();
                let is_damage = matches!(miss.reason, MissReason::Damaged(Damage::Digest));
                assert_eq!(is_damage, number == 1, "{lie}: {miss:?}");
                assert!(miss.target.is_some(), "{lie}");
            }
            assert_eq!(spare.stats().free, 2);
        }
        if number > 1 {
            let blocks = here.match_prefix(&keys[2..]).into_iter().zip(&keys[2..]);
            let blocks = blocks.map(|(block, key)| (*key, block.into()));
            let stored = tier.store(blocks.collect()).await;
            assert!(
                stored.iter().all(|stored| matches!(stored, Err(StoreError::Io(_)))),
                "{lie}: {stored:?}"
            );
            assert_eq!(stored.len(), 2);
            if number == 6 {
                // It has them and says it has not: that is no harm.
                world.manager.clear();
            }
        }
        // What no client knows of ends at its time, and the rest as soon as it is of no use.
        pass(if matches!(number, 3 | 4) { TTL * 2 } else { TTL / 10 }).await;
        world.assert_at_rest();
    }
    kind.store(0, Ordering::SeqCst);
    fill(&world.manager, &keys[..2]);
    // As many regions as an agent has.
    let regions = std::iter::from_fn(|| world.agent.register(vec![vec![0]]).ok());
    let regions: Vec<_> = regions.collect();
    let spare = manager(2).allocate(2).unwrap();
    let missed = tier.load(keys[..2].iter().copied().zip(spare).collect()).await;
    assert!(missed.into_iter().all(|miss| matches!(miss, Err(Miss { target: None, .. }))));
    pass(TTL / 10).await;
    world.assert_at_rest();
    drop(regions);
    tier.shutdown(TTL).await.unwrap();
    let target = manager(1).allocate(1).unwrap().remove(0);
    let miss = tier.load(vec![(keys[0], target)]).await.remove(0).map(drop).unwrap_err();
    assert!(matches!(miss.reason, MissReason::Closed));
}
