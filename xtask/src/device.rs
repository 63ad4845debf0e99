//! `cargo xtask device-test`: the tests and the bench of a GPU as programs to carry to a machine that has
//! one, which needs a driver and, for small blocks, NVRTC; no Rust and no CUDA toolkit.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::shell::{self, step};

pub(crate) fn run() -> Result<()> {
    step("building the tests and the bench of a GPU (release)");
    let folder = Path::new("target/device");
    if folder.exists() {
        fs::remove_dir_all(folder).context("clearing target/device")?;
    }
    fs::create_dir_all(folder).context("making target/device")?;
    for (package, kind, name) in PROGRAMS {
        let mut build = Command::new("cargo");
        build.args(["test", "--no-run", "--release", "--locked", "--package", package]);
        build.args(["--features", "cuda", kind, name, "--target-dir", "target/device-build"]);
        build.arg("--message-format=json-render-diagnostics");
        // In place of this machine's own instructions, which another may not have.
        build.env("RUSTFLAGS", format!("-C target-cpu={CPU}"));
        let program = executable(&shell::output(&mut build)?, name)?;
        fs::copy(&program, folder.join(name)).with_context(|| format!("copying {program}"))?;
        shell::run(Command::new("strip").arg(folder.join(name)))?;
    }
    let script = folder.join("run.sh");
    fs::write(&script, SCRIPT).context("writing run.sh")?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).context("run.sh")?;
    step("running them here: without a GPU each says that it is skipped");
    shell::run(&mut Command::new(&script))?;
    step("on a machine with a GPU");
    println!(
        "copy the folder {} there (nothing else is needed), run `./run.sh`, and put what it prints, and\n\
         figures.json, into docs/gpu.md. It needs glibc as new as here: {}",
        folder.display(),
        shell::output(Command::new("getconf").arg("GNU_LIBC_VERSION"))?.trim()
    );
    Ok(())
}

/// Finds the program that cargo says it has built.
fn executable(messages: &str, name: &str) -> Result<String> {
    let line = messages.lines().rev().find(|line| {
        line.contains(&format!("\"name\":\"{name}\"")) && line.contains("\"executable\":\"")
    });
    let path = line.and_then(|line| line.split("\"executable\":\"").nth(1));
    match path.and_then(|rest| rest.split('"').next()) {
        Some(path) => Ok(path.to_owned()),
        None => bail!("cargo does not say where {name} is"),
    }
}

/// Of which package each is, how cargo calls it, and its name.
const PROGRAMS: [(&str, &str, &str); 4] = [
    ("dynamo-transfer", "--test", "cuda"),
    ("dynamo-transfer", "--test", "device"),
    ("dynamo-transfer", "--bench", "device-bench"),
    ("dynamo-kv", "--test", "tiers"),
];

/// What every machine with a GPU of the last ten years has.
#[cfg(target_arch = "x86_64")]
const CPU: &str = "x86-64-v3";
#[cfg(not(target_arch = "x86_64"))]
const CPU: &str = "generic";

const SCRIPT: &str = r#"#!/bin/sh
# The tests and the bench of a GPU. NVRTC, which compiles the kernel for small blocks, is found where the
# loader looks, in a CUDA toolkit, or in the Python package nvidia-cuda-nvrtc.
set -eu
cd "$(dirname "$0")"
for folder in /usr/local/cuda/lib64 /usr/local/cuda/targets/*/lib \
    $(python3 -c 'import site; print("\n".join(p + "/nvidia/" + d + "/lib" for p in site.getsitepackages() + [site.getusersitepackages()] for d in ("cuda_nvrtc", "cu13", "cu12")))' 2>/dev/null || true); do
    if [ -d "$folder" ]; then LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder"; fi
done
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}"
date -u +%Y-%m-%d
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null || echo "no nvidia-smi"
./device
./cuda --test-threads=1 --nocapture --skip the_driver_is_called
./tiers --nocapture device::
./device-bench figures.json
"#;
