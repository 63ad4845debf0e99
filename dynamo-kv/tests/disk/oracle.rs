//! Random stores and loads over files that fail and are damaged; every hit is compared with the truth.

use std::fs::{self, OpenOptions};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use dynamo_core::random::Random;
use dynamo_kv::tier::disk::{DiskConfig, DiskStats, DiskTier, OnForeign};
use dynamo_transfer::file::{FileAct, FileFault, FileFaults};

use crate::support::{
    Scratch, Truth, faulty, key, open, quiet, read_at, record_at, shut, store, stride, write_at,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hundred_thousand_hits_over_failing_and_damaged_files_none_is_wrong() {
    run(100_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes; `cargo test -p dynamo-kv --test disk -- --ignored --nocapture two_million`"]
async fn of_two_million_hits_over_failing_and_damaged_files_none_is_wrong() {
    run(2_000_000).await;
}

const SLOTS: u32 = 24;
const NUMBERS: usize = 32;

/// Runs seeds, two at a time, until there were as many hits.
async fn run(hits: u64) {
    let (seeds, sum) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut lanes = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let (seeds, sum) = (Arc::clone(&seeds), Arc::clone(&sum));
        lanes.spawn(async move {
            let mut total = Total::default();
            while sum.load(Ordering::Relaxed) < hits {
                let before = total.stats.hits_total;
                let world = World::new(seeds.fetch_add(1, Ordering::Relaxed));
                let faults = world.faults.clone();
                tokio::select! {
                    () = world.live(&mut total) => {}
                    () = release(faults) => {}
                }
                sum.fetch_add(total.stats.hits_total - before, Ordering::Relaxed);
            }
            total
        });
    }
    let mut total = Total::default();
    while let Some(lane) = lanes.join_next().await {
        let lane = lane.unwrap();
        total.add(&lane.stats);
        total.injected += lane.injected;
        total.delayed += lane.delayed;
        total.lives += lane.lives;
        total.recovered += lane.recovered;
    }
    let said = format!("{} seeds: {total:?}\n", seeds.load(Ordering::Relaxed));
    std::io::Write::write_all(&mut std::io::stderr(), said.as_bytes()).unwrap();
    let stats = total.stats;
    assert!(stats.hits_total >= hits && total.recovered > 0);
    assert!(total.injected > 0 && total.delayed > 0, "{total:?}");
    let kinds = [stats.damaged_total, stats.unreadable_total, stats.failed_total];
    assert!(kinds.iter().all(|count| *count > 0) && stats.evicted_total > 0, "{total:?}");
}

#[derive(Debug, Default)]
struct Total {
    stats: DiskStats,
    lives: u64,
    /// Calls that failed, and damages that were tried on files.
    injected: u64,
    /// Calls that were made later than they came.
    delayed: u64,
    /// Blocks that were found when a directory was opened.
    recovered: u64,
}

impl Total {
    fn add(&mut self, stats: &DiskStats) {
        let all = &mut self.stats;
        all.hits_total += stats.hits_total;
        all.absent_total += stats.absent_total;
        all.damaged_total += stats.damaged_total;
        all.unreadable_total += stats.unreadable_total;
        all.stored_total += stats.stored_total;
        all.present_total += stats.present_total;
        all.failed_total += stats.failed_total;
        all.evicted_total += stats.evicted_total;
    }
}

/// A directory, and all that may happen to it.
struct World {
    random: Random,
    scratch: Scratch,
    truth: Truth,
    config: DiskConfig,
    is_failing: Arc<AtomicBool>,
    faults: FileFaults,
    failed: Arc<AtomicU64>,
    delayed: Arc<AtomicU64>,
    /// The files as they were once: manifest and blocks.
    old: Option<[Vec<u8>; 2]>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        // Whole pages past the page cache now and then: that goes to the device.
        let is_direct = seed % 16 == 15;
        let block_bytes =
            if is_direct { 4096 } else { [512, 1536, 5000][random.below(3).unwrap()] };
        let scratch = Scratch::new();
        let is_failing = Arc::new(AtomicBool::new(false));
        let failed = Arc::new(AtomicU64::new(0));
        let delayed = Arc::new(AtomicU64::new(0));
        let counts = (Arc::clone(&failed), Arc::clone(&delayed));
        let faults = faults(random.next_u64(), Arc::clone(&is_failing), counts);
        let config = scratch
            .config(SLOTS, block_bytes)
            .with_direct(is_direct)
            .with_in_flight(1 + random.below(16).unwrap())
            .with_on_foreign(OnForeign::Reinitialise)
            .with_files(faulty(&faults));
        let truth = Truth::new(NUMBERS as u64, block_bytes);
        Self { random, scratch, truth, config, is_failing, faults, failed, delayed, old: None }
    }

    /// Opens the directory a few times; in between, its files are damaged.
    async fn live(mut self, total: &mut Total) {
        for _ in 0..6 {
            let tier = self.open().await;
            total.recovered += tier.recovery().blocks as u64;
            for key_found in tier.keys() {
                assert!((0..NUMBERS as u64).any(|number| key(number) == key_found), "another key");
            }
            for _ in 0..self.random.below(30).unwrap() {
                self.step(&tier, total).await;
            }
            self.is_failing.store(false, Ordering::SeqCst);
            let stats = tier.stats();
            assert_eq!(stats.held, 0, "nothing is in flight");
            assert_eq!(stats.blocks + stats.free + stats.lost, SLOTS as usize);
            total.add(&stats);
            total.lives += 1;
            match self.chance(4) {
                true => shut(tier).await,
                false => drop(tier),
            }
            if self.chance(2) {
                self.old = Some(
                    [self.scratch.manifest(), self.scratch.blocks()]
                        .map(|path| fs::read(path).unwrap_or_default()),
                );
            }
            for _ in 0..self.random.below(8).unwrap() {
                self.damage(true);
                total.injected += 1;
            }
        }
        total.injected += self.failed.load(Ordering::Relaxed);
        total.delayed += self.delayed.load(Ordering::Relaxed);
    }

    /// Opens the directory over a device that fails, or if that is no use, over one that does not.
    async fn open(&mut self) -> DiskTier {
        let is_failing = self.chance(3);
        self.is_failing.store(is_failing, Ordering::SeqCst);
        if let Ok(tier) = open(self.config.clone()).await {
            return tier;
        }
        self.is_failing.store(false, Ordering::SeqCst);
        open(self.config.clone()).await.unwrap()
    }

    async fn step(&mut self, tier: &DiskTier, total: &mut Total) {
        let is_failing = self.chance(4);
        self.is_failing.store(is_failing, Ordering::SeqCst);
        let numbers: Vec<_> = (0..8).map(|_| self.number()).collect();
        match self.random.below(20).unwrap() {
            0 | 1 => {
                self.damage(false);
                total.injected += 1;
            }
            2 => drop(tier.remove(&key(numbers[0]).identity).await),
            3 if self.chance(8) => drop(tier.clear().await),
            4 => {
                // Given up somewhere on its way.
                let mut store = Box::pin(store(tier, &self.truth, numbers));
                for _ in 0..self.random.below(4).unwrap() {
                    if futures::poll!(&mut store).is_ready() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                drop(store);
                quiet(tier).await;
            }
            5..10 => drop(store(tier, &self.truth, numbers).await),
            _ => {
                let identities: Vec<_> = (0..64).map(|_| key(self.number()).identity).collect();
                let loads = self.truth.load(tier, &identities);
                // At once with what writes over the oldest.
                let stores = store(tier, &self.truth, numbers.into_iter().take(2));
                tokio::join!(loads, stores);
            }
        }
    }

    /// Damages a file; those that are in use are not taken away nor put back as a whole.
    fn damage(&mut self, is_closed: bool) {
        let (manifest, blocks) = (self.scratch.manifest(), self.scratch.blocks());
        let Ok(manifest_len) = fs::metadata(&manifest).map(|found| found.len()) else { return };
        let Ok(blocks_len) = fs::metadata(&blocks).map(|found| found.len()) else { return };
        let stride = stride(self.truth.block_bytes);
        let is_whole =
            manifest_len == record_at(u64::from(SLOTS)) && blocks_len == u64::from(SLOTS) * stride;
        if !is_whole {
            return;
        }
        let other = self.number();
        let [one, two] = [(); 2].map(|()| self.random.below(SLOTS as usize).unwrap() as u64);
        let kinds = if is_closed { 14 } else { 6 };
        match self.random.below(kinds).unwrap() {
            // A bit of a block, or of a record.
            0 | 1 => self.flip(&blocks, one * stride, self.truth.block_bytes),
            2 => self.flip(&manifest, record_at(one), 256),
            // A block torn at a sector, or never written: another's bytes, or zeros.
            3 | 4 => {
                let sectors = self.truth.block_bytes.div_ceil(512);
                let torn =
                    (512 * (1 + self.random.below(sectors).unwrap())).min(self.truth.block_bytes);
                let bytes = match self.chance(3) {
                    true => vec![0; torn],
                    false => self.truth.block(other).1[..torn].to_vec(),
                };
                write_at(&blocks, one * stride, &bytes);
            }
            // Blocks, records, or both in another's place.
            5 => copy(&blocks, one * stride, two * stride, self.truth.block_bytes),
            6 => copy(&manifest, record_at(one), record_at(two), 256),
            7 => {
                copy(&blocks, one * stride, two * stride, self.truth.block_bytes);
                copy(&manifest, record_at(one), record_at(two), 256);
            }
            // A sector of records as it was: new blocks with old records.
            8 | 9 => self.restore(0, record_at(one) / 512 * 512, 512),
            // A block as it was: an old block with a new record.
            10 => self.restore(1, one * stride, self.truth.block_bytes),
            11 => self.flip(&manifest, 4096 * (one % 2), 512),
            12 => {
                let (path, len) =
                    if self.chance(2) { (manifest, manifest_len) } else { (blocks, blocks_len) };
                let len = self.random.below(usize::try_from(len).unwrap()).unwrap() as u64;
                OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
            }
            _ => fs::remove_file(if self.chance(2) { manifest } else { blocks }).unwrap(),
        }
    }

    fn flip(&mut self, path: &std::path::Path, offset: u64, len: usize) {
        let offset = offset + self.random.below(len).unwrap() as u64;
        let bit = 1 << self.random.below(8).unwrap();
        write_at(path, offset, &[read_at(path, offset, 1)[0] ^ bit]);
    }

    fn restore(&mut self, file: usize, offset: u64, len: usize) {
        let path = [self.scratch.manifest(), self.scratch.blocks()][file].clone();
        let at = usize::try_from(offset).unwrap();
        let Some(old) = &self.old else { return };
        if let Some(bytes) = old[file].get(at..(at + len).min(old[file].len())) {
            write_at(&path, offset, bytes);
        }
    }

    fn number(&mut self) -> u64 {
        self.random.below(NUMBERS).unwrap() as u64
    }

    fn chance(&mut self, of: usize) -> bool {
        self.random.below(of) == Some(0)
    }
}

fn copy(path: &std::path::Path, from: u64, to: u64, len: usize) {
    write_at(path, to, &read_at(path, from, len));
}

/// Makes the calls that are held, later than they came.
async fn release(faults: FileFaults) {
    loop {
        tokio::time::sleep(Duration::from_millis(1)).await;
        faults.release();
    }
}

/// While it is told so, calls fail, come late, move less than they should, or are torn at a sector.
fn faults(
    seed: u64,
    is_failing: Arc<AtomicBool>,
    (failed, delayed): (Arc<AtomicU64>, Arc<AtomicU64>),
) -> FileFaults {
    let mut random = Random::new(seed);
    // Where the rest of a torn call begins.
    let mut torn = None;
    FileFaults::new(move |call| {
        if !is_failing.load(Ordering::SeqCst) {
            return FileFault::Pass;
        }
        if torn.take_if(|rest| *rest == (call.act, call.offset)).is_some() {
            failed.fetch_add(1, Ordering::Relaxed);
            return FileFault::Fail(libc::EIO);
        }
        let sector = 512 * (1 + random.below(call.len.div_ceil(512).max(1)).unwrap());
        match random.below(16).unwrap() {
            0 => fail(&failed, libc::EIO),
            1 if call.act == FileAct::Write => fail(&failed, libc::ENOSPC),
            2 => FileFault::Cut(1 + random.below(call.len.max(1)).unwrap()),
            4 => {
                delayed.fetch_add(1, Ordering::Relaxed);
                FileFault::Hold
            }
            3 if sector < call.len => {
                torn = Some((call.act, call.offset + sector as u64));
                FileFault::Cut(sector)
            }
            _ => FileFault::Pass,
        }
    })
}

fn fail(failed: &AtomicU64, code: i32) -> FileFault {
    failed.fetch_add(1, Ordering::Relaxed);
    FileFault::Fail(code)
}
