//! `cargo xtask demo`: fetch the model, build, run.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::shell::{self, step};
use crate::{model, setup, vllm};

/// Tells whether workers are to be processes: only memory is shared within one.
fn is_many_processes(args: &[String]) -> bool {
    let moved_by = |pair: &[String]| pair[0] == "--backend" && pair[1] != "memory";
    args.iter().any(|arg| arg == "--processes") || args.windows(2).any(moved_by)
}

/// Runs the demo; paths in `args` are relative to `called_in`.
pub(crate) fn run(args: &[String], called_in: &Path) -> Result<ExitCode> {
    let mut args = args.to_vec();
    if let Some(at) = args.iter().position(|arg| arg == "--vllm") {
        args.remove(at);
        return vllm::demo(&args);
    }
    if let Some(at) = args.iter().position(|arg| arg == "--disk") {
        let dir = args.get_mut(at + 1).context("--disk needs a path")?;
        *dir = called_in.join(&*dir).to_string_lossy().into_owned();
    }
    let (model, args) = match args.iter().position(|arg| arg == "--model") {
        Some(at) => {
            let path = args.get(at + 1).context("--model needs a path")?;
            (called_in.join(path), [&args[..at], &args[at + 2..]].concat())
        }
        None => (model::fetch()?, args),
    };
    step("building the demo (release; minutes the first time)");
    let mut demo = vec!["--release", "--locked", "--package", "dynamo-examples", "--bin", "demo"];
    if is_many_processes(&args) {
        setup::packages()?;
        demo.extend(["--features", "processes"]);
    }
    shell::run(Command::new("cargo").arg("build").args(&demo))?;
    step("running the demo");
    let mut command = Command::new("cargo");
    command.arg("run").arg("--quiet").args(&demo).arg("--").arg("--model").arg(&model).args(&args);
    let status = command.status().context("running the demo")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}
