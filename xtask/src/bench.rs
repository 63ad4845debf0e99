//! `cargo xtask bench NAME`: our figures beside the peers', from one run; or what faults and a long
//! run come to.

use std::process::Command;

use anyhow::{Result, bail};

use crate::shell::{self, step};
use crate::{peers, setup};

pub(crate) fn run(args: &[String]) -> Result<()> {
    let Some((name, args)) = args.split_first() else { bail!("{}", usage()) };
    let mut options = Vec::new();
    let program = match name.as_str() {
        name if PEERS.contains(&name) => {
            let how_long = match name {
                TRANSFER => {
                    options = peers::of_transfer();
                    ""
                }
                REQUEST_PLANE => {
                    // Peers compile protocols too, and talk over a real NATS.
                    setup::packages()?;
                    "; half an hour the first time"
                }
                REPLAY => "; ten minutes the first time",
                // A peer compiles a messaging library in C++ too.
                ROUTER => "; five minutes the first time",
                _ => "",
            };
            step(&format!("building {name} and its peers (release{how_long})"));
            let mut command = Command::new("cargo");
            // In their folder, where cargo finds how they have to be built.
            command.current_dir("peers").args(["build", "--package", name]);
            build(command.args(["--target-dir", "../target/peers"]))?;
            format!("target/peers/release/{name}")
        }
        name if ALONE.contains(&name) => {
            setup::packages()?;
            step(&format!("building {name} (release)"));
            let package = ["--package", "dynamo-tests", "--features", "etcd,ucx", "--bin", name];
            let target = ["--target-dir", "target"];
            build(Command::new("cargo").arg("build").args(package).args(target))?;
            format!("target/release/{name}")
        }
        name => bail!("no bench {name:?}; {}", usage()),
    };
    step(&format!("running {name}"));
    let path = format!("target/bench/{name}.json");
    shell::run(Command::new(program).arg(path).args(options).args(args))
}

fn build(command: &mut Command) -> Result<()> {
    shell::run(command.args(["--release", "--locked"]))
}

fn usage() -> String {
    let names = [&PEERS[..], &ALONE[..]].concat();
    format!("usage: cargo xtask bench {} [OPTIONS OF IT]", names.join(" | "))
}

/// Those with peers, which are no part of the workspace.
const PEERS: [&str; 5] = ["kv", REPLAY, REQUEST_PLANE, ROUTER, TRANSFER];

const REPLAY: &str = "replay";

const REQUEST_PLANE: &str = "request-plane";

const ROUTER: &str = "router";

/// Its peers are no crates.
const TRANSFER: &str = "transfer";

/// Those that need none.
const ALONE: [&str; 4] = ["eviction", "faults", "soak", "transfer-soak"];
