use dynamo_core::ErrorKind;
use dynamo_core::protocol::{BlockSize, InstanceId, WorkerId};
use dynamo_kv::tier::peer::{Owner, OwnerConfig};
use dynamo_kv::{
    BlockLayout, BlockManager, BlockMemory, DType, Handoff, HandoffConfig, ManagerConfig,
    TierConfig, TiersConfig,
};
use dynamo_transfer::device::DeviceConfig;
use dynamo_transfer::{Agent, AgentConfig};

use super::support::*;
use crate::support::*;

const SIZES: Sizes = Sizes { device: 8, host: 8, queue: 4 };

fn new(config: ManagerConfig) -> dynamo_core::Result<BlockManager> {
    BlockManager::new(config, WorkerId::new(InstanceId(1)), Box::new(|_| {}))
}

#[tokio::test]
async fn pools_that_do_not_fit_each_other_are_refused_by_name() {
    let (_device, copier) = software(DeviceConfig::default());
    let scratch = Scratch::new();
    let disk = scratch.disk(16).await;
    let host = || new(ManagerConfig::new(layout(), 8)).unwrap();
    let above = |tier| TiersConfig::default().with_tier(tier);
    let larger = BlockLayout::new(2, 1, 32, BlockSize::new(1).unwrap(), DType::F32).unwrap();
    let there = |tiers| on_device(&copier, 8).with_tiers(tiers);
    let refused = [
        (new(there(over(&disk))), "a Disk tier below a block pool of device memory"),
        (new(there(above(TierConfig::host(host())))), "made by `above`"),
        (BlockManager::above(on_device(&copier, 8)), "above no tier of host memory"),
        (
            BlockManager::above(
                ManagerConfig::new(layout(), 8).with_tiers(above(TierConfig::host(host()))),
            ),
            "a Host tier below a block pool of host memory",
        ),
        (
            BlockManager::above(there(above(TierConfig::host(host()).with_exclusive(true)))),
            "an exclusive Host tier",
        ),
        (
            BlockManager::above(there(over(&disk).with_tier(TierConfig::host(host())))),
            "more than one tier",
        ),
        (
            BlockManager::above(
                ManagerConfig::new(larger, 8)
                    .with_memory(BlockMemory::Device(copier.clone()))
                    .with_tiers(above(TierConfig::host(host()))),
            ),
            "blocks of layout",
        ),
        (new(on_device(&copier, 8).with_zero_on_allocate(true)), "zero_on_allocate"),
    ];
    for (refused, words) in refused {
        let refused = refused.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
        assert!(refused.to_string().contains(words), "{refused}");
    }
    // Of one that is refused nothing is left: a pool can still be made above the host's.
    let host = host();
    let huge = on_device(&copier, 1 << 20).with_tiers(above(TierConfig::host(host.clone())));
    assert_eq!(BlockManager::above(huge).unwrap_err().kind(), ErrorKind::Overloaded);
    let config = || there(above(TierConfig::host(host.clone())));
    let _first = BlockManager::above(config()).unwrap();
    assert_eq!(BlockManager::above(config()).unwrap_err().kind(), ErrorKind::Conflict);
}

#[tokio::test]
async fn memory_that_a_device_does_not_give_is_not_replaced_by_other() {
    let (device, copier) = software(DeviceConfig::default());
    for memory in [BlockMemory::Pinned(copier.clone()), BlockMemory::Device(copier.clone())] {
        let config = |blocks| ManagerConfig::new(layout(), blocks).with_memory(memory.clone());
        let refused = new(config(1 << 20)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Overloaded, "{refused}");
        drop(new(config(8)).unwrap());
    }
    device.lose("fallen off the bus");
    for memory in [BlockMemory::Pinned(copier.clone()), BlockMemory::Device(copier)] {
        let refused = new(ManagerConfig::new(layout(), 8).with_memory(memory)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
    }
}

#[tokio::test]
async fn what_moves_host_memory_refuses_blocks_of_a_device() {
    let (_device, copier) = software(DeviceConfig::default());
    let rig = rig(&copier, SIZES, TiersConfig::default());
    let agent = Agent::start(AgentConfig::default().with_name("worker")).await.unwrap();
    let refused = Handoff::new(agent.clone(), rig.manager.clone(), HandoffConfig::default());
    let owner = Owner::new(agent.clone(), rig.manager.clone(), OwnerConfig::new(8));
    for refused in [refused.map(drop).unwrap_err(), owner.map(drop).unwrap_err()] {
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
        assert!(refused.to_string().contains("device memory"), "{refused}");
    }
    // The hand-off of the pool below takes the blocks of that, and no others.
    let keys = keys(0, 2);
    let there = serve_there(&rig.manager, &keys).await.blocks;
    let handoff = Handoff::new(agent, rig.host.clone(), HandoffConfig::default()).unwrap();
    let refused = handoff.stage(there.into(), None).unwrap_err();
    assert!(refused.to_string().contains("device memory"), "{refused}");
    let tail = rig.manager.allocate(1).unwrap().remove(0).into_partial(1);
    let refused = handoff.stage(Vec::new(), Some(tail)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    handoff.shutdown().await;
    // A disk takes no block that has no bytes here.
    let scratch = Scratch::new();
    let disk = scratch.disk(4).await;
    let block = Vec::from(rig.manager.match_prefix(&keys)).remove(0);
    let outcome = disk.store(vec![(keys[0], block)]).await.remove(0);
    assert!(matches!(outcome, Err(dynamo_kv::tier::StoreError::Length { found: 0, .. })));
}
