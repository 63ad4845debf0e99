use std::sync::Arc;
use std::time::Duration;

use dynamo_core::{ErrorKind, protocol};
use dynamo_kv::tier::Tier;
use dynamo_kv::{BlockManager, ManagerConfig, MutableBlock, Offload, TierConfig, TiersConfig};
use futures::poll;

use super::support::*;

#[tokio::test]
async fn without_room_in_the_queue_an_allocation_loses_blocks_and_a_reservation_waits() {
    let scratch = Scratch::new();
    let gate = Gate::new(scratch.disk(64).await, protocol::Tier::Disk);
    let (manager, _) = manager(8, over(&gate).with_queue_blocks(2));
    fill(&manager, &keys(0, 8));
    drop(manager.allocate(4).unwrap());
    let dropped = || manager.tiers().unwrap().tiers[0].offload_dropped_total;
    assert_eq!((dropped(), manager.tiers().unwrap().spares), (2, 0));
    fill(&manager, &keys(1, 4));
    let mut reserving = Box::pin(manager.reserve(8));
    assert!(poll!(&mut reserving).is_pending());
    assert_eq!(manager.stats().cached, 8, "nothing is evicted that could not go down");
    Gate::open(&gate.stores);
    assert_eq!(reserving.await.unwrap().len(), 8);
    written(&manager, 2).await;
    assert_eq!((dropped(), Tier::stats(&*gate).stored_total), (2, 10));
    let error = manager.reserve(9).await.unwrap_err();
    assert_eq!((error.requested, error.available, error.capacity), (9, 8, 8));
}

#[tokio::test]
async fn what_is_written_through_leaves_room_in_the_queue_for_what_is_evicted() {
    let scratch = Scratch::new();
    let gate = Gate::new(scratch.disk(64).await, protocol::Tier::Disk);
    let tier = TierConfig::new(gate.clone()).with_offload(Offload::WriteThrough);
    let (manager, _) = manager(16, patient().with_tier(tier).with_queue_blocks(4));
    fill(&manager, &keys(0, 16));
    assert_eq!(manager.tiers().unwrap().tiers[0].queued, 4, "the others go when they are evicted");
    drop(manager.allocate(4).unwrap());
    let tiers = manager.tiers().unwrap();
    assert_eq!((tiers.tiers[0].offload_dropped_total, tiers.spares), (0, 0));
    Gate::open(&gate.stores);
    written(&manager, 4).await;
    until(|| Tier::stats(&*gate).stored_total == 8).await;
}

#[tokio::test]
async fn a_reservation_waits_for_blocks_that_are_held_until_they_are_down() {
    let scratch = Scratch::new();
    let gate = Gate::new(scratch.disk(64).await, protocol::Tier::Disk);
    let tier = TierConfig::new(gate.clone()).with_offload(Offload::WriteThrough);
    let (manager, _) = manager(4, patient().with_tier(tier));
    fill(&manager, &keys(0, 4));
    assert_eq!(manager.allocate(1).unwrap_err().available, 0);
    let mut reserving = Box::pin(manager.reserve(4));
    assert!(poll!(&mut reserving).is_pending());
    Gate::open(&gate.stores);
    assert_eq!(reserving.await.unwrap().len(), 4);
    assert_eq!(Tier::stats(&*gate).stored_total, 4);
    let held = manager.allocate(4).unwrap();
    let error = manager.reserve(1).await.unwrap_err();
    assert_eq!(error.available, 0, "what others hold is not waited for");
    drop(held);
}

#[tokio::test]
async fn a_reservation_that_waits_too_long_evicts_without_going_down() {
    let scratch = Scratch::new();
    let gate = Gate::new(scratch.disk(64).await, protocol::Tier::Disk);
    let tiers = over(&gate).with_queue_blocks(2).with_reserve_timeout(Duration::from_millis(20));
    let (manager, _) = manager(8, tiers);
    fill(&manager, &keys(0, 8));
    assert_eq!(manager.reserve(8).await.unwrap().len(), 8);
    assert_eq!(manager.tiers().unwrap().tiers[0].offload_dropped_total, 6);
}

