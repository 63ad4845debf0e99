//! Many at once acquire, allocate and register over files that fail and are damaged; every block that
//! comes is compared with the truth.

use std::fs::OpenOptions;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use dynamo_core::random::Random;
use dynamo_kv::tier::disk::{DiskTier, OnForeign};
use dynamo_kv::{BlockManager, Offload, TierConfig, TiersConfig};
use dynamo_transfer::file::{FileAct, FileEngine, FileFault, FileFaults, FileStoreConfig};

use super::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hundred_thousand_blocks_from_a_disk_that_fails_none_is_wrong() {
    run(100_000).await;
}

/// `cargo test --release -p dynamo-kv --test tiers -- --ignored --nocapture ten_million`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes; its command is in its documentation"]
async fn of_ten_million_blocks_from_a_disk_that_fails_none_is_wrong() {
    run(10_000_000).await;
}

const HOST: usize = 24;
const DISK: u32 = 80;
const TASKS: u64 = 4;

/// What happened in all lives.
#[derive(Debug, Default)]
struct Total {
    from_disk: AtomicU64,
    from_host: AtomicU64,
    failed: AtomicU64,
    delayed: AtomicU64,
    damaged: AtomicU64,
    lost: AtomicU64,
    dropped: AtomicU64,
    evicted: AtomicU64,
    recovered: AtomicU64,
    lives: AtomicU64,
}

async fn run(hits: u64) {
    let total = Arc::new(Total::default());
    let mut seed = 0;
    while total.from_disk.load(Ordering::Relaxed) < hits {
        live(seed, &total).await;
        seed += 1;
    }
    say(&format!("{total:?}"));
    let seen = [
        &total.from_host,
        &total.failed,
        &total.delayed,
        &total.damaged,
        &total.lost,
        &total.dropped,
    ];
    assert!(seen.iter().all(|count| count.load(Ordering::Relaxed) > 0), "{total:?}");
    assert!(
        total.evicted.load(Ordering::Relaxed) > 0 && total.recovered.load(Ordering::Relaxed) > 0
    );
}

