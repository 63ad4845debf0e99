//! Copies of many blocks beside one large copy of as many bytes, in the same run: for `docs/gpu.md`.
//!
//! `device [--software] [FILE]`; the figures also go to FILE, as JSON. `cargo xtask device-test` packs it
//! for a machine with a GPU.
#![expect(clippy::print_stdout, reason = "a program says what it finds")]
#![expect(clippy::unwrap_used, reason = "a failure ends it")]
#![expect(clippy::disallowed_methods, reason = "it measures")]
#![expect(clippy::cast_precision_loss, reason = "figures")]

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use dynamo_transfer::Result;
use dynamo_transfer::device::{
    BlockCopy, DeviceBuffer, DeviceConfig, DeviceCopier, Direction, Method, PinnedBuffer,
    SoftwareDevice,
};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut is_software = false;
    let mut file = None;
    for arg in std::env::args().skip(1) {
        match arg.as_str() {
            "--software" => is_software = true,
            // What `cargo bench` adds.
            "--bench" => {}
            path => file = Some(path.to_owned()),
        }
    }
    let software = SoftwareDevice::new(8 << 30).unwrap();
    let open = async |method: Option<Method>| {
        let config = DeviceConfig::default();
        let config = match method {
            Some(method) => config.with_method(method),
            None => config,
        };
        match is_software {
            true => DeviceCopier::software(&software, config),
            false => DeviceCopier::cuda(0, config).await,
        }
    };
    let mut rows = Vec::new();
    for (name, method) in METHODS {
        let copier = match open(method).await {
            Ok(copier) => copier,
            Err(error) => return println!("SKIPPED: needs a GPU ({error})"),
        };
        if method.is_none() {
            println!("device: {}", copier.describe());
            println!("method | way | blocks | GB/s | one large copy | ratio");
            latency(&copier).await.unwrap();
        }
        for (way, direction) in WAYS {
            for (count, len) in SHAPES {
                let row = measure(&copier, direction, count, len).await.unwrap();
                let (blocks, large, ratio) = row;
                let shape = format!("{count} x {} KiB", len >> 10);
                println!("{name} | {way} | {shape} | {blocks:.2} | {large:.2} | {ratio:.3}");
                rows.push((name, way, count, len, row));
            }
        }
        copier.shutdown().await.unwrap();
    }
    judge(&rows);
    if let Some(file) = file {
        std::fs::write(file, json(&rows)).unwrap();
    }
}

type Row = (&'static str, &'static str, usize, usize, (f64, f64, f64));

/// Returns GB/s of the blocks and of one large copy, and the median of their ratio over rounds in which
/// they take turns.
async fn measure(
    copier: &DeviceCopier,
    direction: Direction,
    count: usize,
    len: usize,
) -> Result<(f64, f64, f64)> {
    let bytes = count * len;
    // The blocks are apart from each other on the far side, and come in another order.
    let stride = len + 256;
    let blocks: Vec<_> = (0..count)
        .map(|at| BlockCopy { source: at * len, target: (count - 1 - at) * stride, len })
        .collect();
    let large = [BlockCopy { source: 0, target: 0, len: bytes }];
    let mut memory = Memory::new(copier, direction, bytes, count * stride)?;
    let mut rounds = Vec::new();
    for round in 0..ROUNDS + 2 {
        let one = memory.time(copier, &large).await?;
        let many = memory.time(copier, &blocks).await?;
        // The first rounds warm up.
        if round >= 2 {
            rounds.push((bytes as f64 / many / 1e9, bytes as f64 / one / 1e9, one / many));
        }
    }
    let median = |pick: fn(&(f64, f64, f64)) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(pick).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Ok((median(|round| round.0), median(|round| round.1), median(|round| round.2)))
}

/// What is copied from and to.
enum Memory {
    Up(Arc<PinnedBuffer>, DeviceBuffer),
    Down(DeviceBuffer, Option<PinnedBuffer>),
    Within(DeviceBuffer, DeviceBuffer),
}

