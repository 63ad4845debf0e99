//! `cargo xtask miri | asan | loom`: tests where every access to memory, or every order of threads, is
//! looked at.
//!
//! Loom runs small models of slots and of the pool of blocks in every order that threads may take. Miri
//! interprets what needs neither the kernel nor another process; AddressSanitizer looks at the
//! rest as it runs, but only at bounds and lifetimes. Those two are of nightly toolchains.

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::shell::{self, step};

/// Runs the tests of registered memory and of copies within the process under Miri.
pub(crate) fn miri() -> Result<ExitCode> {
    if !shell::succeeds(nightly().args(["miri", "--version"])) {
        return Ok(skipped("Miri", "--component miri rust-src"));
    }
    step("cargo miri test: dynamo-transfer, memory and memcpy");
    let mut tests = nightly();
    tests.args(["miri", "test", "--package", "dynamo-transfer", "--lib", "--locked", "--"]);
    shell::run(tests.args(["memory::", "backend::memcpy::", "backend::copies::"]))?;
    Ok(ExitCode::SUCCESS)
}

/// Runs all unit tests of the transfer engine under AddressSanitizer, and those of its interface in which
/// kernel, devices and peers touch memory of every kind.
pub(crate) fn asan() -> Result<ExitCode> {
    if !shell::succeeds(nightly().arg("--version")) {
        return Ok(skipped("AddressSanitizer", ""));
    }
    step("cargo test under AddressSanitizer: dynamo-transfer");
    // Named, so that what builds the crates is not looked at.
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut tests = nightly();
    tests.args(["test", "--package", "dynamo-transfer", "--all-features", "--locked"]);
    tests.args(["--lib", "--test", "regions", "--test", "granted"]);
    tests.args(["--target", &target, "--target-dir", "target/asan"]);
    tests.env("RUSTFLAGS", "-Zsanitizer=address");
    // What a lost device or a copy that never ends may still touch is never freed, as tests see to.
    tests.env("ASAN_OPTIONS", "detect_leaks=0");
    // UCX rewrites the code of `mmap` and its like, and the sanitizer has done so before.
    tests.env("UCX_MEM_MMAP_HOOK_MODE", "none");
    shell::run(&mut tests)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the models of slots, of a shard of the pool, of a worker's load and of the prefix index, in every order of their
/// threads.
pub(crate) fn loom() -> Result<()> {
    step(
        "cargo test with loom: dynamo-transfer, slots; dynamo-kv, pool; dynamo-router, load and index",
    );
    let mut models = Command::new("cargo");
    models.args(["test", "--release", "--lib", "--locked", "--target-dir", "target/loom"]);
    for package in ["dynamo-transfer", "dynamo-kv", "dynamo-router"] {
        models.args(["--package", package]);
    }
    models.args(["--", "slots::tests::models::", "pool::tests::"]);
    models.args(["load::tests::models::", "index::tests::models::"]);
    // Has a pool too, of workers, and a runtime.
    models.args(["--skip", "queue::"]);
    shell::run(models.env("RUSTFLAGS", "--cfg dynamo_loom"))
}

/// Cargo of the nightly toolchain, whatever this repository is pinned to.
fn nightly() -> Command {
    let mut cargo = Command::new("rustup");
    cargo.args(["run", "nightly", "cargo"]);
    cargo
}

fn skipped(what: &str, with: &str) -> ExitCode {
    let how = format!("rustup toolchain install nightly {with}");
    println!("SKIPPED: {what}; to run it, `{}`", how.trim_end());
    ExitCode::SUCCESS
}
