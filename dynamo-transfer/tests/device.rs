//! Device memory without a GPU: the software device keeps the contract, and the copier keeps its word
//! when copies hang, are dropped, or the device is lost.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::sync::Arc;
use std::time::Duration;

use dynamo_transfer::device::{
    BlockCopy, DeviceConfig, DeviceCopier, IpcHandle, Method, SoftwareDevice, conformance,
};
use dynamo_transfer::{
    Agent, AgentConfig, ErrorKind, HostBuffer, MemoryFabric, SharedSlot, Slot, TransferOptions,
};

const MEMORY: u64 = 256 << 20;

fn device(config: DeviceConfig) -> (SoftwareDevice, DeviceCopier) {
    let device = SoftwareDevice::new(MEMORY).unwrap();
    let copier = DeviceCopier::software(&device, config).unwrap();
    (device, copier)
}

const BLOCK: [BlockCopy; 1] = [BlockCopy { source: 0, target: 0, len: 4096 }];

#[tokio::test]
async fn the_software_device_keeps_the_contract() {
    let (device, copier) = device(DeviceConfig::default());
    conformance::run(&copier, 1).await;
    copier.shutdown().await.unwrap();
    assert_eq!((device.in_use_bytes(), device.violations()), (0, 0));
}

#[tokio::test]
async fn each_method_of_copying_keeps_the_contract() {
    for (seed, method) in [(2, Method::Each), (3, Method::Batch), (4, Method::Kernel)] {
        let (device, copier) = device(DeviceConfig::default().with_method(method));
        conformance::run(&copier, seed).await;
        assert_eq!((device.in_use_bytes(), device.violations()), (0, 0));
    }
}

#[tokio::test]
async fn memory_is_shared_between_processes_that_both_let_go_of_it() {
    let (device, exporter) = device(DeviceConfig::default());
    let sibling = device.sibling().unwrap();
    let importer = DeviceCopier::software(&sibling, DeviceConfig::default()).unwrap();
    conformance::share(&exporter, &importer).await;
    assert_eq!((device.in_use_bytes(), device.violations()), (0, 0));
    assert_eq!(sibling.violations(), 0);

    // What CUDA leaves undefined is told here: the owner frees what another still has.
    let buffer = exporter.allocate(4096).unwrap();
    let handle = IpcHandle::from_bytes(&buffer.export().unwrap().to_bytes()).unwrap();
    let opened = importer.open(&handle).unwrap();
    drop(buffer);
    assert_eq!(device.violations(), 1);
    drop(opened);
    assert_eq!(device.in_use_bytes(), 0);
}

#[tokio::test]
async fn a_dropped_copy_keeps_its_memory_until_the_stream_has_passed_it() {
    let (device, copier) = device(DeviceConfig::default());
    device.pause();
    let target = copier.allocate(4096).unwrap();
    let source = Arc::new(copier.allocate_pinned(4096).unwrap());
    let (watched, into) = (Arc::downgrade(&source), copier.allocate_pinned(4096).unwrap());
    let up = copier.upload(&source, &target, &BLOCK);
    let down = copier.download(&target, into, &BLOCK);
    drop((up, down, source, target));
    tokio::task::yield_now().await;
    assert!(watched.upgrade().is_some());
    assert_eq!(device.in_use_bytes(), 3 * 4096);
    device.resume();
    // The shutdown waits for what is in flight, waited for or not.
    copier.shutdown().await.unwrap();
    assert!(watched.upgrade().is_none());
    assert_eq!((device.in_use_bytes(), device.violations()), (0, 0));
}

#[tokio::test]
async fn pieces_of_a_dropped_copy_are_untouchable_until_it_has_passed() {
    let (device, copier) = device(DeviceConfig::default());
    device.pause();
    let target = copier.allocate(8192).unwrap();
    let pinned = || HostBuffer::from(copier.allocate_pinned(8192).unwrap()).into_slots(4096);
    let source: Vec<_> = pinned().map(Slot::share).collect();
    let owners =
        |source: &[SharedSlot]| source.iter().map(SharedSlot::holders_count).collect::<Vec<_>>();
    let up = copier.upload_pieces((0..).step_by(4096).zip(source.clone()).collect(), &target);
    let down = copier.download_pieces(&target, (0..).step_by(4096).zip(pinned()).collect());
    let kept = Arc::new(());
    let across = copier.copy_keeping(&target, &target, &BLOCK, Arc::clone(&kept));
    // Posted by the calls, since what is pinned holds nobody up.
    assert_eq!(device.waiting(), 3);
    drop((up, down, across));
    tokio::task::yield_now().await;
    assert_eq!((owners(&source), Arc::strong_count(&kept)), (vec![2, 2], 2));
    device.resume();
    copier.shutdown().await.unwrap();
    assert_eq!((owners(&source), Arc::strong_count(&kept)), (vec![1, 1], 1));
    drop((source, target));
    assert_eq!((device.in_use_bytes(), device.violations()), (0, 0));
}

#[tokio::test]
async fn a_stream_that_hangs_ends_the_wait_at_the_deadline_and_not_the_memory() {
    let config = DeviceConfig::default().with_copy_deadline(Duration::from_millis(50));
    let (device, copier) = device(config);
    device.pause();
    let target = copier.allocate(4096).unwrap();
    let source = Arc::new(copier.allocate_pinned(4096).unwrap());
    let error = copier.upload(&source, &target, &BLOCK).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    drop((source, target));
    let error = copier.shutdown().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(device.in_use_bytes(), 2 * 4096);
    device.resume();
    copier.shutdown().await.unwrap();
    assert_eq!((device.in_use_bytes(), device.violations()), (0, 0));
}

