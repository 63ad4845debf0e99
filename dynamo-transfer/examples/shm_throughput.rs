//! What a read of another process's memory takes, beside a copy inside this one in the same run.
//!
//! `cargo run --release -p dynamo-transfer --example shm_throughput`
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement that prints")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use dynamo_transfer::{
    Agent, AgentConfig, HostBuffer, RegisteredRegion, RemoteAgent, TransferOptions,
};
use tokio::time::Instant;

/// Block size and count; blocks lie twice their size apart, so that none are neighbours.
const SHAPES: [(usize, usize); 5] =
    [(4 << 10, 16384), (64 << 10, 256), (256 << 10, 256), (1 << 20, 256), (16 << 20, 16)];
const REGION_BYTES: usize = 512 << 20;
const ROUNDS: usize = 9;
const LATENCY_ROUNDS: usize = 20_000;

#[tokio::main(worker_threads = 2)]
async fn main() {
    if std::env::args().nth(1).as_deref() == Some("owner") {
        return owner().await;
    }
    let mut process = Command::new(std::env::current_exe().unwrap())
        .arg("owner")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut hex = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut hex).unwrap();
    let byte = |at: usize| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap();
    let metadata: Vec<u8> = (0..hex.trim().len() / 2).map(byte).collect();
    let agent = Agent::start(AgentConfig::default().with_name("reader")).await.unwrap();
    let peer = agent.load_metadata(&metadata).unwrap();
    let mut target = HostBuffer::new(REGION_BYTES);
    let mut source = HostBuffer::new(REGION_BYTES);
    source.fill(3);
    target.fill(4);
    println!("load {}", std::fs::read_to_string("/proc/loadavg").unwrap().trim());
    println!("{:>9} x {:<5} {:>11} {:>20} {:>20}", "block", "n", "memcpy GB/s", "mapped", "kernel");
    for (block, count) in SHAPES {
        let copied = |target: &mut HostBuffer| {
            for at in (0..count).map(|index| index * 2 * block) {
                target[at..at + block].copy_from_slice(&source[at..at + block]);
            }
        };
        copied(&mut target);
        let (mut alone, mut ways) = (Vec::new(), [Vec::new(), Vec::new()]);
        for _ in 0..ROUNDS {
            let begun = Instant::now();
            copied(&mut target);
            alone.push(begun.elapsed().as_secs_f64());
            let region = agent.register_mut(vec![target]).unwrap();
            for (way, took) in ways.iter_mut().enumerate() {
                // Once for the pages.
                for round in 0..2 {
                    let begun = Instant::now();
                    read(&agent, &peer, way, &region, block, count).await;
                    if round == 1 {
                        took.push(begun.elapsed().as_secs_f64());
                    }
                }
            }
            target = region.close().await.remove(0);
        }
        let rate = |took: &mut Vec<f64>| {
            took.sort_by(f64::total_cmp);
            (block * count) as f64 / took[took.len() / 2] / 1e9
        };
        let alone = rate(&mut alone);
        let [mapped, kernel] = ways.map(|mut took| rate(&mut took));
        println!(
            "{block:>9} x {count:<5} {alone:>11.2} {mapped:>11.2} ({:>5.2}) {kernel:>11.2} ({:>5.2})",
            mapped / alone,
            kernel / alone,
        );
    }
    let region = agent.register_mut(vec![target]).unwrap();
    for block in [4 << 10, 64 << 10] {
        for (way, name) in ["mapped", "kernel"].into_iter().enumerate() {
            let mut took = Vec::new();
            for _ in 0..LATENCY_ROUNDS {
                let begun = Instant::now();
                read(&agent, &peer, way, &region, block, 1).await;
                took.push(begun.elapsed().as_secs_f64() * 1e6);
            }
            took.sort_by(f64::total_cmp);
            let (p50, p99) = (took[LATENCY_ROUNDS / 2], took[LATENCY_ROUNDS * 99 / 100]);
            println!("{block:>9} {name}: p50 {p50:.1} us, p99 {p99:.1} us");
        }
    }
    drop(process.stdin.take());
    process.wait().unwrap();
}

async fn read(
    agent: &Agent,
    peer: &RemoteAgent,
    way: usize,
    region: &RegisteredRegion<HostBuffer>,
    block: usize,
    count: usize,
) {
    let ranges = || (0..count).map(|index| ((index * 2 * block) as u64, block as u64));
    let (local, remote) = (region.descriptor(ranges()), peer.regions()[way].descriptor(ranges()));
    let options = TransferOptions::default();
    agent.read(local.unwrap(), remote.unwrap(), options).await.unwrap();
}

/// The other process: lives until its standard input ends.
async fn owner() {
    let agent = Agent::start(AgentConfig::default().with_name("owner").with_shm(true));
    let agent = agent.await.unwrap();
    let regions = [HostBuffer::shared(REGION_BYTES).unwrap(), HostBuffer::new(REGION_BYTES)];
    let regions = regions.map(|mut memory| {
        memory.fill(7);
        agent.register(vec![memory]).unwrap()
    });
    let metadata = agent.metadata(regions.iter().map(|region| region.handle()));
    let hex: String = metadata.iter().map(|byte| format!("{byte:02x}")).collect();
    println!("{hex}");
    std::io::stdout().flush().unwrap();
    let end = tokio::task::spawn_blocking(|| std::io::stdin().lines().next());
    end.await.unwrap();
    agent.shutdown().await;
}
