//! `cargo xtask bench transfer`: the same transfers between two processes of this machine, over our
//! backends and the peers, in one run. Medians of several rounds in which all take turns.
//!
//! Peers, none of whose code is here: NIXL 1.5.1 and Mooncake's transfer engine 0.3.13 (both
//! Apache-2.0), as PyPI has them and driven by the scripts in `python/`.

mod child;
mod compare;
mod contender;
mod figures;
mod files;
mod memory;
mod ours;
mod protocol;
#[path = "../../request-plane/src/table.rs"]
mod table;
mod targets;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mut options = compare::Options::default();
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value\n{USAGE}"));
        match arg.as_str() {
            AS => return ours::run(&value()?, &value()?),
            "--backend" => options.backends.push(value()?),
            "--nixl" => options.nixl = Some(PathBuf::from(value()?)),
            "--mooncake" => options.mooncake = Some(PathBuf::from(value()?)),
            "--ucx" => options.ucx = Some(PathBuf::from(value()?)),
            "--rounds" => options.rounds = value()?.parse().context(USAGE)?,
            option if option.starts_with("--") => bail!("{option}\n{USAGE}"),
            path => options.path = Some(PathBuf::from(path)),
        }
    }
    compare::run(&options)
}

const USAGE: &str = "\
usage: transfer [PATH] [--backend NAME]... [--rounds COUNT] [--nixl PYTHON] [--mooncake PYTHON]
                [--ucx FOLDER]
       the rows as JSON go to PATH; PYTHON is an interpreter that has that peer; FOLDER has another
       libucp.so.0 than the system's, and its modules in ucx/";

/// The argument before the backend and the side that this process is to be.
const AS: &str = "--as";
