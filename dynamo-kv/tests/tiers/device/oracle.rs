//! Many at once acquire, write, drop and clear over a device that stops and refuses, a host pool and a
//! disk that fails; every block that comes is compared with the truth.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use dynamo_core::random::Random;
use dynamo_kv::tier::disk::DiskTier;
use dynamo_kv::{BlockMemory, Offload};
use dynamo_transfer::device::{DeviceConfig, SoftwareDevice};
use dynamo_transfer::file::{FileAct, FileEngine, FileFault, FileFaults, FileStoreConfig};

use super::support::*;
use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_ten_thousand_blocks_that_came_to_a_device_none_is_wrong() {
    run(10_000).await;
}

/// `cargo test --release -p dynamo-kv --test tiers -- --ignored --nocapture million_blocks`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes; its command is in its documentation"]
async fn of_a_million_blocks_that_came_to_a_device_none_is_wrong() {
    run(1_000_000).await;
}

const SIZES: Sizes = Sizes { device: 24, host: 40, queue: 0 };
const DISK: u32 = 80;
const TASKS: u64 = 4;
const STEPS: usize = 200;

/// What happened in all lives.
#[derive(Debug, Default)]
struct Total {
    from_device: AtomicU64,
    from_host: AtomicU64,
    from_disk: AtomicU64,
    given_up: AtomicU64,
    refused: AtomicU64,
    disk_failed: AtomicU64,
    not_stored: AtomicU64,
}

impl Total {
    fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }
}

async fn run(hits: u64) {
    let total = Arc::new(Total::default());
    let mut seed = 0;
    let came = || total.from_host.load(Ordering::Relaxed) + total.from_disk.load(Ordering::Relaxed);
    while came() < hits {
        live(seed, &total).await;
        seed += 1;
    }
    say(&format!("{total:?}, {seed} lives"));
    let Total { from_device, from_host, from_disk, given_up, refused, .. } = &*total;
    let seen = [from_device, from_host, from_disk, given_up, refused, &total.disk_failed];
    assert!(seen.iter().all(|count| count.load(Ordering::Relaxed) > 0), "{total:?}");
}

