//! `cargo xtask bench kv`: block managers that do the same with the same sequences, ours and the
//! peer, in one run. Medians of several rounds in which all take turns.
//!
//! The peer is NVIDIA's kvbm-logical 1.6.1 (Apache-2.0) from the crate registry: with its LRU, with
//! its lineage backend as it is by default, and with that one's FIFO of leaves, which its docs call
//! free of allocations. It tracks no frequencies, which none of these needs, and aggregates no
//! metrics. By default it publishes no events, so it publishes none here; ours go to a sink that
//! drops them, where an engine would send them.
//!
//! The keys of all blocks are there before the clock runs: what identifies a block is hashed by
//! both sides when tokens come, not when blocks move. No bytes are written to any block.
//!
//! Then blocks go to a disk and back (`tiers.rs`), and to another agent's memory (`shared.rs`), beside the
//! engines that move them alone.

mod compare;
mod contender;
mod heap;
mod manager;
mod ours;
mod shared;
#[path = "../../request-plane/src/table.rs"]
mod table;
mod targets;
mod theirs;
mod tiers;

use anyhow::{Context as _, Result, bail};

#[global_allocator]
static HEAP: heap::Counted = heap::Counted;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mut options =
        compare::Options { path: None, rounds: ROUNDS, blocks: BLOCKS, is_tiers: false };
    while let Some(arg) = args.next() {
        let mut value = || -> Result<usize> {
            let count = args.next().with_context(|| format!("{arg} needs a value\n{USAGE}"))?;
            count.parse().context(USAGE)
        };
        match arg.as_str() {
            "--rounds" => options.rounds = value()?,
            "--blocks" => options.blocks = value()?,
            "--tiers" => options.is_tiers = true,
            option if option.starts_with("--") => bail!("{option}\n{USAGE}"),
            _ => options.path = Some(arg),
        }
    }
    compare::run(&options)
}

const USAGE: &str = "\
usage: kv [PATH] [--rounds COUNT] [--blocks COUNT] [--tiers]
       the rows as JSON go to PATH; managers of COUNT blocks are timed, a multiple of 8192;
       --tiers leaves the peer out, and measures blocks on their way to tiers and back alone";

const ROUNDS: usize = 7;
const BLOCKS: usize = 1 << 16;