#[tokio::test]
async fn a_lost_device_fails_whoever_waits_and_keeps_the_memory_for_ever() {
    let (device, copier) = device(DeviceConfig::default());
    device.pause();
    let target = copier.allocate(4096).unwrap();
    let source = Arc::new(copier.allocate_pinned(4096).unwrap());
    let waiting = copier.upload(&source, &target, &BLOCK);
    device.lose("the device has fallen off the bus");
    // The next to call notices, and all are told.
    let noticed = copier.upload(&source, &target, &BLOCK).await.unwrap_err();
    let told = waiting.await.unwrap_err();
    for error in [noticed, told, copier.allocate(1).map(drop).unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::BackendUnavailable);
        assert!(error.to_string().contains("fallen off the bus"), "{error}");
    }
    let watched = Arc::downgrade(&source);
    drop((source, target));
    assert!(watched.upgrade().is_some());
    assert_eq!(device.in_use_bytes(), 2 * 4096);
}

#[tokio::test]
async fn a_silent_loss_is_noticed_at_the_deadline() {
    let config = DeviceConfig::default().with_copy_deadline(Duration::from_millis(50));
    let (device, copier) = device(config);
    device.pause();
    let target = copier.allocate(4096).unwrap();
    let source = Arc::new(copier.allocate_pinned(4096).unwrap());
    let waiting = copier.upload(&source, &target, &BLOCK);
    device.lose("gone");
    assert_eq!(waiting.await.unwrap_err().kind(), ErrorKind::BackendUnavailable);
}

#[tokio::test]
async fn copies_beyond_the_limit_are_refused_and_passing_makes_room() {
    let (device, copier) = device(DeviceConfig::default().with_copies_max(2));
    device.pause();
    let target = copier.allocate(4096).unwrap();
    let source = Arc::new(copier.allocate_pinned(4096).unwrap());
    let first = copier.upload(&source, &target, &BLOCK);
    // A dropped one counts until it has passed.
    drop(copier.upload(&source, &target, &BLOCK));
    let refused = copier.upload(&source, &target, &BLOCK).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    device.resume();
    first.await.unwrap();
    let fits = async {
        while copier.upload(&source, &target, &BLOCK).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), fits).await.expect("the dropped one passes");
    assert_eq!(device.violations(), 0);
}

#[tokio::test]
async fn after_the_shutdown_copies_are_refused_and_memory_can_still_be_dropped() {
    let (device, copier) = device(DeviceConfig::default());
    let target = copier.allocate(4096).unwrap();
    let source = Arc::new(copier.allocate_pinned(4096).unwrap());
    copier.shutdown().await.unwrap();
    copier.shutdown().await.unwrap();
    let refused = copier.upload(&source, &target, &BLOCK).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Closed);
    drop((source, target, copier));
    assert_eq!((device.in_use_bytes(), device.violations()), (0, 0));
}

#[tokio::test]
async fn a_buffer_of_another_device_is_refused() {
    let (_one, copier) = device(DeviceConfig::default());
    let (_other, stranger) = device(DeviceConfig::default());
    let target = stranger.allocate(4096).unwrap();
    let source = Arc::new(copier.allocate_pinned(4096).unwrap());
    let refused = copier.upload(&source, &target, &BLOCK).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    let bad = DeviceConfig::default().with_copies_max(0);
    let refused = DeviceCopier::software(&SoftwareDevice::new(1).unwrap(), bad).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn pinned_memory_is_a_region_that_peers_fill_and_a_device_takes() {
    let (device, copier) = device(DeviceConfig::default());
    let fabric = MemoryFabric::new();
    let agent = async |name| {
        Agent::start(AgentConfig::default().with_name(name).with_fabric(fabric.clone())).await
    };
    let (owner, reader) = (agent("owner").await.unwrap(), agent("reader").await.unwrap());
    let mut source = copier.allocate_pinned(8192).unwrap();
    source[4096..].fill(7);
    let source = owner.register(vec![source]).unwrap();
    let target = reader.register_mut(vec![copier.allocate_pinned(4096).unwrap()]).unwrap();
    let peer = reader.load_metadata(&owner.metadata([source.grant()]).unwrap()).unwrap();
    let remote = peer.regions()[0].descriptor([(4096, 4096)]).unwrap();
    let local = target.descriptor([(0, 4096)]).unwrap();
    reader.read(local, remote, TransferOptions::default()).await.unwrap();
    let staged = Arc::new(target.close().await.remove(0));
    let blocks = copier.allocate(4096).unwrap();
    copier.upload(&staged, &blocks, &BLOCK).await.unwrap();
    assert_eq!(blocks.copy_to(&copier, 0, 4096).await.unwrap(), [7; 4096]);
    drop((staged, blocks, source));
    assert_eq!((device.in_use_bytes(), device.violations()), (0, 0));
}

/// Where there is a GPU there is no such number of them; where there is none, the loader names what it
/// did not find.
#[tokio::test]
async fn a_device_that_is_not_there_is_unavailable_and_says_why() {
    let refused = DeviceCopier::cuda(9_999, DeviceConfig::default()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::BackendUnavailable);
    let whys: &[&str] = match cfg!(all(unix, feature = "cuda")) {
        true => &["libcuda.so.1: ", "no CUDA device 9999"],
        false => &["cuda"],
    };
    assert!(whys.iter().any(|why| refused.message().contains(why)), "{refused}");
}
