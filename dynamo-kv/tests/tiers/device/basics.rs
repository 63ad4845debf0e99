use dynamo_core::protocol::{KvChange, Tier};
use dynamo_kv::{BlockMemory, Offload, Sources, TiersConfig};
use dynamo_transfer::device::{DeviceConfig, DeviceCopier};
use futures::poll;

use super::support::*;
use crate::support::*;

const SIZES: Sizes = Sizes { device: 16, host: 32, queue: 4 };

#[tokio::test]
async fn what_the_device_has_no_room_for_comes_from_the_host_and_the_disk_below_it() {
    let (device, copier) = software(DeviceConfig::default());
    passes(&copier).await;
    copier.shutdown().await.unwrap();
    drop(copier);
    assert_eq!((device.in_use_bytes(), device.violations()), (0, 0));
}

/// Serves more sequences than the device and the host have room for, twice.
pub(super) async fn passes(copier: &DeviceCopier) {
    const SEQUENCES: u32 = 10;
    let scratch = Scratch::new();
    let disk = scratch.disk(256).await;
    let rig = rig(copier, SIZES, over_disk(&disk, 4));
    for sequence in 0..SEQUENCES {
        let served = serve_there(&rig.manager, &keys(sequence, 10)).await;
        assert_eq!(served.sources, Sources::default());
        drop(served);
        rig.written([4, 4]).await;
    }
    let mut sum = Sources::default();
    for sequence in (0..SEQUENCES).rev() {
        let served = serve_there(&rig.manager, &keys(sequence, 10)).await;
        assert_eq!(served.compute.len(), 0, "everything is somewhere: {:?}", served.sources);
        sum.device += served.sources.device;
        sum.host += served.sources.host;
        sum.disk += served.sources.disk;
        drop(served);
        rig.written([4, 4]).await;
    }
    assert_eq!(sum.device + sum.host + sum.disk, 100);
    assert!(sum.device >= 10 && sum.host >= 16 && sum.disk >= 40, "{sum:?}");
    rig.check_events();
    for manager in [&rig.manager, &rig.host] {
        let tiers = manager.tiers().unwrap();
        assert_eq!(tiers.tiers[0].offload_dropped_total, 0);
        let stats = manager.stats();
        assert_eq!(stats.free + stats.cached, stats.capacity, "{stats:?}");
    }
    rig.manager.shutdown(PATIENCE).await.unwrap();
    assert_eq!(rig.manager.acquire(&keys(0, 10)).await.sources.device, 10, "memory is there still");
}

#[tokio::test]
async fn each_tier_is_said_once_in_one_order_and_clearing_one_pool_says_nothing_of_the_other() {
    let (_device, copier) = software(DeviceConfig::default());
    let rig = rig(&copier, SIZES, TiersConfig::default());
    let keys = keys(0, 8);
    drop(serve_there(&rig.manager, &keys).await);
    // Out of the device and up again: then both have it.
    drop(rig.manager.reserve(16).await.unwrap());
    rig.written([4, 0]).await;
    assert_eq!(serve_there(&rig.manager, &keys).await.sources.host, 8);
    let known = replay(&rig.manager.snapshot().stored);
    assert!(known.len() == 8 && known.values().all(|tiers| *tiers == [Tier::Device, Tier::Host]));
    rig.check_events();

    rig.host.clear();
    let known = replay(&rig.manager.snapshot().stored);
    assert!(known.len() == 8 && known.values().all(|tiers| *tiers == [Tier::Device]));
    rig.check_events();
    rig.manager.clear();
    rig.written([4, 0]).await;
    let known = replay(&rig.manager.snapshot().stored);
    assert!(known.is_empty(), "what is cleared goes nowhere: {known:?}");
    rig.check_events();
    let is_word_for_all = |change: &KvChange| matches!(change, KvChange::AllBlocksCleared);
    assert!(!rig.events.lock().unwrap().iter().any(|event| is_word_for_all(&event.change)));
}

