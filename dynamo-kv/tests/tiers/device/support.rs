use std::sync::Arc;

use dynamo_core::protocol::{InstanceId, WorkerId};
use dynamo_kv::tier::Tier;
use dynamo_kv::{
    Acquired, BlockKey, BlockManager, BlockMemory, BlockRun, CompleteBlock, ManagerConfig,
    MutableBlock, RegisteredBlock, TierConfig, TiersConfig,
};
use dynamo_transfer::device::{DeviceConfig, DeviceCopier, SoftwareDevice};

use crate::support::*;

/// A pool of device memory, one of host memory below it, and what both publish.
pub(crate) struct Rig {
    pub(crate) manager: BlockManager,
    pub(crate) host: BlockManager,
    pub(crate) events: Events,
}

/// How many blocks there are where.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) device: usize,
    pub(crate) host: usize,
    pub(crate) queue: usize,
}

pub(crate) fn software(config: DeviceConfig) -> (SoftwareDevice, DeviceCopier) {
    let device = SoftwareDevice::new(64 << 20).unwrap();
    let copier = DeviceCopier::software(&device, config).unwrap();
    (device, copier)
}

/// Two pools, with `tiers` below the host's, which is pinned.
pub(crate) fn rig(copier: &DeviceCopier, sizes: Sizes, tiers: TiersConfig) -> Rig {
    rig_with(copier, BlockMemory::Pinned(copier.clone()), sizes, (|tier| tier, tiers))
}

pub(crate) fn rig_with(
    copier: &DeviceCopier,
    memory: BlockMemory,
    sizes: Sizes,
    (to_host, tiers): (impl Fn(TierConfig) -> TierConfig, TiersConfig),
) -> Rig {
    let events = Events::default();
    let heard = Arc::clone(&events);
    let publish = Box::new(move |event| heard.lock().unwrap().push(event));
    let worker = WorkerId::new(InstanceId(1));
    let config = ManagerConfig::new(layout(), sizes.host).with_memory(memory).with_tiers(tiers);
    let host = BlockManager::new(config, worker, publish).unwrap();
    let below = TiersConfig::default()
        .with_tier(to_host(TierConfig::host(host.clone())))
        .with_queue_blocks(sizes.queue);
    let manager = BlockManager::above(on_device(copier, sizes.device).with_tiers(below)).unwrap();
    Rig { manager, host, events }
}

pub(crate) fn on_device(copier: &DeviceCopier, blocks: usize) -> ManagerConfig {
    ManagerConfig::new(layout(), blocks).with_memory(BlockMemory::Device(copier.clone()))
}

/// A host pool with a disk below it.
pub(crate) fn over_disk(disk: &Arc<impl Tier>, queue: usize) -> TiersConfig {
    over(disk).with_queue_blocks(queue)
}

impl Rig {
    /// Waits until nothing is on its way down, by `spares` of each pool.
    pub(crate) async fn written(&self, spares: [usize; 2]) {
        written(&self.manager, spares[0]).await;
        if self.host.tiers().is_some() {
            written(&self.host, spares[1]).await;
        }
    }

    /// What is said to be where, by the events and by the snapshot, is the same.
    pub(crate) fn check_events(&self) {
        let events = self.events.lock().unwrap();
        assert!(events.iter().map(|event| event.seq).eq(0..events.len() as u64), "one order");
        let known = replay(events.iter().map(|event| &event.change));
        let snapshot = self.manager.snapshot();
        assert_eq!((snapshot.seq, known), (events.len() as u64, replay(&snapshot.stored)));
    }
}

/// What is in a block.
pub(crate) fn truth(key: &BlockKey) -> Vec<u8> {
    let mut bytes = vec![0; layout().block_bytes()];
    write(&key.identity, &mut bytes);
    bytes
}

/// Compares blocks in device memory with what should be there.
pub(crate) async fn check_there(blocks: &BlockRun, keys: &[BlockKey]) {
    for (block, key) in Vec::<RegisteredBlock>::from(blocks.clone()).iter().zip(keys) {
        assert_eq!(*block.identity(), key.identity, "another block");
        let bytes = block.download(vec![0; layout().block_bytes()]).await.unwrap();
        assert!(bytes == truth(key), "wrong bytes of {key:?}");
    }
}

/// Writes blocks in device memory, as far as the device does.
pub(crate) async fn compute_there(
    blocks: Vec<MutableBlock>,
    keys: &[BlockKey],
) -> dynamo_core::Result<Vec<CompleteBlock>> {
    let mut computed = Vec::new();
    for (block, key) in blocks.into_iter().zip(keys) {
        let (block, _) = block.upload(truth(key)).await?;
        computed.push(block.complete(*key));
    }
    Ok(computed)
}

/// Acquires a sequence, checks what came, and computes the rest.
pub(crate) async fn serve_there(manager: &BlockManager, keys: &[BlockKey]) -> Acquired {
    let mut acquired = manager.acquire(keys).await;
    check_there(&acquired.blocks, keys).await;
    assert_eq!(acquired.compute, acquired.blocks.len()..keys.len());
    let rest = &keys[acquired.compute.clone()];
    let blocks = compute_there(manager.reserve(rest.len()).await.unwrap(), rest).await.unwrap();
    acquired.blocks.append(manager.register_all(blocks));
    acquired
}
