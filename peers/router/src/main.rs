//! `cargo xtask bench router`: prefix indexes that are told and asked the same, and routers that
//! choose for the same request, ours and the peer, in one run. Medians of several turns, which all
//! take one after the other; all indexes have to find the same.
//!
//! The peer is NVIDIA's dynamo-kv-router 1.6.1 (Apache-2.0) from the crate registry, with all of
//! its exact indexes: `RadixTree`, `ConcurrentRadixTreeCompressed` (CRTC) and `PositionalIndexer`,
//! which jumps 32 blocks or bisects, each in a `ThreadPoolIndexer` with one thread,
//! `BranchShardedIndexer` of two CRTC, and `KvIndexer`. The choice is that of its `SelectionCore`
//! with the default policy, all of it in the thread that asks.
//!
//! Prompts and events are hashed, and in the form in which each side takes them, before the clock
//! runs; it stops before an answer is freed. A lookup has the 20 to 40 ns in it that two looks at
//! the clock take.

mod choice;
mod compare;
mod decide;
mod figures;
#[path = "../../kv/src/heap.rs"]
mod heap;
mod index;
mod long;
mod lru;
mod ours;
mod rows;
#[path = "../../request-plane/src/table.rs"]
mod table;
mod targets;
mod theirs;
mod together;
mod trace;
mod turn;
mod workload;

use anyhow::{Context as _, Result, bail};

#[global_allocator]
static HEAP: heap::Counted = heap::Counted;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mut options =
        compare::Options { path: None, trace: compare::trace_beside(), rounds: ROUNDS, only: None };
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value\n{USAGE}"));
        match arg.as_str() {
            "--trace" => options.trace = value()?.into(),
            "--rounds" => options.rounds = value()?.parse::<usize>().context(USAGE)?.max(1),
            "--only" => options.only = Some(value()?),
            option if option.starts_with("--") => bail!("{option}\n{USAGE}"),
            _ => options.path = Some(arg),
        }
    }
    compare::run(&options)
}

const USAGE: &str = "\
usage: router [PATH] [--trace PATH] [--rounds COUNT] [--only NAME]
       the rows as JSON go to PATH; --trace is Mooncake's conversation trace;
       --only leaves out workloads that do not have NAME in theirs";

const ROUNDS: usize = 3;
