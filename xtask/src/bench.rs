//! `cargo xtask bench NAME`: our figures beside the peers', from one run.

use std::process::Command;

use anyhow::{Result, bail};

use crate::shell::{self, step};

pub(crate) fn run(args: &[String]) -> Result<()> {
    let [name] = args else { bail!("{}", usage()) };
    if !BENCHES.contains(&name.as_str()) {
        bail!("no bench {name:?}; {}", usage());
    }
    step(&format!("building {name} and its peers (release; minutes the first time)"));
    let manifest = ["--manifest-path", "peers/Cargo.toml", "--release", "--locked"];
    let target = ["--target-dir", "target/peers", "--package", name];
    shell::run(Command::new("cargo").arg("build").args(manifest).args(target))?;
    step(&format!("running {name}"));
    let program = format!("target/peers/release/{name}");
    shell::run(Command::new(program).arg(format!("target/bench/{name}.json")))
}

fn usage() -> String {
    format!("usage: cargo xtask bench {}", BENCHES.join(" | "))
}

const BENCHES: [&str; 1] = ["request-plane"];
