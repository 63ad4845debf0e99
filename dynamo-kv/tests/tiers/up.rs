use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dynamo_core::protocol;
use dynamo_kv::evict::BlockCost;
use dynamo_kv::tier::Tier;
use dynamo_kv::tier::disk::DiskTier;
use dynamo_kv::{Sources, TierConfig, TiersConfig};
use futures::poll;

use super::support::*;

#[tokio::test]
async fn the_second_pass_comes_from_the_disk_byte_for_byte_and_after_a_restart_all_of_it() {
    const SEQUENCES: u32 = 6;
    let scratch = Scratch::new();
    let tiers = |disk: &Arc<DiskTier>| over(disk).with_queue_blocks(4);
    let disk = scratch.disk(256).await;
    let (manager, _) = manager(32, tiers(&disk));
    for sequence in 0..SEQUENCES {
        let served = serve(&manager, &keys(sequence, 20)).await;
        assert_eq!(served.sources, Sources::default());
    }
    let mut from_disk = 0;
    for sequence in 0..SEQUENCES {
        written(&manager, 4).await;
        let sources = serve(&manager, &keys(sequence, 20)).await.sources;
        assert_eq!(sources.host + sources.disk, 20, "{sources:?}");
        from_disk += sources.disk;
    }
    assert!(from_disk > 80, "memory holds 32 of 120: {from_disk}");
    let report = &manager.tiers().unwrap().tiers[0];
    assert_eq!((report.kind, report.offload_dropped_total), (protocol::Tier::Disk, 0));
    assert_eq!(report.stats.hits_total, from_disk as u64);

    manager.shutdown(PATIENCE).await.unwrap();
    drop((manager, disk));
    let disk = scratch.disk(256).await;
    let before = Tier::stats(&*disk).blocks;
    let (manager, _) = super::support::manager(200, tiers(&disk));
    let mut from_disk = 0;
    for sequence in 0..SEQUENCES {
        from_disk += serve(&manager, &keys(sequence, 20)).await.sources.disk;
    }
    assert_eq!(from_disk, before, "all that was evicted once");
    manager.shutdown(PATIENCE).await.unwrap();
    assert_eq!(manager.acquire(&keys(0, 20)).await.sources.host, 20, "memory is there still");
}

/// A manager whose disk has the first blocks of sequence 0, and whose memory has none.
async fn with_blocks_below(
    scratch: &Scratch,
    blocks: u32,
    tiers: impl FnOnce(TierConfig) -> TiersConfig,
) -> (dynamo_kv::BlockManager, Arc<Gate>) {
    let gate = Gate::new(scratch.disk(256).await, protocol::Tier::Disk);
    Gate::open(&gate.stores);
    let (manager, _) = manager(16, tiers(TierConfig::new(gate.clone())));
    fill(&manager, &keys(0, blocks));
    drop(manager.reserve(16).await.unwrap());
    let spares = TiersConfig::default().queue_blocks;
    written(&manager, spares).await;
    assert_eq!((manager.stats().free, Tier::stats(&*gate).blocks), (16, blocks as usize));
    (manager, gate)
}

#[tokio::test]
async fn two_that_want_the_same_blocks_load_them_once() {
    let scratch = Scratch::new();
    let tiers = |tier| patient().with_tier(tier);
    let (manager, gate) = with_blocks_below(&scratch, 8, tiers).await;
    let keys = keys(0, 8);
    let [mut first, mut second] = [(); 2].map(|()| Box::pin(manager.acquire(&keys)));
    assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
    assert_eq!(gate.loading.load(Ordering::SeqCst), 1);
    Gate::open(&gate.loads);
    let (first, second) = futures::join!(first, second);
    assert_eq!((first.sources.disk, second.sources.host), (8, 8));
    check(&first.blocks, &keys);
    check(&second.blocks, &keys);
    assert_eq!(Tier::stats(&*gate).hits_total, 8, "each block was read once");
    assert_eq!(manager.tiers().unwrap().merged_total, 1);
}

#[tokio::test]
async fn an_acquire_that_is_dropped_shares_nothing_and_whoever_waited_for_it_loads_by_itself() {
    let scratch = Scratch::new();
    let tiers = |tier| patient().with_tier(tier);
    let (manager, gate) = with_blocks_below(&scratch, 8, tiers).await;
    let keys = keys(0, 8);
    let [mut first, mut second] = [(); 2].map(|()| Box::pin(manager.acquire(&keys)));
    assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
    assert_eq!(manager.stats().mutable, 8);
    drop(first);
    assert_eq!((manager.stats().free, manager.match_prefix(&keys).len()), (16, 0));
    Gate::open(&gate.loads);
    assert_eq!(second.await.sources.disk, 8);
    assert_eq!(manager.stats().cached, 8);
}

