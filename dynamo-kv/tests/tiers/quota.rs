use std::time::Duration;

use dynamo_kv::{Limit, Offload, Sources, TierConfig, TiersConfig};

use super::support::*;

#[tokio::test]
async fn what_a_quota_evicts_goes_down_and_comes_up_under_it() {
    const QUOTA: usize = 8;
    let scratch = Scratch::new();
    let disk = scratch.disk(64).await;
    let (manager, _) = manager(32, over(&disk).with_queue_blocks(8));
    let quota = manager.with_quota(QUOTA).unwrap();
    for sequence in 0..3 {
        written(&manager, 8).await;
        assert_eq!(serve(&quota, &keys(sequence, 6)).await.sources, Sources::default());
        let stats = quota.stats();
        assert!(stats.active + stats.cached <= QUOTA, "{stats:?}");
    }
    written(&manager, 8).await;
    // Of 18 blocks 10 had to go, though the manager has room for all.
    assert_eq!((quota.stats().cached, quota.stats().evicted_total), (8, 10));
    let served = serve(&quota, &keys(0, 6)).await;
    assert_eq!((served.sources.disk, served.blocks.len()), (6, 6));
    assert_eq!((quota.stats().active, manager.stats().active), (6, 6));
    // Nothing but two blocks can go now: of a sequence as much comes up as finds room.
    let acquired = quota.acquire(&keys(1, 6)).await;
    check(&acquired.blocks, &keys(1, 6));
    assert_eq!(acquired.blocks.len(), 2);
    let error = quota.reserve(1).await.unwrap_err();
    assert_eq!((error.limit, error.available), (Limit::Quota, 0));
    drop((acquired, served));

    written(&manager, 8).await;
    assert!(quota.prefetch(keys(2, 6)));
    until(|| quota.match_prefix(&keys(2, 6)).len() == 6).await;
    assert_eq!(manager.match_prefix(&keys(2, 6)).len(), 0, "it is the quota's");
    manager.shutdown(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn blocks_of_a_quota_are_written_through_and_let_go() {
    let scratch = Scratch::new();
    let disk = scratch.disk(64).await;
    let tier = TierConfig::new(disk.clone()).with_offload(Offload::WriteThrough);
    let tiers = TiersConfig::default().with_tier(tier).with_reserve_timeout(Duration::from_secs(9));
    let (manager, _) = manager(16, tiers);
    let quota = manager.with_quota(4).unwrap();
    for sequence in 0..4 {
        let blocks = quota.reserve(4).await.unwrap();
        drop(quota.register_all(compute(blocks, &keys(sequence, 4))));
    }
    until(|| disk.stats().blocks == 16).await;
    until(|| quota.stats().cached == 4).await;
    drop(quota);
    until(|| manager.stats().free == 16).await;
    assert_eq!(manager.probe(&keys(0, 4)).await, 4, "the disk has what the quota had");
    manager.shutdown(PATIENCE).await.unwrap();
}