/// Has tasks work on two pools and a disk.
async fn live(seed: u64, total: &Arc<Total>) {
    let scratch = Scratch::new();
    let mut random = Random::new(seed);
    let is_failing = Arc::new(AtomicBool::new(false));
    let faults = faults(random.next_u64(), Arc::clone(&is_failing), Arc::clone(total));
    let files = FileStoreConfig::default().with_engine(FileEngine::Pool).with_faults(faults);
    let config = scratch.config(DISK).with_direct(false).with_files(files);
    let disk = Arc::new(DiskTier::open(config).await.unwrap());
    let copies_max = [2, 64][random.below(2).unwrap()];
    let (device, copier) = software(DeviceConfig::default().with_copies_max(copies_max));
    let is_pinned = random.below(3) != Some(0);
    let memory = if is_pinned { BlockMemory::Pinned(copier.clone()) } else { BlockMemory::Host };
    let offload = [Offload::OnEviction, Offload::WriteThrough][random.below(2).unwrap()];
    let sizes = Sizes { queue: 1 + random.below(12).unwrap(), ..SIZES };
    let tiers = over_disk(&disk, 1 + random.below(12).unwrap())
        .with_reserve_timeout(Duration::from_millis(100));
    let to_host = |tier: dynamo_kv::TierConfig| tier.with_offload(offload);
    let rig = Arc::new(rig_with(&copier, memory, sizes, (to_host, tiers)));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..TASKS {
        let (rig, total) = (Arc::clone(&rig), Arc::clone(total));
        let (device, is_failing) = (device.clone(), Arc::clone(&is_failing));
        let mut random = Random::new(random.next_u64());
        tasks.spawn(async move {
            for _ in 0..STEPS {
                step(&rig, &mut random, &total, (&device, &is_failing)).await;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    is_failing.store(false, Ordering::SeqCst);
    rig.manager.shutdown(PATIENCE).await.unwrap();
    let report = &rig.manager.tiers().unwrap().tiers[0];
    total.not_stored.fetch_add(report.stats.failed_total, Ordering::Relaxed);
    // Whatever happened, nothing is lost of either memory, and the events say what is there.
    copier.shutdown().await.unwrap();
    for manager in [&rig.manager, &rig.host] {
        let pool = manager.stats();
        assert_eq!(pool.free + pool.cached, pool.capacity, "{pool:?}");
    }
    rig.check_events();
    drop((rig, copier));
    assert_eq!((device.in_use_bytes(), device.violations()), (0, 0));
}

async fn step(
    rig: &Rig,
    random: &mut Random,
    total: &Total,
    (device, is_failing): (&SoftwareDevice, &AtomicBool),
) {
    let manager = &rig.manager;
    let keys = any_keys(random);
    match random.below(40).unwrap() {
        0 => is_failing.store(true, Ordering::SeqCst),
        1..4 => is_failing.store(false, Ordering::SeqCst),
        4 => manager.clear(),
        5 => rig.host.clear(),
        6 => drop(manager.prefetch(keys)),
        7 => {
            // Whoever gets a slot writes what it likes, and may give up on it while it is written.
            let Ok(blocks) = manager.allocate(keys.len()) else { return };
            for block in blocks {
                let mut write = Box::pin(block.upload(vec![0xff; layout().block_bytes()]));
                match random.below(2) {
                    Some(0) => drop(futures::poll!(&mut write)),
                    _ => drop(write.await),
                }
            }
        }
        8..11 => {
            // The device stops for a while, and somebody has enough of it.
            device.pause();
            give_up(manager.acquire(&keys), random.below(4).unwrap()).await;
            total.given_up.fetch_add(1, Ordering::Relaxed);
            device.resume();
        }
        _ => serve_random(rig, &keys, total).await,
    }
}

async fn serve_random(rig: &Rig, keys: &[dynamo_kv::BlockKey], total: &Total) {
    let mut acquired = rig.manager.acquire(keys).await;
    let sources = acquired.sources;
    let counts = [
        (&total.from_device, sources.device),
        (&total.from_host, sources.host),
        (&total.from_disk, sources.disk),
    ];
    for (count, more) in counts {
        count.fetch_add(more as u64, Ordering::Relaxed);
    }
    check_some(&acquired.blocks, keys, total).await;
    let rest = &keys[acquired.compute.clone()];
    let Ok(blocks) = rig.manager.allocate(rest.len()) else { return };
    match compute_there(blocks, rest).await {
        Ok(blocks) => acquired.blocks.append(rig.manager.register_all(blocks)),
        Err(_) => total.count_refused(),
    }
    tokio::task::yield_now().await;
    check_some(&acquired.blocks, keys, total).await;
}

/// Compares blocks, all of them: a device that refuses to show one is asked again.
async fn check_some(blocks: &dynamo_kv::BlockRun, keys: &[dynamo_kv::BlockKey], total: &Total) {
    for (block, key) in Vec::<dynamo_kv::RegisteredBlock>::from(blocks.clone()).iter().zip(keys) {
        assert_eq!(*block.identity(), key.identity, "another block");
        let bytes = loop {
            match block.download(vec![0; layout().block_bytes()]).await {
                Ok(bytes) => break bytes,
                Err(_) => total.count_refused(),
            }
            tokio::task::yield_now().await;
        };
        assert!(bytes == truth(key), "wrong bytes of {key:?}");
    }
}

/// While it is told so, calls fail, move less than they should, or come to nothing for want of room.
fn faults(seed: u64, is_failing: Arc<AtomicBool>, total: Arc<Total>) -> FileFaults {
    let mut random = Random::new(seed);
    FileFaults::new(move |call| {
        if !is_failing.load(Ordering::SeqCst) {
            return FileFault::Pass;
        }
        let fault = match random.below(12).unwrap() {
            0 => FileFault::Fail(libc::EIO),
            1 if call.act == FileAct::Write => FileFault::Fail(libc::ENOSPC),
            2 => FileFault::Cut(1 + random.below(call.len.max(1)).unwrap()),
            _ => return FileFault::Pass,
        };
        total.disk_failed.fetch_add(1, Ordering::Relaxed);
        fault
    })
}