#[tokio::test]
async fn a_tier_that_does_not_answer_in_time_is_not_waited_for() {
    let scratch = Scratch::new();
    let tiers = |tier| {
        let soon = Duration::from_millis(20);
        patient().with_tier(tier).with_acquire_timeout(soon)
    };
    let (manager, gate) = with_blocks_below(&scratch, 8, tiers).await;
    let keys = keys(0, 8);
    let acquired = manager.acquire(&keys).await;
    assert_eq!((acquired.blocks.len(), acquired.compute), (0, 0..8));
    assert_eq!(gate.loading.load(Ordering::SeqCst), 1);
    assert_eq!(manager.stats().free, 16, "targets are free again");
}

#[tokio::test]
async fn what_is_cheaper_to_compute_is_not_loaded() {
    let scratch = Scratch::new();
    // Cheaper than any load.
    let tiers = |tier| patient().with_tier(tier).with_recompute(BlockCost::new(1e-12, 0.0));
    let (manager, gate) = with_blocks_below(&scratch, 8, tiers).await;
    Gate::open(&gate.loads);
    let acquired = manager.acquire(&keys(0, 8)).await;
    assert_eq!((acquired.compute, gate.loading.load(Ordering::SeqCst)), (0..8, 0));
}

#[tokio::test]
async fn of_a_run_that_is_there_only_the_part_that_pays_is_loaded() {
    let scratch = Scratch::new();
    // Dearer than any load, and from the fifth block on it costs nothing.
    let cost = BlockCost::new(100.0, -25.0);
    let tiers = |tier| patient().with_tier(tier).with_recompute(cost);
    let (manager, gate) = with_blocks_below(&scratch, 8, tiers).await;
    Gate::open(&gate.loads);
    let keys = keys(0, 8);
    let served = serve(&manager, &keys).await;
    assert_eq!((served.sources.disk, served.compute), (4, 4..8));
    assert_eq!(Tier::stats(&*gate).hits_total, 4);
    check(&served.blocks, &keys);
}

#[tokio::test]
async fn a_block_that_is_lost_below_ends_the_run_and_what_came_before_stands() {
    let scratch = Scratch::new();
    let tiers = |tier| patient().with_tier(tier);
    let (manager, gate) = with_blocks_below(&scratch, 8, tiers).await;
    Gate::open(&gate.loads);
    let keys = keys(0, 8);
    assert_eq!(Tier::remove(&*gate, &keys[5..6]).await.unwrap(), 1);
    let served = serve(&manager, &keys).await;
    assert_eq!((served.sources.disk, served.compute), (5, 5..8));
    check(&served.blocks, &keys);
}

#[tokio::test]
async fn a_prefetch_leaves_blocks_in_memory_and_too_many_are_refused() {
    let scratch = Scratch::new();
    let tiers = |tier| patient().with_tier(tier).with_prefetches(1);
    let (manager, gate) = with_blocks_below(&scratch, 8, tiers).await;
    let keys = keys(0, 8);
    assert!(manager.prefetch(keys.clone()));
    until(|| gate.loading.load(Ordering::SeqCst) == 1).await;
    // One is being loaded, one waits.
    assert!(manager.prefetch(keys.clone()) && !manager.prefetch(keys.clone()));
    Gate::open(&gate.loads);
    until(|| manager.stats().cached == 8).await;
    assert_eq!(manager.acquire(&keys).await.sources.host, 8);
    until(|| manager.tiers().unwrap().prefetched_total == 8).await;
    assert_eq!(manager.tiers().unwrap().prefetches_refused_total, 1);
    assert_eq!(manager.stats().hits_total, 8, "a prefetch is no use");
    manager.shutdown(PATIENCE).await.unwrap();
    assert!(!manager.prefetch(keys));
}

#[tokio::test]
async fn an_exclusive_tier_gives_its_block_away_and_gets_it_back() {
    for is_exclusive in [true, false] {
        let scratch = Scratch::new();
        let tiers = |tier: TierConfig| patient().with_tier(tier.with_exclusive(is_exclusive));
        let (manager, gate) = with_blocks_below(&scratch, 8, tiers).await;
        Gate::open(&gate.loads);
        let keys = keys(0, 8);
        drop(serve(&manager, &keys).await);
        let below = if is_exclusive { 0 } else { 8 };
        assert_eq!(Tier::stats(&*gate).blocks, below);
        drop(manager.reserve(16).await.unwrap());
        written(&manager, TiersConfig::default().queue_blocks).await;
        let stats = Tier::stats(&*gate);
        assert_eq!((stats.blocks, stats.stored_total), (8, 16 - below as u64));
        assert_eq!(serve(&manager, &keys).await.sources.disk, 8);
    }
}
