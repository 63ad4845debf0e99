//! The peers of the transfer engine, as PyPI has them, in an environment of their own; and a UCX that
//! accesses memory of other processes without them, which Debian's does not.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::python;
use crate::shell::{output, run, step, succeeds};

/// Returns the options that tell the bench where its peers are; says who is left out, and why.
pub(crate) fn of_transfer() -> Vec<String> {
    let mut options = Vec::new();
    for peer in PEERS {
        match provide(&peer) {
            Ok(python) => options.extend([peer.option.to_owned(), python.display().to_string()]),
            Err(error) => println!("!!! SKIPPING {}: {error:#}", peer.packages[0]),
        }
    }
    match ucx() {
        Ok(folder) => options.extend([UCX.option.to_owned(), folder.display().to_string()]),
        Err(error) => println!("!!! TAKING THE SYSTEM'S UCX, if it has one: {error:#}"),
    }
    options
}

/// Returns the folder of the libraries of that UCX.
pub(crate) fn ucx() -> anyhow::Result<PathBuf> {
    let python = provide(&UCX)?;
    Ok(output(Command::new(python).args(["-c", UCX_FOLDER]))?.trim().into())
}

struct Peer {
    option: &'static str,
    /// Succeeds if it is there.
    check: &'static str,
    packages: &'static [&'static str],
    /// What is fetched and what lies on disk then.
    size: &'static str,
}

fn provide(peer: &Peer) -> anyhow::Result<PathBuf> {
    let folder = Path::new(FOLDER);
    let python = std::path::absolute(folder.join("bin/python"))?;
    if !succeeds(Command::new(&python).args(["-c", peer.check])) {
        step(&format!("installing {} in {FOLDER}: {}", peer.packages.join(", "), peer.size));
        python::create(folder)?;
        // The one package that NIXL would bring along, 5 GB of it, is not needed to move memory.
        let install = ["-m", "pip", "install", "--quiet", "--no-deps"];
        run(Command::new(&python).args(install).args(peer.packages))?;
        run(Command::new(&python).args(["-c", peer.check]))?;
    }
    Ok(python)
}

const FOLDER: &str = "target/peers-venv";

const PEERS: [Peer; 2] = [
    Peer {
        option: "--nixl",
        check: "import numpy, nixl_cu12._bindings",
        packages: &["nixl-cu12==1.5.1", NUMPY],
        size: "86 MB to fetch, 340 MB on disk",
    },
    Peer {
        option: "--mooncake",
        check: "import numpy, mooncake.engine",
        packages: &["mooncake-transfer-engine-non-cuda==0.3.13.post1", NUMPY],
        size: "46 MB to fetch, 140 MB on disk; NumPy unless it is there",
    },
];

const UCX: Peer = Peer {
    option: "--ucx",
    check: "import libucx",
    packages: &["libucx-cu12==1.22.0"],
    size: "43 MB to fetch, 150 MB on disk",
};

/// Prints where its libraries are.
const UCX_FOLDER: &str = "import libucx; print(list(libucx.__path__)[0] + '/lib')";

const NUMPY: &str = "numpy>=2";
