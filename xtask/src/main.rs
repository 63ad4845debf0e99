//! The repository's own commands: `cargo xtask demo | test | miri | asan | loom | bench | device-test | setup | model`.
#![expect(clippy::print_stdout, reason = "commands say what they do")]
#![forbid(unsafe_code)]

mod bench;
mod demo;
mod device;
mod model;
mod peers;
mod python;
mod sanitize;
mod setup;
mod shell;
mod test;
mod vllm;

use std::process::ExitCode;

use anyhow::{Result, bail};

fn main() -> Result<ExitCode> {
    let called_in = std::env::current_dir()?;
    std::env::set_current_dir(shell::root()?)?;
    let mut args = std::env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let args: Vec<String> = args.collect();
    match command.as_str() {
        "demo" => demo::run(&args, &called_in),
        "test" => test::run(),
        "miri" => sanitize::miri(),
        "asan" => sanitize::asan(),
        "loom" => {
            sanitize::loom()?;
            Ok(ExitCode::SUCCESS)
        }
        "bench" => {
            bench::run(&args)?;
            Ok(ExitCode::SUCCESS)
        }
        "device-test" => {
            device::run()?;
            Ok(ExitCode::SUCCESS)
        }
        "setup" => {
            setup::packages()?;
            Ok(ExitCode::SUCCESS)
        }
        "model" => {
            println!("{}", model::fetch()?.display());
            Ok(ExitCode::SUCCESS)
        }
        other => bail!("unknown command {other:?}\n{USAGE}"),
    }
}

const USAGE: &str = "\
usage: cargo xtask demo [--processes | --aggregated] [--backend tcp|shm|ucx|memory] [--serve] [--explain] [--prompt TEXT] [--model PATH] [--port PORT]
       cargo xtask demo --vllm [(--clients | --serve) [--port PORT]]   two real vLLM servers behind the graph; installs vLLM for the CPU the first time, 7 GB
       cargo xtask test     pass the tests; sets up what they need
       cargo xtask miri     the transfer engine's tests of registered memory and memcpy under Miri, where a nightly toolchain has it
       cargo xtask asan     the transfer engine's tests of memory under AddressSanitizer, where there is a nightly toolchain
       cargo xtask loom     models of slots, pool and load, in every order of their threads
       cargo xtask bench NAME   our figures beside the peers': kv, replay, request-plane, router, transfer; what comes of faults and in the long run: faults, soak, transfer-soak; which blocks of a trace are found again: eviction
       cargo xtask device-test   pack the tests and the bench of a GPU for a machine that has one
       cargo xtask setup    install the Debian packages that builds with all features and tests need
       cargo xtask model    fetch the model and print where it is";
