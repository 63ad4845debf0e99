use std::sync::Arc;

use dynamo_core::protocol::{InstanceId, WorkerId};
use dynamo_kv::evict::BlockCost;
use dynamo_kv::tier::{Pace, conformance};
use dynamo_kv::{BlockManager, ManagerConfig, TierConfig, TiersConfig};

use crate::support::{Shelf, config, keys, store};

#[tokio::test(start_paused = true)]
async fn a_tier_that_seems_slower_than_computing_is_tried_after_a_while_and_then_relied_on() {
    let (shelf, layout) = (Shelf::memory(), conformance::layout());
    let config = config(layout.block_bytes());
    // Between a half and a quarter of what a block is taken to need.
    let cost = BlockCost::new(config.load_time.as_secs_f64() / 3.0, 0.0);
    let tier = Arc::new(shelf.tier(config));
    let tiers = TiersConfig::default().with_tier(TierConfig::new(tier.clone()));
    let of = ManagerConfig::new(layout, 16).with_tiers(tiers.with_recompute(cost));
    let worker = WorkerId::new(InstanceId(1));
    let manager = BlockManager::new(of, worker, Box::new(|_| {})).unwrap();
    store(&tier, 0..8, layout.block_bytes()).await;
    for (idle, loaded) in [(0, 0), (1, 0), (1, 8), (0, 8)] {
        tokio::time::advance(Pace::HALVED_AFTER * idle).await;
        assert_eq!(manager.acquire(&keys(0..8)).await.sources.remote, loaded);
        manager.clear();
    }
}
