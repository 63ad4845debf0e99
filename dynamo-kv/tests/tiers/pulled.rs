//! Hand-offs to a worker that has tiers below its memory.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dynamo_core::ErrorKind;
use dynamo_core::protocol::{self, BlockSize, CacheNamespace};
use dynamo_kv::tier::Tier;
use dynamo_kv::{
    BlockManager, Handoff, HandoffConfig, Offload, Pulled, Staged, TierConfig, TiersConfig,
    TokenSequence,
};
use dynamo_transfer::{Agent, AgentConfig, MemoryFabric};
use futures::poll;

use super::support::*;

const BLOCKS: u32 = 8;

/// The sequence of `keys(0, BLOCKS)`.
fn sequence() -> TokenSequence {
    let tokens: Vec<u32> = (0..BLOCKS).collect();
    TokenSequence::new(&CacheNamespace::default(), BlockSize::new(1).unwrap(), &tokens)
}

async fn handoff(fabric: &MemoryFabric, manager: &BlockManager, config: HandoffConfig) -> Handoff {
    let agent = Agent::start(AgentConfig::default().with_fabric(fabric.clone())).await.unwrap();
    Handoff::new(agent, manager.clone(), config).unwrap()
}

/// A prefill worker that has staged the sequence.
struct Prefill {
    manager: BlockManager,
    handoff: Handoff,
    staged: Staged,
}

impl Prefill {
    async fn start(fabric: &MemoryFabric) -> Self {
        let (manager, _) = manager(16, TiersConfig::default());
        let handoff = handoff(fabric, &manager, HandoffConfig::default()).await;
        let keys = keys(0, BLOCKS);
        let blocks = compute(manager.allocate(keys.len()).unwrap(), &keys);
        let staged = handoff.stage(manager.register_all(blocks).into(), None).unwrap();
        Self { manager, handoff, staged }
    }

    fn assert_at_rest(&self) {
        let stats = self.manager.stats();
        assert_eq!((stats.active, stats.free + stats.cached), (0, stats.capacity));
        assert_eq!(self.handoff.staged_blocks(), 0);
    }
}

/// A decode worker of 16 blocks whose disk has the first ones of the sequence, and whose memory none.
struct Decode {
    manager: BlockManager,
    handoff: Handoff,
    gate: Arc<Gate>,
    _scratch: Scratch,
}

impl Decode {
    async fn start(fabric: &MemoryFabric, blocks: u32, config: HandoffConfig) -> Self {
        let scratch = Scratch::new();
        let gate = Gate::new(scratch.disk(64).await, protocol::Tier::Disk);
        let tier = TierConfig::new(gate.clone()).with_offload(Offload::WriteThrough);
        let tiers = TiersConfig::default().with_tier(tier);
        let tiers = tiers.with_reserve_timeout(PATIENCE);
        let (manager, _) = manager(16, tiers);
        gate.stores.add_permits(1);
        fill(&manager, &keys(0, blocks));
        written(&manager, TiersConfig::default().queue_blocks).await;
        until(|| Tier::stats(&*gate).blocks == blocks as usize).await;
        manager.clear();
        gate.stores.forget_permits(1);
        let handoff = handoff(fabric, &manager, config).await;
        Self { manager, handoff, gate, _scratch: scratch }
    }

    async fn pull(&self, prefill: &Prefill) -> dynamo_core::Result<Pulled> {
        let pulled = self.handoff.pull([prefill.staged.ticket()], &sequence(), None).await?;
        assert_eq!(pulled.blocks.len(), BLOCKS as usize);
        for (block, key) in pulled.blocks.iter().zip(keys(0, BLOCKS)) {
            let mut truth = vec![0; block.len()];
            write(&key.identity, &mut truth);
            assert!((block.identity(), &block[..]) == (&key.identity, &truth[..]), "wrong bytes");
        }
        Ok(pulled)
    }
}

/// Pulls are as slow as this, until one was measured.
fn pulls_of(pull_time: Duration) -> HandoffConfig {
    HandoffConfig::default().with_pull_time(pull_time)
}

#[tokio::test]
async fn what_is_on_the_disk_is_loaded_and_only_the_rest_is_pulled() {
    let fabric = MemoryFabric::new();
    let mut prefill = Prefill::start(&fabric).await;
    let decode = Decode::start(&fabric, 5, pulls_of(PATIENCE)).await;
    Gate::open(&decode.gate.loads);
    let pulled = decode.pull(&prefill).await.unwrap();
    assert_eq!((pulled.sources.disk, pulled.report.blocks_cached), (5, 5));
    assert_eq!(pulled.report.blocks_pulled, 3);
    assert_eq!(pulled.report.bytes, 3 * decode.manager.layout().block_bytes() as u64);
    prefill.staged.settled().await;
    prefill.assert_at_rest();
}

#[tokio::test]
async fn what_is_pulled_sooner_is_not_loaded() {
    let fabric = MemoryFabric::new();
    let prefill = Prefill::start(&fabric).await;
    let decode = Decode::start(&fabric, 5, pulls_of(Duration::from_nanos(1))).await;
    Gate::open(&decode.gate.loads);
    let pulled = decode.pull(&prefill).await.unwrap();
    assert_eq!((pulled.sources.disk, pulled.report.blocks_pulled), (0, BLOCKS));
    assert_eq!(decode.gate.loading.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_disk_that_does_not_answer_delays_a_pull_by_its_own_time_and_eats_no_claim() {
    let fabric = MemoryFabric::new();
    let prefill = Prefill::start(&fabric).await;
    let decode = Decode::start(&fabric, 5, pulls_of(Duration::from_millis(10))).await;
    let pulled = decode.pull(&prefill).await.unwrap();
    assert_eq!(decode.gate.loading.load(Ordering::SeqCst), 1, "it was asked");
    assert_eq!((pulled.sources.disk, pulled.report.blocks_pulled), (0, BLOCKS));
    let stats = decode.manager.stats();
    assert_eq!((stats.mutable, stats.complete), (0, 0), "targets are free again");
}

#[tokio::test]
async fn a_pull_waits_for_room_while_blocks_go_down_and_has_claimed_nothing_meanwhile() {
    let fabric = MemoryFabric::new();
    let prefill = Prefill::start(&fabric).await;
    let decode = Decode::start(&fabric, 0, HandoffConfig::default()).await;
    fill(&decode.manager, &keys(1, 16));
    assert_eq!(decode.manager.stats().cached, 0, "they are held until they are down");
    let mut pull = Box::pin(decode.pull(&prefill));
    assert!(poll!(&mut pull).is_pending());
    let other = Decode::start(&fabric, 0, HandoffConfig::default()).await;
    let taken = other.pull(&prefill).await.unwrap();
    assert_eq!(taken.report.blocks_pulled, BLOCKS, "the hold is open for others");

    Gate::open(&decode.gate.stores);
    let error = pull.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "room came, the hold has gone: {error}");
    let prefill = Prefill::start(&fabric).await;
    fill(&decode.manager, &keys(2, 16));
    let pulled = decode.pull(&prefill).await.unwrap();
    assert_eq!(pulled.report.blocks_pulled, BLOCKS);
    let dropped = decode.manager.tiers().unwrap().tiers[0].offload_dropped_total;
    assert_eq!(dropped, 0, "what made room went down");
}
