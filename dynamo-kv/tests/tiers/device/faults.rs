use std::time::Duration;

use dynamo_core::ErrorKind;
use dynamo_kv::TiersConfig;
use dynamo_transfer::device::{DeviceConfig, DeviceCopier};
use futures::poll;

use super::support::*;
use crate::support::*;

const SIZES: Sizes = Sizes { device: 16, host: 32, queue: 4 };

/// Two pools: sequence 0 has its first 8 blocks in that of the host, and none on the device.
async fn with_blocks_below(copier: &DeviceCopier) -> Rig {
    let rig = rig(copier, SIZES, TiersConfig::default());
    drop(serve_there(&rig.manager, &keys(0, 8)).await);
    drop(rig.manager.reserve(16).await.unwrap());
    rig.written([4, 0]).await;
    assert_eq!((rig.manager.stats().free, rig.host.stats().cached), (16, 8));
    rig
}

/// So long a copy is waited for: longer than one that does not hang takes on a busy machine.
const HANGS: Duration = Duration::from_millis(500);

#[tokio::test]
async fn an_acquire_that_is_dropped_gives_no_slot_back_that_a_copy_still_writes() {
    let (device, copier) = software(DeviceConfig::default());
    let rig = with_blocks_below(&copier).await;
    let keys = keys(0, 8);
    device.pause();
    let mut acquire = Box::pin(rig.manager.acquire(&keys));
    assert!(poll!(&mut acquire).is_pending());
    assert_eq!((rig.manager.stats().mutable, rig.host.stats().active), (8, 8));
    drop(acquire);
    // Nobody waits, and the device has all of it still.
    let stats = rig.manager.stats();
    assert_eq!((stats.free, stats.mutable, stats.cached), (8, 8, 0));
    assert_eq!(rig.host.stats().active, 8, "what is read stays");
    assert!(rig.manager.allocate(9).is_err() && rig.manager.match_prefix(&keys).is_empty());
    device.resume();
    until(|| rig.manager.stats().free == 16 && rig.host.stats().cached == 8).await;
    assert_eq!(serve_there(&rig.manager, &keys).await.sources.host, 8);
    assert_eq!(device.violations(), 0);
}

#[tokio::test]
async fn a_write_that_is_dropped_gives_its_slot_back_when_it_has_passed() {
    let (device, copier) = software(DeviceConfig::default());
    let rig = rig(&copier, SIZES, TiersConfig::default());
    device.pause();
    let block = rig.manager.allocate(1).unwrap().remove(0);
    let mut write = Box::pin(block.upload(vec![0xff; layout().block_bytes()]));
    assert!(poll!(&mut write).is_pending());
    drop(write);
    assert_eq!(rig.manager.stats().mutable, 1);
    device.resume();
    until(|| rig.manager.stats().free == 16).await;
}

#[tokio::test]
async fn a_copy_that_hangs_is_a_miss_and_its_slots_come_back_when_it_has_passed() {
    let config = DeviceConfig::default().with_copy_deadline(HANGS);
    let (device, copier) = software(config);
    let rig = with_blocks_below(&copier).await;
    let keys = keys(0, 8);
    device.pause();
    let acquired = rig.manager.acquire(&keys).await;
    assert_eq!((acquired.blocks.len(), acquired.compute), (0, 0..8));
    assert_eq!(rig.manager.stats().mutable, 8);
    device.resume();
    until(|| rig.manager.stats().free == 16).await;
    assert_eq!(serve_there(&rig.manager, &keys).await.sources.host, 8);
}

#[tokio::test]
async fn a_block_that_does_not_come_down_is_lost_to_the_host_and_its_slot_is_not() {
    let config = DeviceConfig::default().with_copy_deadline(HANGS);
    let (device, copier) = software(config);
    let rig = rig(&copier, SIZES, TiersConfig::default());
    let keys = keys(0, 8);
    drop(serve_there(&rig.manager, &keys).await);
    device.pause();
    // As many as have a spare slot to leave by.
    drop(rig.manager.allocate(12).unwrap());
    let failed = || rig.manager.tiers().unwrap().tiers[0].stats.failed_total;
    until(|| failed() == 4).await;
    assert_eq!((rig.manager.tiers().unwrap().spares, rig.host.stats().mutable), (0, 4));
    device.resume();
    rig.written([4, 0]).await;
    until(|| rig.host.stats().free == 32).await;
    assert_eq!(rig.manager.acquire(&keys).await.compute, 4..8, "leaves go first");
    rig.check_events();
}

#[tokio::test]
async fn more_copies_than_a_device_takes_are_misses_and_nothing_is_lost() {
    let (device, copier) = software(DeviceConfig::default().with_copies_max(1));
    let rig = with_blocks_below(&copier).await;
    device.pause();
    let other = rig.manager.allocate(1).unwrap().remove(0);
    let mut write = Box::pin(other.upload(vec![0; layout().block_bytes()]));
    assert!(poll!(&mut write).is_pending());
    let acquired = rig.manager.acquire(&keys(0, 8)).await;
    assert_eq!(acquired.compute, 0..8);
    let refused = rig.manager.allocate(1).unwrap().remove(0);
    let refused = refused.upload(vec![0; layout().block_bytes()]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    assert_eq!(rig.manager.stats().free, 15);
    device.resume();
    drop(write.await.unwrap());
    assert_eq!(serve_there(&rig.manager, &keys(0, 8)).await.sources.host, 8);
}

#[tokio::test]
async fn of_a_device_that_is_lost_the_host_keeps_its_blocks_and_nobody_waits() {
    let (device, copier) = software(DeviceConfig::default());
    let rig = with_blocks_below(&copier).await;
    let keys = keys(0, 8);
    drop(serve_there(&rig.manager, &keys[..4]).await);
    device.pause();
    let mut waiting = Box::pin(rig.manager.acquire(&keys));
    assert!(poll!(&mut waiting).is_pending());
    device.lose("fallen off the bus");
    // The next to call notices, and all are told.
    let block = rig.manager.allocate(1).unwrap().remove(0);
    let refused = block.upload(vec![0; layout().block_bytes()]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    let acquired = waiting.await;
    assert_eq!((acquired.sources.device, acquired.compute.clone()), (4, 4..8));
    // What the device may still touch is never given back, and is counted.
    let stats = rig.manager.stats();
    assert_eq!((stats.active, stats.mutable, stats.free), (4, 5, 7), "{stats:?}");
    assert_eq!(rig.host.match_prefix(&keys).len(), 8);
    check(&rig.host.match_prefix(&keys), &keys);
    drop(acquired);
    // What is evicted goes nowhere, and nobody waits for it for ever.
    drop(rig.manager.reserve(11).await.unwrap());
    rig.manager.shutdown(PATIENCE).await.unwrap();
    assert_eq!(rig.manager.acquire(&keys).await.compute.len(), 8);
    rig.check_events();
}

#[tokio::test]
async fn after_the_shutdown_the_host_gives_and_takes_no_more() {
    let (_device, copier) = software(DeviceConfig::default());
    let rig = with_blocks_below(&copier).await;
    rig.manager.shutdown(PATIENCE).await.unwrap();
    assert_eq!(rig.manager.acquire(&keys(0, 8)).await.compute, 0..8);
    assert_eq!(rig.host.match_prefix(&keys(0, 8)).len(), 8, "its memory is there still");
    drop(serve_there(&rig.manager, &keys(1, 8)).await);
    drop(rig.manager.reserve(16).await.unwrap());
    assert_eq!(rig.host.stats().cached, 8);
    rig.manager.shutdown(PATIENCE).await.unwrap();
}
