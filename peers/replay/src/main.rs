//! `cargo xtask bench replay`: a simulated fleet that replays a trace with our router, with simple
//! policies, and, in the same run, with the peer's own replay and router.
//!
//! The peer is NVIDIA's dynamo-mocker 1.6.1 (Apache-2.0) from the crate registry: its router as it is
//! by default, and with the one weight set that was found best for this trace by hand. Both fleets
//! have the same engines: passes of 8,192 tokens, 256 requests at once, polynomial times, blocks of 512
//! tokens. With round robin, where no router differs, the two show how far the models agree.
//!
//! Ours runs with its defaults everywhere: what it knows of the engines it has learned from them.

mod compare;
mod peer;
mod plot;
#[path = "../../request-plane/src/table.rs"]
mod table;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

fn main() -> Result<()> {
    let mut options = compare::Options::default();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value\n{USAGE}"));
        match arg.as_str() {
            "--trace" => options.trace = Some(PathBuf::from(value()?)),
            "--workers" => options.workers = value()?.parse().context(USAGE)?,
            "--requests" => options.requests = value()?.parse().context(USAGE)?,
            "--seed" => options.seed = value()?.parse().context(USAGE)?,
            "--plots" => options.plots = Some(PathBuf::from(value()?)),
            option if option.starts_with("--") => bail!("{option}\n{USAGE}"),
            _ => options.path = Some(arg),
        }
    }
    compare::run(&options)
}

const USAGE: &str = "\
usage: replay [PATH] [--trace PATH] [--workers COUNT] [--requests COUNT] [--seed NUMBER] [--plots FOLDER]
       the rows as JSON go to PATH; --trace has a trace in Mooncake's format, by default
       ../shared/traces/conversation_trace.jsonl; without one only synthetic requests are replayed,
       COUNT of each kind; plots of the trace are written where --plots says";
