//! Files: blocks read and written through a store, beside the same calls made plainly.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use dynamo_transfer::HostBuffer;
use dynamo_transfer::file::{FileOptions, FileRange, FileRegion, FileStore, FileStoreConfig};
use io_uring::{IoUring, opcode, types};
use nix::time::{ClockId, clock_gettime};
use tokio::runtime::Runtime;

use crate::figures::{self, CPU, POST, RATE, quantile};
use crate::memory;
use crate::protocol::{Pattern, Right};
use crate::table::Table;
use crate::targets;

/// Who moves blocks between a file and memory.
enum Mover {
    Ours(FileStore, Runtime),
    /// One call after the other.
    Calls,
    /// As many at once as a store has.
    Ring(Box<IoUring>),
}

/// What one round took: seconds, those of them before the call returned, and processor seconds.
#[derive(Clone, Copy)]
struct Took {
    total: f64,
    post: f64,
    cpu: f64,
}

/// A file opened as plain calls need it, and as ours do.
struct Opened {
    plain: File,
    region: FileRegion,
}

pub const FILE: &str = "file";

/// Measures all in `folder`, and adds the rows.
pub fn run(folder: &Path, table: &mut Table) -> Result<()> {
    let path = folder.join(format!("blocks-{}", std::process::id()));
    let measured = measure(&path, table);
    // It may not have been created.
    let _ = std::fs::remove_file(path);
    measured
}

fn measure(path: &Path, table: &mut Table) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let store = FileStore::start(FileStoreConfig::default())?;
    let mut movers = vec![(FILE, Mover::Ours(store, runtime)), (CALLS, Mover::Calls)];
    match IoUring::new(DEPTH as u32) {
        Ok(ring) => movers.push(("io_uring", Mover::Ring(Box::new(ring)))),
        Err(error) => println!("SKIPPED: io_uring, which the kernel refuses: {error}"),
    }
    drop(FileRegion::create(path, 2 * TOTAL as u64, FileOptions::default())?);
    let mut buffer = HostBuffer::new(TOTAL);
    for is_direct in [false, true] {
        let region = FileOptions::default().with_direct(is_direct);
        let region = FileRegion::open(path, 2 * TOTAL as u64, region)?;
        let flags = if is_direct { nix::libc::O_DIRECT } else { 0 };
        let plain = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
        let Some(plain) = plain.ok().filter(|_| region.is_direct() == is_direct) else {
            println!("SKIPPED: direct files, which the filesystem does not have");
            continue;
        };
        let file = Opened { plain, region };
        for block in BLOCKS {
            for right in [Right::Write, Right::Read] {
                let took;
                (took, buffer) = rounds(&mut movers, &file, right, block, buffer)?;
                let names = movers.iter().map(|(name, _)| *name);
                rows(
                    table,
                    &what_is_moved(right, block, is_direct),
                    &names.zip(took).collect::<Vec<_>>(),
                );
            }
        }
    }
    for (_, mover) in movers {
        if let Mover::Ours(store, runtime) = mover {
            runtime.block_on(store.shutdown(SHUTDOWN_MAX))?;
        }
    }
    Ok(())
}

/// Gives each its turn, several times round, and returns what each took.
fn rounds(
    movers: &mut [(&str, Mover)],
    file: &Opened,
    right: Right,
    block: usize,
    mut buffer: HostBuffer,
) -> Result<(Vec<Vec<Took>>, HostBuffer)> {
    let mut took = vec![Vec::new(); movers.len()];
    let ranges = ranges(block);
    // The first round is not timed.
    for round in 0..=ROUNDS {
        for at in 0..movers.len() {
            let at = (at + round) % movers.len();
            let seed = (round * movers.len() + at) as u64;
            if right == Right::Write {
                memory::fill(&mut buffer, seed);
            }
            let one;
            (one, buffer) = movers[at].1.turn(file, right, &ranges, buffer)?;
            if round > 0 {
                took[at].push(one);
            }
            // Each begins with pages that are clean.
            file.plain.sync_data()?;
            let mut bytes = vec![0; block];
            let range = ranges[seed as usize % ranges.len()];
            OpenOptions::new()
                .read(true)
                .open(file.region.path())?
                .read_exact_at(&mut bytes, range.offset)?;
            let is_there = buffer[range.at..range.at + range.len] == bytes;
            ensure!(is_there, "{} moves other bytes", movers[at].0);
        }
    }
    Ok((took, buffer))
}

