//! Clients that others wrote, run against the front end: the `openai` package and vLLM's own load
//! generator.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use tokio::process::Command;
use tokio::time::timeout;

use crate::args::Args;
use crate::checks::Checks;
use crate::engine::MODEL;

/// Runs both; they print their figures.
pub(crate) async fn run(
    front_end: SocketAddr,
    args: &Args,
    folder: &Path,
    checks: &mut Checks,
) -> Result<()> {
    println!("\nthe openai client");
    let mut openai = python(args, include_str!("openai_client.py"));
    let held = succeeds(openai.arg(format!("http://{front_end}/v1"))).await?;
    checks.check(held, "the openai client: chat and completions, streamed and whole");

    println!("\nvLLM's load generator");
    let results = folder.join("bench.json");
    let mut bench = python(args, include_str!("bench_serve.py"));
    bench.args(["--backend", "openai-chat", "--endpoint", "/v1/chat/completions"]);
    bench.args(["--base-url", &format!("http://{front_end}"), "--model", MODEL, "--tokenizer"]);
    bench.arg(&args.model).args(["--dataset-name", "random", "--random-input-len", "256"]);
    bench.args(["--random-output-len", "32", "--num-prompts", PROMPTS, "--max-concurrency", "4"]);
    bench
        .args(["--temperature", "0", "--disable-tqdm", "--save-result", "--result-filename"])
        .arg(&results);
    let held = reports(&mut bench).await?;
    let text = std::fs::read_to_string(&results).context("what the load generator measured")?;
    let Measured { completed, failed } = serde_json::from_str(&text).context("its figures")?;
    let is_all = held && failed == 0 && completed.to_string() == PROMPTS;
    checks.check(is_all, &format!("vllm bench serve: {completed} answered, {failed} failed"));
    Ok(())
}

/// What the load generator writes down; as far as it is looked at here.
#[derive(Deserialize)]
struct Measured {
    completed: usize,
    failed: usize,
}

fn python(args: &Args, script: &str) -> Command {
    let mut command = Command::new(&args.python);
    command.arg("-c").arg(script).envs([("VLLM_TARGET_DEVICE", "cpu"), ("HF_HUB_OFFLINE", "1")]);
    command.kill_on_drop(true);
    command
}

/// Runs the load generator and prints its report, or all that it said if it failed.
async fn reports(bench: &mut Command) -> Result<bool> {
    let output = timeout(CLIENT_MAX, bench.output()).await.context("a client does not end")??;
    let said = String::from_utf8_lossy(&output.stdout);
    if output.status.success() {
        let report = said.find("====").map_or("", |at| &said[at..]);
        println!("{report}");
    } else {
        println!("{said}{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.status.success())
}

async fn succeeds(command: &mut Command) -> Result<bool> {
    let status = timeout(CLIENT_MAX, command.status()).await.context("a client does not end")?;
    Ok(status.context("running a client")?.success())
}

const PROMPTS: &str = "24";

const CLIENT_MAX: Duration = Duration::from_secs(300);