/// Opens a directory twice, and has tasks work on it; it is damaged meanwhile and in between.
async fn live(seed: u64, total: &Arc<Total>) {
    let scratch = Arc::new(Scratch::new());
    let mut random = Random::new(seed);
    let is_failing = Arc::new(AtomicBool::new(false));
    for _ in 0..2 {
        let faults = faults(random.next_u64(), Arc::clone(&is_failing), Arc::clone(total));
        let files = FileStoreConfig::default().with_engine(FileEngine::Pool);
        let files = files.with_faults(faults.clone());
        let mut releasing = tokio::task::JoinSet::new();
        releasing.spawn(release(faults));
        let config = scratch
            .config(DISK)
            .with_direct(false)
            .with_on_foreign(OnForeign::Reinitialise)
            .with_files(files);
        is_failing.store(false, Ordering::SeqCst);
        let disk = Arc::new(DiskTier::open(config).await.unwrap());
        total.recovered.fetch_add(disk.recovery().blocks as u64, Ordering::Relaxed);
        let offload = [Offload::OnEviction, Offload::WriteThrough, Offload::AfterUses(1)];
        let offload = offload[random.below(3).unwrap()];
        let is_exclusive = offload == Offload::OnEviction && random.below(2) == Some(0);
        let tier = TierConfig::new(disk.clone()).with_offload(offload).with_exclusive(is_exclusive);
        let tiers = TiersConfig::default()
            .with_tier(tier)
            .with_queue_blocks(1 + random.below(12).unwrap())
            .with_reserve_timeout(Duration::from_millis(100));
        let (manager, events) = manager(HOST, tiers);
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..TASKS {
            let (manager, total) = (manager.clone(), Arc::clone(total));
            let (scratch, is_failing) = (Arc::clone(&scratch), Arc::clone(&is_failing));
            let mut random = Random::new(random.next_u64());
            tasks.spawn(async move {
                for _ in 0..STEPS {
                    step(&manager, &mut random, &total, (&scratch, &is_failing)).await;
                }
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
        is_failing.store(false, Ordering::SeqCst);
        manager.shutdown(PATIENCE).await.unwrap();
        let tiers = manager.tiers().unwrap();
        let stats = disk.stats();
        let lost = stats.damaged_total + stats.unreadable_total;
        total.lost.fetch_add(lost, Ordering::Relaxed);
        total.dropped.fetch_add(tiers.tiers[0].offload_dropped_total, Ordering::Relaxed);
        total.evicted.fetch_add(stats.evicted_total, Ordering::Relaxed);
        total.lives.fetch_add(1, Ordering::Relaxed);
        // Whatever happened, nothing is lost of memory, and the events say what is there.
        let pool = manager.stats();
        assert_eq!(pool.free + pool.cached, HOST, "{pool:?}");
        let known = replay(events.lock().unwrap().iter().map(|event| &event.change));
        assert_eq!(known, replay(&manager.snapshot().stored));
        drop((manager, disk));
        for _ in 0..random.below(6).unwrap() {
            damage(scratch.path(), &mut random, total);
        }
    }
}

async fn step(
    manager: &BlockManager,
    random: &mut Random,
    total: &Total,
    (scratch, is_failing): (&Scratch, &AtomicBool),
) {
    let keys = any_keys(random);
    match random.below(40).unwrap() {
        0 => is_failing.store(true, Ordering::SeqCst),
        1..4 => is_failing.store(false, Ordering::SeqCst),
        4 => damage(scratch.path(), random, total),
        5 => manager.clear(),
        6 => drop(manager.prefetch(keys)),
        7 => {
            // Whoever gets a slot writes what it likes, and may give it back.
            let blocks = manager.allocate(keys.len());
            blocks.into_iter().flatten().for_each(|mut block| block.fill(0xff));
        }
        8 | 9 => {
            give_up(manager.acquire(&keys), random.below(4).unwrap()).await;
        }
        number => {
            let mut acquired = manager.acquire(&keys).await;
            check(&acquired.blocks, &keys);
            let from_disk = acquired.sources.disk as u64;
            total.from_disk.fetch_add(from_disk, Ordering::Relaxed);
            total.from_host.fetch_add(acquired.sources.host as u64, Ordering::Relaxed);
            let rest = &keys[acquired.compute.clone()];
            let blocks = match number % 2 {
                0 => manager.allocate(rest.len()),
                _ => manager.reserve(rest.len()).await,
            };
            if let Ok(blocks) = blocks {
                acquired.blocks.append(manager.register_all(compute(blocks, rest)));
            }
            tokio::task::yield_now().await;
            check(&acquired.blocks, &keys);
        }
    }
}

/// Flips a bit, or overwrites a sector, of the blocks or of what is said of them.
fn damage(dir: &Path, random: &mut Random, total: &Total) {
    let name = ["dynamo-kv.blocks", "dynamo-kv.manifest"][random.below(2).unwrap()];
    let mut file = OpenOptions::new().read(true).write(true).open(dir.join(name)).unwrap();
    let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
    // Not the first superblock: of both the directory would be made anew.
    let at = 4096 + random.below(len.saturating_sub(4096 + 512).max(1)).unwrap() as u64;
    let mut bytes = [0u8; 256];
    file.seek(SeekFrom::Start(at)).unwrap();
    let count = file.read(&mut bytes).unwrap();
    match random.below(2).unwrap() {
        0 => bytes[0] ^= 1 << random.below(8).unwrap(),
        _ => bytes.fill(0xee),
    }
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&bytes[..count]).unwrap();
    total.damaged.fetch_add(1, Ordering::Relaxed);
}

/// Makes the calls that are held, later than they came.
async fn release(faults: FileFaults) {
    loop {
        tokio::time::sleep(Duration::from_millis(1)).await;
        faults.release();
    }
}

/// While it is told so, calls fail, move less than they should, come late, or come to nothing for want
/// of room.
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
            3 if random.below(4) == Some(0) => {
                total.delayed.fetch_add(1, Ordering::Relaxed);
                return FileFault::Hold;
            }
            _ => return FileFault::Pass,
        };
        total.failed.fetch_add(1, Ordering::Relaxed);
        fault
    })
}

const STEPS: usize = 400;
