//! `cargo xtask bench NAME`: our figures beside the peers', from one run.

use std::process::Command;

use anyhow::{Result, bail};

use crate::setup;
use crate::shell::{self, step};

pub(crate) fn run(args: &[String]) -> Result<()> {
    let [name] = args else { bail!("{}", usage()) };
    if !BENCHES.contains(&name.as_str()) {
        bail!("no bench {name:?}; {}", usage());
    }
    // Peers compile protocols too, and talk over a real NATS.
    setup::packages()?;
    step(&format!("building {name} and its peers (release; half an hour the first time)"));
    let mut build = Command::new("cargo");
    // In their folder, where cargo finds how they have to be built.
    build.current_dir("peers").args(["build", "--release", "--locked", "--package", name]);
    shell::run(build.args(["--target-dir", "../target/peers"]))?;
    step(&format!("running {name}"));
    let program = format!("target/peers/release/{name}");
    shell::run(Command::new(program).arg(format!("target/bench/{name}.json")))
}

fn usage() -> String {
    format!("usage: cargo xtask bench {}", BENCHES.join(" | "))
}

const BENCHES: [&str; 1] = ["request-plane"];