#[tokio::test]
async fn beside_a_stuck_tier_a_reservation_takes_what_others_free() {
    // Each returns what it has not freed.
    type Freeing = fn(&BlockManager, Vec<MutableBlock>) -> Vec<MutableBlock>;
    let ways: [Freeing; 3] = [
        |_, _| Vec::new(),
        |manager, blocks| {
            // They are there already.
            drop(manager.register_all(compute(blocks, &keys(0, 2))));
            Vec::new()
        },
        |manager, blocks| {
            manager.clear();
            blocks
        },
    ];
    for quota in [None, Some(4)] {
        let scratch = Scratch::new();
        let gate = Gate::new(scratch.disk(64).await, protocol::Tier::Disk);
        let (manager, _) = manager(8, over(&gate).with_queue_blocks(2));
        let tenant = quota.map(|blocks| manager.with_quota(usize::try_from(blocks).unwrap()));
        let tenant = tenant.transpose().unwrap().unwrap_or(manager);
        fill(&tenant, &keys(0, quota.unwrap_or(8)));
        drop(tenant.allocate(2).unwrap());
        assert_eq!(tenant.tiers().unwrap().spares, 0, "nothing more goes down");
        for free in ways {
            let held = tenant.allocate(2).unwrap();
            let mut reserving = Box::pin(tenant.reserve(2));
            assert!(poll!(&mut reserving).is_pending());
            let _held = free(&tenant, held);
            let reserved = tokio::time::timeout(PATIENCE, reserving).await.unwrap();
            assert_eq!(reserved.unwrap().len(), 2);
        }
    }
}

#[tokio::test]
async fn a_block_on_its_way_down_is_found_and_is_what_it_was() {
    let scratch = Scratch::new();
    let gate = Gate::new(scratch.disk(64).await, protocol::Tier::Disk);
    let (manager, _) = manager(8, over(&gate).with_queue_blocks(8));
    let keys = keys(0, 4);
    fill(&manager, &keys);
    // Whoever gets these slots next writes over what was there, if it was not exchanged.
    manager.allocate(8).unwrap().iter_mut().for_each(|block| block.fill(0xff));
    assert_eq!((manager.stats().cached, manager.tiers().unwrap().spares), (0, 4));
    let served = serve(&manager, &keys).await;
    assert_eq!((served.sources.host, served.compute), (4, 4..4));
    Gate::open(&gate.stores);
    written(&manager, 8).await;
    assert_eq!(Tier::stats(&*gate).blocks, 4);
    check(&served.blocks, &keys);
}

#[tokio::test]
async fn blocks_go_down_when_the_policy_says_so() {
    for (offload, once, on_eviction) in [
        (Offload::OnEviction, 0, 8),
        (Offload::WriteThrough, 8, 8),
        // Only the first half was found twice.
        (Offload::AfterUses(2), 0, 4),
    ] {
        let scratch = Scratch::new();
        let disk = scratch.disk(64).await;
        let tier = TierConfig::new(disk.clone()).with_offload(offload);
        let (manager, _) = manager(8, patient().with_tier(tier));
        let spares = TiersConfig::default().queue_blocks;
        let keys = keys(0, 8);
        fill(&manager, &keys);
        written(&manager, spares).await;
        until(|| Tier::stats(&*disk).stored_total >= once).await;
        drop(manager.match_prefix(&keys));
        drop(manager.match_prefix(&keys[..4]));
        assert_eq!(Tier::stats(&*disk).stored_total, once, "{offload:?}");
        drop(manager.reserve(8).await.unwrap());
        written(&manager, spares).await;
        assert_eq!(Tier::stats(&*disk).stored_total, on_eviction, "{offload:?}");
    }
}

