//! Running programs, and asking the machine what it has.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Prints a step.
pub(crate) fn step(text: &str) {
    println!("==> {text}");
}

/// Runs a program to its end, its output shown; fails if it does.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

/// Runs a program and returns what it printed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Tells whether a program runs quietly to success.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// Installs Debian packages.
pub(crate) fn apt_install(packages: &[&str]) -> Result<()> {
    step(&format!("installing Debian packages: {}", packages.join(" ")));
    let is_root = output(Command::new("id").arg("-u"))?.trim() == "0";
    let apt = |args: &[&str]| {
        let mut command = if is_root {
            Command::new("apt-get")
        } else {
            let mut sudo = Command::new("sudo");
            sudo.arg("apt-get");
            sudo
        };
        run(command.args(args).env("DEBIAN_FRONTEND", "noninteractive"))
    };
    apt(&["update", "-qq"])?;
    apt(&[&["install", "-y", "-qq", "--no-install-recommends"][..], packages].concat())
}

/// Returns the repository's root, as cargo says it at run time: checkouts may share a target folder, and
/// the program in it.
#[expect(clippy::disallowed_methods, reason = "a command reads its environment")]
pub(crate) fn root() -> Result<PathBuf> {
    let own = std::env::var("CARGO_MANIFEST_DIR");
    let own = PathBuf::from(own.unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_owned()));
    own.parent().map(Path::to_owned).context("xtask stands in the repository")
}

/// Returns the folder for what is fetched once, outside the repository.
#[expect(clippy::disallowed_methods, reason = "a command reads its environment")]
pub(crate) fn cache() -> Result<PathBuf> {
    let base = match std::env::var("XDG_CACHE_HOME") {
        Ok(base) if !base.is_empty() => PathBuf::from(base),
        _ => PathBuf::from(std::env::var("HOME").context("HOME is not set")?).join(".cache"),
    };
    let cache = base.join("dynamo-sdk");
    std::fs::create_dir_all(&cache).with_context(|| format!("creating {}", cache.display()))?;
    Ok(cache)
}
