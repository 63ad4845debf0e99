//! Measures a hand-off: blocks of one sequence, staged by one worker and pulled by another.
//!
//! `cargo run --release -p dynamo-kv --example pull`
#![expect(clippy::print_stdout, reason = "it prints a table")]

use std::error::Error;
use std::time::Duration;

use dynamo_core::protocol::{BlockSize, CacheNamespace, InstanceId, WorkerId};
use dynamo_core::time::{Clock, SystemClock};
use dynamo_kv::{
    BlockLayout, BlockManager, DType, Handoff, HandoffConfig, ManagerConfig, TokenSequence,
};
use dynamo_transfer::{Agent, AgentConfig, MemoryFabric};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn Error>> {
    println!("from the call of pull to its end; blocks of 64 KiB\n");
    println!("over     blocks   p50 us   p99 us");
    for is_tcp in [false, true] {
        for blocks in [1, 8, 64] {
            let mut took = pulls(is_tcp, blocks).await?;
            took.sort_unstable();
            let at = |percent: usize| took[took.len() * percent / 100].as_micros();
            let over = if is_tcp { "tcp" } else { "memcpy" };
            println!("{over:8} {blocks:6} {:8} {:8}", at(50), at(99));
        }
    }
    Ok(())
}

/// Pulls as many blocks again and again; returns how long each pull took.
async fn pulls(is_tcp: bool, blocks: usize) -> Result<Vec<Duration>, Box<dyn Error>> {
    let fabric = MemoryFabric::new();
    let (prefill, staging) = worker(is_tcp, &fabric).await?;
    let (decode, pulling) = worker(is_tcp, &fabric).await?;
    let tokens: Vec<u32> = (0..).take(blocks * BlockSize::DEFAULT.tokens()).collect();
    let sequence = TokenSequence::new(&CacheNamespace::default(), BlockSize::DEFAULT, &tokens);
    let complete = prefill.allocate(blocks)?.into_iter().zip(sequence.keys());
    let complete = complete.map(|(block, key)| block.complete(*key)).collect();
    let held = prefill.register_all(complete);
    let mut took = Vec::with_capacity(PULLS);
    for round in 0..PULLS + WARM_UP {
        let mut staged = staging.stage(held.clone().into(), None)?;
        let began = SystemClock.now();
        let pulled = pulling.pull([staged.ticket()], &sequence, None).await?;
        if round >= WARM_UP {
            took.push(SystemClock.now() - began);
        }
        staged.settled().await;
        drop(pulled);
        decode.clear();
    }
    Ok(took)
}

async fn worker(
    is_tcp: bool,
    fabric: &MemoryFabric,
) -> Result<(BlockManager, Handoff), Box<dyn Error>> {
    let config = AgentConfig::default();
    let config = if is_tcp {
        config.with_tcp_listen(([127, 0, 0, 1], 0).into())
    } else {
        config.with_fabric(fabric.clone())
    };
    let agent = Agent::start(config).await?;
    let layout = BlockLayout::new(4, 4, 64, BlockSize::DEFAULT, DType::F16)?;
    let id = WorkerId::new(InstanceId::random());
    let manager = BlockManager::new(ManagerConfig::new(layout, 64), id, Box::new(|_| {}))?;
    let handoff = Handoff::new(agent, manager.clone(), HandoffConfig::default())?;
    Ok((manager, handoff))
}

const PULLS: usize = 2000;
const WARM_UP: usize = 200;