impl Memory {
    fn new(copier: &DeviceCopier, direction: Direction, from: usize, to: usize) -> Result<Self> {
        Ok(match direction {
            Direction::HostToDevice => {
                Self::Up(Arc::new(copier.allocate_pinned(from)?), copier.allocate(to)?)
            }
            Direction::DeviceToHost => {
                Self::Down(copier.allocate(from)?, Some(copier.allocate_pinned(to)?))
            }
            Direction::DeviceToDevice => Self::Within(copier.allocate(from)?, copier.allocate(to)?),
        })
    }

    /// Copies, as often as to be well above what the clock and a wake-up cost; returns seconds per copy.
    async fn time(&mut self, copier: &DeviceCopier, blocks: &[BlockCopy]) -> Result<f64> {
        let bytes: usize = blocks.iter().map(|block| block.len).sum();
        let times = (MEASURED_BYTES / bytes).clamp(1, 16);
        let start = Instant::now();
        match self {
            Self::Up(source, target) => {
                let posted: Vec<_> =
                    (0..times).map(|_| copier.upload(source, target, blocks)).collect();
                for copy in posted {
                    copy.await?;
                }
            }
            // The target belongs to the copy: one after the other.
            Self::Down(source, target) => {
                for _ in 0..times {
                    let into = target.take().unwrap();
                    *target = Some(copier.download(source, into, blocks).await?);
                }
            }
            Self::Within(source, target) => {
                let posted: Vec<_> =
                    (0..times).map(|_| copier.copy(source, target, blocks)).collect();
                for copy in posted {
                    copy.await?;
                }
            }
        }
        Ok(start.elapsed().as_secs_f64() / times as f64)
    }
}

/// Prints how long one small copy takes from post to wake-up.
async fn latency(copier: &DeviceCopier) -> Result<()> {
    for len in [4 << 10, 64 << 10] {
        let source = Arc::new(copier.allocate_pinned(len)?);
        let target = copier.allocate(len)?;
        let block = [BlockCopy { source: 0, target: 0, len }];
        let mut times = Vec::new();
        for _ in 0..2_000 {
            let start = Instant::now();
            copier.upload(&source, &target, &block).await?;
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        times.sort_by(f64::total_cmp);
        let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        println!("latency of {} KiB to the device: p50 {p50:.1} us, p99 {p99:.1} us", len >> 10);
    }
    Ok(())
}

/// Prints which targets were met.
fn judge(rows: &[Row]) {
    for (way, least) in [("up", 0.9), ("down", 0.9), ("within", 0.85)] {
        let chosen = rows.iter().filter(|row| {
            row.0 == "chosen" && row.1 == way && row.2 == 256 && (64..=512).contains(&(row.3 >> 10))
        });
        let worst = chosen.map(|row| row.4.2).fold(f64::INFINITY, f64::min);
        let met = if worst >= least { "met" } else { "MISSED" };
        println!("256 x 64-512 KiB {way}: at least {worst:.3} of one large copy; {least} is {met}");
    }
}

fn json(rows: &[Row]) -> String {
    let mut text = String::from("[\n");
    for (at, (method, way, count, len, (blocks, large, ratio))) in rows.iter().enumerate() {
        let comma = if at + 1 == rows.len() { "" } else { "," };
        writeln!(
            text,
            "  {{\"method\": \"{method}\", \"way\": \"{way}\", \"blocks\": {count}, \"bytes\": {len}, \
             \"gb_per_s\": {blocks:.3}, \"large_gb_per_s\": {large:.3}, \"ratio\": {ratio:.4}}}{comma}"
        )
        .unwrap();
    }
    text + "]\n"
}

const METHODS: [(&str, Option<Method>); 4] = [
    ("chosen", None),
    ("each", Some(Method::Each)),
    ("batch", Some(Method::Batch)),
    ("kernel", Some(Method::Kernel)),
];

const WAYS: [(&str, Direction); 3] = [
    ("up", Direction::HostToDevice),
    ("down", Direction::DeviceToHost),
    ("within", Direction::DeviceToDevice),
];

/// Count and size of blocks; the second to fifth are those of the targets.
const SHAPES: [(usize, usize); 8] = [
    (4096, 4 << 10),
    (256, 64 << 10),
    (256, 128 << 10),
    (256, 256 << 10),
    (256, 512 << 10),
    (2048, 16 << 10),
    (1024, 32 << 10),
    (64, 2 << 20),
];

const ROUNDS: usize = 9;
const MEASURED_BYTES: usize = 256 << 20;
