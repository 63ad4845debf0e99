//! What files cost through a store, beside plain `pread` and `pwrite` of the same blocks in the same
//! run: `cargo run --release -p dynamo-transfer --example file_throughput -- [FOLDER]`.
//!
//! Blocks are shuffled in memory and lie in every other place of the file (`apart`) or next to each
//! other (`adjacent`). Figures are medians of five rounds. Buffered reads come from the page cache;
//! buffered writes go to it and are brought to the device between the rounds.
#![expect(clippy::print_stdout, reason = "prints what it measures")]

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dynamo_transfer::file::{
    FileEngine, FileOptions, FileRange, FileRegion, FileStore, FileStoreConfig,
};
use dynamo_transfer::{ErrorKind, HostBuffer, Result};
use tokio::time::Instant;

const TOTAL: usize = 64 << 20;
const FILE: u64 = 2 * TOTAL as u64;
const ROUNDS: usize = 5;
const LATENCIES: u64 = 2000;

/// Who moves the blocks.
enum Mover {
    Raw,
    Store(FileStore),
}

impl Mover {
    /// Moves the blocks and returns the seconds and the buffer.
    async fn run(
        &self,
        file: &FileRegion,
        ranges: &[FileRange],
        is_write: bool,
        buffer: HostBuffer,
    ) -> Result<(f64, HostBuffer)> {
        let started = Instant::now();
        let buffer = match (self, is_write) {
            (Self::Raw, _) => raw(file, ranges, is_write, buffer).expect("plain calls work"),
            (Self::Store(store), false) => settled(store.read(file, ranges, buffer).await)?,
            (Self::Store(store), true) => settled(store.write(file, ranges, buffer).await)?,
        };
        Ok((started.elapsed().as_secs_f64(), buffer))
    }
}

fn settled((moved, buffer): (Result<u64>, Option<HostBuffer>)) -> Result<HostBuffer> {
    moved.map(|_| buffer.expect("an operation that succeeds gives the buffer back"))
}

/// One call after the other, on a descriptor of its own.
fn raw(
    file: &FileRegion,
    ranges: &[FileRange],
    is_write: bool,
    mut buffer: HostBuffer,
) -> std::io::Result<HostBuffer> {
    let flags = if file.is_direct() { libc::O_DIRECT } else { 0 };
    let plain = OpenOptions::new().read(true).write(true).custom_flags(flags).open(file.path())?;
    for range in ranges {
        let bytes = &mut buffer[range.at..range.at + range.len];
        if is_write {
            plain.write_all_at(bytes, range.offset)?;
        } else {
            plain.read_exact_at(bytes, range.offset)?;
        }
    }
    Ok(buffer)
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Every other place of the file, or one after the other; the memory in an order of its own.
fn places(block: usize, is_apart: bool) -> Vec<FileRange> {
    let count = TOTAL / block;
    let stride = if is_apart { 2 } else { 1 } * block as u64;
    // An odd step visits all of a power of two.
    let place =
        |i: usize| FileRange { offset: i as u64 * stride, at: i * 421 % count * block, len: block };
    (0..count).map(place).collect()
}

async fn throughput(path: &Path, direct: bool, movers: &[(&str, Mover)]) -> Result<()> {
    let file = FileRegion::open(path, FILE, FileOptions::default().with_direct(direct))?;
    let way = if file.is_direct() { "direct" } else { "buffered" };
    for block in [4 << 10, 64 << 10, 256 << 10, 1 << 20] {
        for (is_apart, lie) in [(true, "apart"), (false, "adjacent")] {
            let ranges = places(block, is_apart);
            for (is_write, act) in [(true, "write"), (false, "read")] {
                let mut figures = vec![Vec::new(); movers.len()];
                let mut buffer = HostBuffer::new(TOTAL);
                buffer.fill(1);
                // The first round warms up.
                for round in 0..=ROUNDS {
                    for ((_, mover), figures) in movers.iter().zip(&mut figures) {
                        let (seconds, back) = mover.run(&file, &ranges, is_write, buffer).await?;
                        buffer = back;
                        if round > 0 {
                            figures.push(TOTAL as f64 / seconds / 1e9);
                        }
                        if is_write && !direct {
                            let opened = OpenOptions::new().write(true).open(path);
                            opened.and_then(|file| file.sync_data()).expect("syncs");
                        }
                    }
                }
                let figures: Vec<_> = movers
                    .iter()
                    .zip(figures)
                    .map(|((name, _), figures)| format!("{name} {:5.2}", median(figures)))
                    .collect();
                let kib = block >> 10;
                println!("{way:8} {kib:>4} KiB {lie:8} {act:5} GB/s: {}", figures.join("  "));
            }
        }
    }
    Ok(())
}

async fn latency(path: &Path, direct: bool, movers: &[(&str, Mover)]) -> Result<()> {
    let file = FileRegion::open(path, FILE, FileOptions::default().with_direct(direct))?;
    let mut shown = Vec::new();
    for (name, mover) in movers {
        let (mut buffer, mut micros) = (HostBuffer::new(4096), Vec::new());
        for number in 0..LATENCIES {
            let place =
                FileRange { offset: number * 4_099 % (FILE / 4096) * 4096, at: 0, len: 4096 };
            let (seconds, back) = mover.run(&file, &[place], false, buffer).await?;
            buffer = back;
            micros.push(seconds * 1e6);
        }
        shown.push(format!("{name} {:6.1}", median(micros)));
    }
    let way = if file.is_direct() { "direct" } else { "buffered" };
    println!("{way:8}    4 KiB one at a time read p50 us: {}", shown.join("  "));
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let folder = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let path = folder.join(format!("file-throughput-{}", std::process::id()));
    let mut movers = vec![("raw", Mover::Raw)];
    let engines = [
        ("pool", FileEngine::Pool),
        ("ring", FileEngine::Ring),
        ("ring+pool", FileEngine::RingAndPool),
    ];
    for (name, engine) in engines {
        match FileStore::start(FileStoreConfig::default().with_engine(engine)) {
            Ok(store) => movers.push((name, Mover::Store(store))),
            Err(error) if error.kind() == ErrorKind::BackendUnavailable => println!("{error}"),
            Err(error) => return Err(error),
        }
    }
    drop(FileRegion::create(&path, FILE, FileOptions::default())?);
    for direct in [false, true] {
        throughput(&path, direct, &movers).await?;
        latency(&path, direct, &movers).await?;
    }
    for (_, mover) in movers {
        if let Mover::Store(store) = mover {
            store.shutdown(Duration::from_secs(20)).await?;
        }
    }
    std::fs::remove_file(path).ok();
    Ok(())
}