#[tokio::test]
async fn what_the_host_has_is_not_copied_down_again() {
    let (_device, copier) = software(DeviceConfig::default());
    for offload in [Offload::OnEviction, Offload::WriteThrough] {
        let pinned = BlockMemory::Pinned(copier.clone());
        let to_host = |tier: dynamo_kv::TierConfig| tier.with_offload(offload);
        let rig = rig_with(&copier, pinned, SIZES, (to_host, TiersConfig::default()));
        let keys = keys(0, 8);
        drop(serve_there(&rig.manager, &keys).await);
        drop(rig.manager.reserve(16).await.unwrap());
        rig.written([4, 0]).await;
        for _ in 0..3 {
            assert_eq!(serve_there(&rig.manager, &keys).await.sources.host, 8);
            // More than there are spare slots: none is needed.
            drop(rig.manager.allocate(16).unwrap());
            assert_eq!(rig.manager.tiers().unwrap().spares, 4);
        }
        let report = &rig.manager.tiers().unwrap().tiers[0];
        assert_eq!(report.offload_dropped_total, 0);
        assert_eq!((report.kind, report.stats.stored_total), (Tier::Host, 8), "{offload:?}");
        assert_eq!((report.stats.blocks, report.stats.hits_total), (8, 24));
    }
}

#[tokio::test]
async fn a_block_says_where_it_is_on_the_device_and_has_no_bytes_here() {
    let (_device, copier) = software(DeviceConfig::default());
    let rig = rig(&copier, SIZES, TiersConfig::default());
    let (keys, bytes) = (keys(0, 4), layout().block_bytes());
    let mut blocks = rig.manager.allocate(4).unwrap();
    assert!(blocks.iter_mut().all(|block| block.is_empty() && block.as_mut().is_empty()));
    let places: Vec<_> = blocks.iter().map(|block| block.device().unwrap().offset()).collect();
    let run = rig.manager.register_all(compute_there(blocks, &keys).await.unwrap());
    for (at, block) in Vec::from(run.clone()).iter().enumerate() {
        let (there, of_run) = (block.device().unwrap(), run.device(at).unwrap());
        assert_eq!(
            (there.offset(), of_run.offset(), there.bytes()),
            (places[at], places[at], bytes)
        );
        assert_eq!(there.index() * bytes, there.offset());
        assert_eq!(there.address(), there.buffer().address() + there.offset() as u64);
        let read = there.buffer().copy_to(&copier, there.offset(), bytes).await.unwrap();
        assert!(read == truth(&keys[at]) && run[at].is_empty());
    }
    assert!(run.device(4).is_none());
    // Host memory is no place of the device, nor is what has another size.
    let block = rig.host.allocate(1).unwrap().remove(0);
    assert!(block.device().is_none());
    let refused = block.upload(vec![0; bytes]).await.unwrap_err();
    assert_eq!(refused.kind(), dynamo_core::ErrorKind::InvalidArgument);
    let block = rig.manager.allocate(1).unwrap().remove(0);
    let refused = block.upload(vec![0; bytes - 1]).await.unwrap_err();
    assert_eq!(refused.kind(), dynamo_core::ErrorKind::InvalidArgument);
    let block = Vec::from(run).remove(0);
    let refused = block.download(vec![0; bytes + 1]).await.unwrap_err();
    assert_eq!(refused.kind(), dynamo_core::ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn blocks_on_their_way_down_come_back_from_the_device_itself() {
    let (device, copier) = software(DeviceConfig::default());
    let sizes = Sizes { queue: 8, ..SIZES };
    let rig = rig(&copier, sizes, TiersConfig::default());
    let keys = keys(0, 8);
    drop(serve_there(&rig.manager, &keys).await);
    device.pause();
    drop(rig.manager.allocate(16).unwrap());
    until(|| device.waiting() == 1).await;
    assert_eq!(rig.manager.tiers().unwrap().spares, 0, "all are on their way");
    let mut acquire = Box::pin(rig.manager.acquire(&keys));
    assert!(poll!(&mut acquire).is_pending());
    assert_eq!(device.waiting(), 2, "one copy for all of them");
    device.resume();
    let acquired = acquire.await;
    assert_eq!((acquired.sources.device, acquired.blocks.len()), (8, 8));
    check_there(&acquired.blocks, &keys).await;
}

#[tokio::test]
async fn two_that_want_the_same_blocks_have_them_copied_once() {
    let (device, copier) = software(DeviceConfig::default());
    let rig = rig(&copier, SIZES, TiersConfig::default());
    let keys = keys(0, 8);
    drop(serve_there(&rig.manager, &keys).await);
    drop(rig.manager.reserve(16).await.unwrap());
    rig.written([4, 0]).await;
    device.pause();
    let [mut first, mut second] = [(); 2].map(|()| Box::pin(rig.manager.acquire(&keys)));
    assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
    assert_eq!(device.waiting(), 1, "one submission for the wave");
    device.resume();
    let (first, second) = futures::join!(first, second);
    assert_eq!((first.sources.host, second.sources.device), (8, 8));
    check_there(&first.blocks, &keys).await;
    assert_eq!(rig.manager.tiers().unwrap().tiers[0].stats.hits_total, 8);
}
