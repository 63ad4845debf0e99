//! `cargo xtask bench request-plane`: the same workloads over our planes and the peers, on one
//! machine and in one run. Medians of several rounds in which all take turns.
//!
//! Peers, none of whose code is here: dynamo-runtime 1.6.1 (Apache-2.0), tonic 0.14 (MIT),
//! async-nats 0.51 with a nats-server (Apache-2.0), and a bare socket.

mod child;
mod compare;
mod dynamo;
mod grpc;
mod model;
mod nats;
mod ours;
mod raw;
mod table;
mod turn;

use anyhow::{Result, bail};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    // Some peers open two sockets for every request that runs.
    rlimit::increase_nofile_limit(u64::MAX)?;
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => compare::run(None).await,
        [child::AS, dynamo::NAME] => dynamo::take_turns().await,
        [path] => compare::run(Some(path)).await,
        _ => bail!("usage: request-plane [PATH]   the rows as JSON go to PATH"),
    }
}
