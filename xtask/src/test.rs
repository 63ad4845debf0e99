//! `cargo xtask test`: set up what the tests need, pass them, say what was skipped.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::shell::{self, step};
use crate::{model, peers, python, setup, vllm};

pub(crate) fn run() -> Result<ExitCode> {
    setup::packages()?;
    let mut skipped = Vec::new();
    let mut tests = Command::new("cargo");
    tests.args(["test", "--workspace", "--all-features", "--locked"]);
    let model = model::fetch();
    let fetched = model.as_ref().ok().cloned();
    let folder = fetched.as_deref().context("there is no model").and_then(vllm::made);
    // Where something is that tests want, or what has to do without, and how it would not.
    let wanted = [
        ("DYNAMO_MODEL", "tests of the real model", AGAIN, model),
        ("DYNAMO_MODEL_DIR", "the model's tokens by its Hugging Face folder", MAKE, folder),
        ("DYNAMO_PYTHON", "the openai client", AGAIN, python::with_openai()),
        ("DYNAMO_MOTO", "the tests of S3", AGAIN, python::with_moto()),
    ];
    for (variable, what, how, found) in wanted {
        match found {
            Ok(path) => _ = tests.env(variable, path),
            Err(error) => {
                let note = format!("{what} ({error:#}); to run them, {how}");
                println!("!!! SKIPPING {note}");
                tests.env_remove(variable);
                skipped.push(note);
            }
        }
    }
    step("cargo test --workspace --all-features");
    shell::run(&mut tests)?;
    match peers::ucx() {
        Ok(folder) => with_ucx(&folder, fetched.as_deref())?,
        Err(error) => {
            let again = "let pip fetch libucx-cu12 (43 MB) and run `cargo xtask test` again";
            let note = format!("one-sided access over UCX ({error:#}); to run its tests, {again}");
            println!("!!! SKIPPING {note}");
            skipped.push(note);
        }
    }
    // The tests have built them, next to this very program.
    let programs = std::env::current_exe().context("where xtask is")?;
    let programs = programs.parent().context("xtask lies in a folder")?.join("examples");
    for example in EXAMPLES {
        step(&format!("example {example}"));
        shell::run(&mut Command::new(programs.join(example)))?;
    }
    let is_there = |program| shell::succeeds(Command::new(program).arg("--version"));
    if is_there("etcd") && is_there("nats-server") {
        step("example etcd_and_nats");
        shell::run(&mut Command::new(programs.join("etcd_and_nats")))?;
    } else {
        let how = "`apt-get install etcd-server nats-server`";
        skipped.push(format!("example etcd_and_nats; to run it, {how}"));
    }
    for what in &skipped {
        println!("SKIPPED: {what}");
    }
    println!(
        "SKIPPED: prefill and decode by two real vLLM servers; docs/openai-engine.md has how to start them and \
         run `cargo test -p dynamo-router --all-features --test vllm_split real`"
    );
    println!(
        "SKIPPED: tests on a GPU; `cargo xtask device-test` packs them for a machine that has one"
    );
    Ok(ExitCode::SUCCESS)
}

/// Passes the tests of UCX once more with the libraries in `folder`: Debian's 1.13 is too old for
/// one-sided access, and for kills of peers.
fn with_ucx(folder: &Path, model: Option<&Path>) -> Result<()> {
    let engine = ["--package", "dynamo-transfer"];
    let mut suites = vec![
        [&engine[..], &["--lib", "--", "backend::ucx"]].concat(),
        [&engine[..], &["--test", "ucx", "--test", "faults", "--test", "granted"]].concat(),
    ];
    // Blocks of the model between processes; everything is built as it was for all tests.
    suites.extend(model.map(|_| vec!["--workspace", "--test", "disagg", "--", "processes"]));
    for suite in suites {
        step(&format!("cargo test {}, with the UCX of libucx-cu12", suite.join(" ")));
        let mut tests = Command::new("cargo");
        tests.args(["test", "--locked", "--all-features"]).args(suite);
        tests.env("LD_LIBRARY_PATH", folder).env("UCX_MODULE_DIR", folder.join("ucx"));
        tests.envs(model.map(|model| ("DYNAMO_MODEL", model)));
        shell::run(&mut tests)?;
    }
    Ok(())
}

/// What a newcomer runs first has to run.
const EXAMPLES: [&str; 8] = [
    "hello_graph",
    "streaming_and_cancel",
    "middleware",
    "kv_routing",
    "queued_routing",
    "block_lifecycle",
    "kv_tiers",
    "transfer_memory",
];

const AGAIN: &str = "make the package registries reachable and run `cargo xtask test` again";
const MAKE: &str = "let `cargo xtask demo --vllm` make it";
