use std::cell::RefCell;

use dynamo_core::protocol::{InstanceId, WorkerId};
use dynamo_kv::tier::conformance;
use dynamo_kv::tier::peer::{OwnerConfig, PeerConfig};
use dynamo_kv::{BlockManager, ManagerConfig};

use crate::support::Ground;

/// Has every tier at an owner of its own, and a batch for every few blocks.
async fn conforms(ground: fn() -> Ground) {
    let owners = RefCell::new(Vec::new());
    conformance::run(async || {
        let (ground, layout) = (ground(), conformance::layout());
        let (leader, worker) = (ground.process("leader").await, ground.process("worker").await);
        let blocks = conformance::BLOCKS as usize;
        let config = ManagerConfig::new(layout, blocks);
        let shared =
            BlockManager::new(config, WorkerId::new(InstanceId(1)), Box::new(|_| {})).unwrap();
        let served = leader.serve(&shared, OwnerConfig::new(blocks).with_removable(true), 0).await;
        let tier = worker.tier_of(&layout.into(), PeerConfig::default().with_batches(4, 3)).await;
        owners.borrow_mut().push((leader, worker, served));
        tier
    })
    .await;
    for (leader, worker, (owner, serving)) in owners.take() {
        drop(serving);
        owner.shutdown().await;
        worker.end().await;
        leader.end().await;
    }
}

#[tokio::test]
async fn a_tier_of_a_peer_in_this_process_conforms() {
    conforms(Ground::memory).await;
}

#[tokio::test]
async fn a_tier_of_a_peer_over_tcp_conforms() {
    conforms(Ground::tcp).await;
}
