use std::sync::Arc;

use dynamo_core::metrics::Registry;
use dynamo_core::protocol::{KvChange, Tier as Kind};
use dynamo_kv::metrics::BlockMetrics;
use dynamo_kv::tier::Tier;
use dynamo_kv::{Offload, TierConfig};

use super::support::*;

#[tokio::test]
async fn events_and_snapshots_name_every_tier_in_one_order_also_after_a_restart() {
    let scratch = Scratch::new();
    let disk = scratch.disk(16).await;
    let (manager, events) = manager(8, over(&disk).with_queue_blocks(8));
    for sequence in [0, 1, 2, 0, 1] {
        drop(serve(&manager, &keys(sequence, 6)).await);
        written(&manager, 8).await;
    }
    let same = || {
        let events = events.lock().unwrap();
        let numbers: Vec<_> = events.iter().map(|event| (event.epoch, event.seq)).collect();
        assert_eq!(numbers, (0..numbers.len() as u64).map(|seq| (1, seq)).collect::<Vec<_>>());
        let snapshot = manager.snapshot();
        assert_eq!(snapshot.seq, events.len() as u64);
        let known = replay(events.iter().map(|event| &event.change));
        assert_eq!(known, replay(&snapshot.stored));
        known
    };
    let known = same();
    let in_tier = |kind| known.values().filter(|tiers| tiers.contains(&kind)).count();
    let stats = manager.stats();
    assert_eq!(in_tier(Kind::Host), stats.active + stats.cached);
    assert_eq!(in_tier(Kind::Disk), Tier::stats(&*disk).blocks);
    // Memory alone is cleared, then the disk.
    manager.clear();
    assert!(same().values().all(|tiers| *tiers == [Kind::Disk]));
    let before: Vec<_> = same().into_keys().collect();
    manager.shutdown(PATIENCE).await.unwrap();
    drop((manager, disk));

    let disk = scratch.disk(16).await;
    let (manager, events) = super::support::manager(8, over(&disk));
    let known = replay(events.lock().unwrap().iter().map(|event| &event.change));
    assert!(known.values().all(|tiers| *tiers == [Kind::Disk]));
    assert_eq!(known.into_keys().collect::<Vec<_>>(), before, "what is found is published");
    Tier::clear(&*disk).await.unwrap();
    assert!(manager.snapshot().stored.is_empty());
    let last = events.lock().unwrap().last().unwrap().change.clone();
    assert!(matches!(last, KvChange::BlockRemoved { tier: Kind::Disk, .. }), "{last:?}");
}

#[tokio::test]
async fn two_tiers_of_one_name_are_one_to_whoever_listens() {
    let scratches = [Scratch::new(), Scratch::new()];
    let tiers = [scratches[0].disk(16).await, scratches[1].disk(16).await];
    let config = tiers.iter().fold(patient(), |config, tier| {
        config.with_tier(TierConfig::new(tier.clone()).with_offload(Offload::WriteThrough))
    });
    let (manager, events) = manager(8, config);
    let keys = keys(0, 4);
    fill(&manager, &keys);
    until(|| tiers.iter().all(|tier| Tier::stats(&**tier).blocks == 4)).await;
    let known = || replay(events.lock().unwrap().iter().map(|event| &event.change));
    tiers[0].clear().await.unwrap();
    assert!(known().values().all(|tiers| *tiers == [Kind::Host, Kind::Disk]));
    tiers[1].clear().await.unwrap();
    assert!(known().values().all(|tiers| *tiers == [Kind::Host]));
}

#[tokio::test]
async fn the_page_tells_what_each_tier_has_come_to() {
    let scratch = Scratch::new();
    let disk = scratch.disk(16).await;
    let (manager, _) = manager(4, over(&disk).with_queue_blocks(4));
    for sequence in [0, 1, 0] {
        drop(serve(&manager, &keys(sequence, 4)).await);
        written(&manager, 4).await;
    }
    let (registry, metrics) = (Registry::default(), Arc::new(BlockMetrics::new("w", &manager)));
    registry.add(&metrics);
    let page = registry.render();
    for line in [
        "dynamo_kv_blocks{manager=\"w\",tier=\"host\"} 4",
        "dynamo_kv_blocks{manager=\"w\",tier=\"disk\"} 8",
        "dynamo_kv_hits_total{manager=\"w\",tier=\"disk\"} 4",
        "dynamo_kv_misses_total{manager=\"w\",tier=\"host\"} 12",
        "dynamo_kv_evictions_total{manager=\"w\",tier=\"host\"} 8",
        "dynamo_kv_moved_blocks_total{manager=\"w\",tier=\"disk\",direction=\"up\"} 4",
        "dynamo_kv_moved_bytes_total{manager=\"w\",tier=\"disk\",direction=\"down\"} 2048",
        "dynamo_kv_offload_queued{manager=\"w\",tier=\"disk\"} 0",
        "dynamo_kv_offload_dropped_total{manager=\"w\",tier=\"disk\"} 0",
        "dynamo_kv_prefetched_blocks_total{manager=\"w\"} 0",
        "dynamo_kv_prefetches_refused_total{manager=\"w\"} 0",
    ] {
        assert!(page.lines().any(|its| its == line), "{line} in\n{page}");
    }
}