#[tokio::test]
async fn what_is_written_through_goes_to_each_tier_and_comes_from_the_first_that_has_it() {
    let (scratch, further) = (Scratch::new(), Scratch::new());
    let disk = scratch.disk(64).await;
    let remote = Gate::new(further.disk(64).await, protocol::Tier::Remote);
    Gate::open(&remote.stores);
    Gate::open(&remote.loads);
    let through = |tier: Arc<dyn Tier>| TierConfig::new(tier).with_offload(Offload::WriteThrough);
    let tiers = patient()
        .with_tier(through(disk.clone()))
        .with_tier(through(remote.clone()))
        .with_queue_blocks(16);
    let (manager, _) = manager(8, tiers);
    let keys = keys(0, 8);
    fill(&manager, &keys);
    let stored = || [Tier::stats(&*disk).stored_total, Tier::stats(&*remote).stored_total];
    until(|| stored() == [8, 8]).await;
    written(&manager, 16).await;
    drop(manager.reserve(8).await.unwrap());
    for key in &keys[3..] {
        disk.remove(&key.identity).await.unwrap();
    }
    let sources = serve(&manager, &keys).await.sources;
    assert_eq!((sources.host, sources.disk, sources.remote), (0, 3, 5));
    until(|| stored() == [13, 8]).await;
    assert_eq!(disk.keys().len(), 8, "what came from further is on the disk again");
}

#[tokio::test]
async fn a_shutdown_writes_what_is_queued_or_says_that_it_could_not() {
    let scratch = Scratch::new();
    let disk = scratch.disk(64).await;
    let gate = Gate::new(disk, protocol::Tier::Disk);
    let (manager, _) = manager(8, over(&gate));
    fill(&manager, &keys(0, 8));
    drop(manager.allocate(8).unwrap());
    let mut ending = Box::pin(manager.shutdown(PATIENCE));
    assert!(poll!(&mut ending).is_pending());
    Gate::open(&gate.stores);
    ending.await.unwrap();
    assert_eq!(Tier::stats(&*gate).stored_total, 8);

    let scratch = Scratch::new();
    let gate = Gate::new(scratch.disk(64).await, protocol::Tier::Disk);
    let (manager, _) = super::support::manager(8, over(&gate));
    fill(&manager, &keys(0, 8));
    drop(manager.allocate(8).unwrap());
    let error = manager.shutdown(Duration::from_millis(20)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    let spares = TiersConfig::default().queue_blocks;
    assert_eq!(manager.tiers().unwrap().spares, spares, "what was given up is spare again");
}

#[tokio::test]
async fn tiers_that_cannot_work_are_refused() {
    let scratch = Scratch::new();
    let tier = TierConfig::new(scratch.disk(8).await);
    let worker = protocol::WorkerId::new(protocol::InstanceId(1));
    let build = |tiers| {
        let config = ManagerConfig::new(layout(), 8).with_tiers(tiers);
        BlockManager::new(config, worker, Box::new(|_| {})).map(drop)
    };
    let through = tier.clone().with_exclusive(true).with_offload(Offload::WriteThrough);
    let nine = vec![tier.clone(); TiersConfig::TIERS_MAX + 1];
    let nine = nine.into_iter().fold(TiersConfig::default(), TiersConfig::with_tier);
    let with = || patient().with_tier(tier.clone());
    for tiers in [
        patient().with_tier(through),
        nine,
        with().with_queue_blocks(0),
        with().with_acquire_timeout(Duration::MAX),
        with().with_reserve_timeout(Duration::MAX),
    ] {
        assert_eq!(build(tiers).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
    let outside = patient().with_tier(tier);
    std::thread::scope(|scope| {
        let built = scope.spawn(|| build(outside).unwrap_err().kind()).join().unwrap();
        assert_eq!(built, ErrorKind::InvalidArgument, "there is no runtime");
    });
}
