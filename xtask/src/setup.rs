//! The Debian packages that builds with all features and the tests need.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::shell::{apt_install, succeeds};

/// Installs what is missing; needs nothing if all is there.
pub(crate) fn packages() -> Result<()> {
    let runs = |program| succeeds(Command::new(program).arg("--version"));
    let mut missing = Vec::new();
    // The etcd client compiles its protocol when it is built.
    if !runs("protoc") || !Path::new("/usr/include/google/protobuf/descriptor.proto").exists() {
        missing.extend(["protobuf-compiler", "libprotobuf-dev"]);
    }
    if !runs("etcd") {
        missing.push("etcd-server");
    }
    if !runs("nats-server") {
        missing.push("nats-server");
    }
    // Tests of UCX are skipped without it.
    if !succeeds(Command::new("sh").args(["-c", "ldconfig -p | grep -q libucp.so.0"])) {
        missing.push("libucx0");
    }
    if missing.is_empty() { Ok(()) } else { apt_install(&missing) }
}
