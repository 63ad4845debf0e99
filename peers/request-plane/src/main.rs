//! `cargo xtask bench request-plane`: the same workloads over our planes, gRPC and a raw socket, in
//! one process and one run. Medians of several rounds in which all take turns.

mod grpc;
mod ours;
mod raw;
mod table;

use std::time::{Duration, Instant};

use anyhow::Result;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};

use table::Table;

/// One way to ask a server for a number of one-token items.
trait Subject: Send + Sync {
    /// Asks for `count` items and returns how many came.
    fn ask(&self, count: u32) -> BoxFuture<'_, Result<u32>>;
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let path = std::env::args().nth(1);
    // On a worker of the runtime, where requests are made in a server.
    tokio::spawn(compare(path)).await?
}

async fn compare(path: Option<String>) -> Result<()> {
    let (memory, tcp) = (ours::memory().await?, ours::tcp().await?);
    let (grpc, raw) = (grpc::start().await?, raw::start().await?);
    let mut table = Table::default();

    // Latency of one request at a time, with one item.
    let subjects: [(&str, &dyn Subject); 4] =
        [("memory", &memory), ("tcp", &tcp), ("tonic", &grpc), ("raw socket", &raw)];
    let mut p50 = vec![Vec::new(); subjects.len()];
    let mut p99 = p50.clone();
    for _ in 0..ROUNDS {
        for (index, (_, subject)) in subjects.iter().enumerate() {
            let times = latencies(*subject, 3000).await?;
            p50[index].push(times[times.len() / 2]);
            p99[index].push(times[times.len() * 99 / 100]);
        }
    }
    let median_of = |all: &[Vec<f64>]| -> Vec<f64> { all.iter().map(|v| median(v)).collect() };
    let (p50, p99) = (median_of(&p50), median_of(&p99));
    table.row("unary, one at a time, memory", "p50", "us", "lower", p50[0], None, None);
    for (metric, times, target) in [("p50", &p50, Some(1.5)), ("p99", &p99, None)] {
        let raw = Some(("raw socket", times[3]));
        table.row("unary, one at a time, tcp", metric, "us", "lower", times[1], raw, target);
        let grpc = Some(("tonic", times[2]));
        table.row("unary, one at a time, tcp", metric, "us", "lower", times[1], grpc, None);
    }

    // Requests per second.
    for concurrency in [64, 256] {
        let rates = rates(&subjects[1..], concurrency, 1, 20_000).await?;
        let workload = format!("unary, {concurrency} at a time, tcp");
        for (name, rate) in [("raw socket", rates[2].0), ("tonic", rates[1].0)] {
            let peer = Some((name, rate));
            table.row(&workload, "requests", "1/s", "higher", rates[0].0, peer, None);
        }
    }

    // Tokens per second over many streams.
    for streams in [64, 1024] {
        let rates = rates(&subjects[..3], streams, TOKENS, 5000).await?;
        let workload = format!("{streams} streams of {TOKENS} tokens");
        let grpc = Some(("tonic", rates[2].0));
        let name = format!("{workload}, tcp");
        table.row(&name, "tokens", "1/s", "higher", rates[1].0, grpc, Some(3.0));
        let grpc = Some(("tonic", rates[2].1));
        table.row(&name, "CPU per token", "us", "lower", rates[1].1, grpc, None);
        let name = format!("{workload}, memory");
        table.row(&name, "tokens", "1/s", "higher", rates[0].0, None, None);
    }

    // What a token costs on the wire at 256 streams.
    let before = tcp.server_stats();
    run(&tcp, 256, TOKENS, 256).await?;
    let after = tcp.server_stats();
    let tokens = f64::from(256 * TOKENS);
    let bytes = (after.written_bytes_total - before.written_bytes_total) as f64 / tokens;
    let writes = (after.writes_total - before.writes_total) as f64 / tokens;
    let workload = format!("256 streams of {TOKENS} tokens, tcp");
    table.row(&workload, "bytes per token", "B", "lower", bytes, None, Some(16.0));
    table.row(&workload, "writes per token", "1", "lower", writes, None, Some(0.1));

    table.print();
    match path {
        Some(path) => table.write(&path),
        None => Ok(()),
    }
}

/// Returns the times of calls one after another, sorted, in microseconds.
async fn latencies(subject: &dyn Subject, calls: usize) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls {
        let started = Instant::now();
        subject.ask(1).await?;
        times.push(started.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// Returns items per second and CPU microseconds per item of each subject.
async fn rates(
    subjects: &[(&str, &dyn Subject)],
    concurrency: u32,
    items: u32,
    calls: u32,
) -> Result<Vec<(f64, f64)>> {
    let mut all = vec![(Vec::new(), Vec::new()); subjects.len()];
    for _ in 0..ROUNDS {
        for ((_, subject), (rates, cpu)) in subjects.iter().zip(&mut all) {
            let (started, used) = (Instant::now(), cpu_time()?);
            run(*subject, concurrency, items, calls).await?;
            let total = f64::from(calls) * f64::from(items);
            rates.push(total / started.elapsed().as_secs_f64());
            cpu.push((cpu_time()? - used).as_secs_f64() * 1e6 / total);
        }
    }
    Ok(all.iter().map(|(rates, cpu)| (median(rates), median(cpu))).collect())
}

/// Makes `calls` calls, `concurrency` at a time.
async fn run(subject: &dyn Subject, concurrency: u32, items: u32, calls: u32) -> Result<()> {
    let answers = stream::iter(0..calls).map(|_| subject.ask(items));
    let mut answers = answers.buffer_unordered(concurrency as usize);
    while let Some(count) = answers.next().await {
        anyhow::ensure!(count? == items, "an answer is not whole");
    }
    Ok(())
}

/// Returns the processor time that this process has used.
fn cpu_time() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let ticks: u64 = fields.split(' ').skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
    // Linux counts in hundredths of a second.
    Ok(Duration::from_millis(ticks * 10))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

const ROUNDS: usize = 5;
const TOKENS: u32 = 200;