impl Mover {
    fn turn(
        &mut self,
        file: &Opened,
        right: Right,
        ranges: &[FileRange],
        mut buffer: HostBuffer,
    ) -> Result<(Took, HostBuffer)> {
        let cpu = cpu()?;
        let started = Instant::now();
        let mut post = Duration::ZERO;
        match self {
            Self::Ours(store, runtime) => {
                let _in_runtime = runtime.enter();
                let (moved, back) = match right {
                    Right::Read => {
                        let read = store.read(&file.region, ranges, buffer);
                        post = started.elapsed();
                        runtime.block_on(read)
                    }
                    Right::Write => {
                        let write = store.write(&file.region, ranges, buffer);
                        post = started.elapsed();
                        runtime.block_on(write)
                    }
                };
                ensure!(moved? == TOTAL as u64, "not all was moved");
                buffer = back.context("no buffer came back")?;
            }
            Self::Calls => {
                for range in ranges {
                    let bytes = &mut buffer[range.at..range.at + range.len];
                    match right {
                        Right::Read => file.plain.read_exact_at(bytes, range.offset)?,
                        Right::Write => file.plain.write_all_at(bytes, range.offset)?,
                    }
                }
            }
            Self::Ring(ring) => by_ring(ring, &file.plain, right, ranges, &mut buffer)?,
        }
        let total = started.elapsed().as_secs_f64();
        Ok((Took { total, post: post.as_secs_f64(), cpu: self::cpu()? - cpu }, buffer))
    }
}

/// Has the kernel move the ranges, `DEPTH` at once; returns when it has none any more.
fn by_ring(
    ring: &mut IoUring,
    file: &File,
    right: Right,
    ranges: &[FileRange],
    buffer: &mut [u8],
) -> io::Result<()> {
    let (mut waiting, mut in_flight, mut outcome) = (ranges.iter(), 0, Ok(()));
    let file = types::Fd(file.as_raw_fd());
    loop {
        while in_flight < DEPTH && outcome.is_ok() {
            let Some(range) = waiting.next() else { break };
            let bytes = &mut buffer[range.at..range.at + range.len];
            let (start, len) = (bytes.as_mut_ptr(), bytes.len() as u32);
            let entry = match right {
                Right::Read => opcode::Read::new(file, start, len).offset(range.offset).build(),
                Right::Write => opcode::Write::new(file, start, len).offset(range.offset).build(),
            };
            // SAFETY: the buffer stays as it is until all that was pushed has ended, below.
            let pushed = unsafe { ring.submission().push(&entry.user_data(range.len as u64)) };
            pushed.map_err(io::Error::other)?;
            in_flight += 1;
        }
        if in_flight == 0 {
            return outcome;
        }
        ring.submit_and_wait(1)?;
        for ended in ring.completion() {
            in_flight -= 1;
            if u64::try_from(ended.result()).ok() != Some(ended.user_data()) {
                outcome = Err(io::Error::other(format!("a block ends in {}", ended.result())));
            }
        }
    }
}

/// Every other place of the file; the memory in an order of its own.
fn ranges(block: usize) -> Vec<FileRange> {
    let count = TOTAL / block;
    // An odd step visits all of a power of two.
    let at = |i: usize| i * 421 % count * block;
    (0..count)
        .map(|i| FileRange { offset: (2 * i * block) as u64, at: at(i), len: block })
        .collect()
}

/// Adds the rows of a workload: what is aimed at, and ours beside each of the plain ways.
fn rows(table: &mut Table, workload: &str, took: &[(&'static str, Vec<Took>)]) {
    let median = |of: &[Took], figure: &dyn Fn(&Took) -> f64| {
        quantile(&mut of.iter().map(figure).collect::<Vec<_>>(), 50)
    };
    let gigabytes = TOTAL as f64 / 1e9;
    let Some(((_, ours), plain)) = took.split_first() else { return };
    for (metric, figure) in [
        (RATE, &(|took: &Took| gigabytes / took.total) as &dyn Fn(&Took) -> f64),
        (CPU, &|took: &Took| took.cpu / gigabytes),
    ] {
        let Some(own) = median(ours, figure) else { continue };
        if let Some(target) = targets::of_file(workload, metric) {
            table.row(workload, metric, own, None, Some(target));
        }
        for (name, took) in plain {
            let peer = median(took, figure).map(|figure| (*name, figure));
            let beside = targets::beside_calls(workload, metric).filter(|_| *name == CALLS);
            table.row(workload, metric, own, peer, beside);
        }
    }
    if let Some(post) = median(ours, &|took| took.post * 1e6) {
        table.row(workload, POST, post, None, None);
    }
}

/// Names a workload.
pub fn what_is_moved(right: Right, block: usize, is_direct: bool) -> String {
    let (block, count) = (block as u64, (TOTAL / block) as u64);
    let way = if is_direct { "direct" } else { "buffered" };
    format!("{}, {FILE}, {way}", figures::what_is_moved(right, Pattern { block, count }))
}

fn cpu() -> Result<f64> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?).as_secs_f64())
}

const CALLS: &str = "pread, pwrite";

/// What is moved in a turn; the file is twice as long.
const TOTAL: usize = 64 << 20;
const BLOCKS: [usize; 3] = [64 << 10, 256 << 10, 1 << 20];
const ROUNDS: usize = 5;
const DEPTH: usize = 64;
const SHUTDOWN_MAX: Duration = Duration::from_secs(20);
