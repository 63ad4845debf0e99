//! Python environments: one in the cache, for `pip` and for the `openai` client of the tests, and
//! others where they are wanted.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::shell::{apt_install, cache, run, step, succeeds};

/// Returns the environment's interpreter, creating the environment if there is none.
pub(crate) fn environment() -> Result<PathBuf> {
    create(&cache()?.join("venv"))
}

/// Creates an environment in `folder` if there is none, and returns its interpreter.
pub(crate) fn create(folder: &Path) -> Result<PathBuf> {
    let python = folder.join("bin/python");
    if succeeds(Command::new(&python).args(["-m", "pip", "--version"])) {
        return Ok(python);
    }
    step(&format!("creating a Python environment in {}", folder.display()));
    let create = || run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder));
    if !succeeds(Command::new("python3").args(["-c", "import ensurepip, venv"])) {
        apt_install(&["python3", "python3-venv"])?;
    }
    create()?;
    Ok(python)
}

/// Returns an interpreter that has the `openai` client.
pub(crate) fn with_openai() -> Result<PathBuf> {
    let python = environment()?;
    let check = format!("import openai; assert openai.__version__ == {OPENAI:?}");
    if !succeeds(Command::new(&python).args(["-c", &check])) {
        step(&format!("installing the openai client {OPENAI}"));
        let package = format!("openai=={OPENAI}");
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", &package]))?;
    }
    Ok(python)
}

/// Returns an interpreter that has a server which speaks S3.
pub(crate) fn with_moto() -> Result<PathBuf> {
    let folder = Path::new("target/moto-venv");
    let python = std::path::absolute(folder.join("bin/python"))?;
    let check = format!("import moto, moto.server; assert moto.__version__ == {MOTO:?}");
    if !succeeds(Command::new(&python).args(["-c", &check])) {
        step(&format!(
            "installing moto {MOTO} in {}: 32 MB to fetch, 140 MB on disk",
            folder.display()
        ));
        create(folder)?;
        // What its extra `server` would bring, 170 MB more, other services need.
        let packages = [&format!("moto[s3]=={MOTO}"), "flask", "flask-cors"];
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(packages))?;
    }
    Ok(python)
}

const OPENAI: &str = "3.52.0";

const MOTO: &str = "5.2.5";
