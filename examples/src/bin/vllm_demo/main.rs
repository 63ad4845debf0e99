//! A fleet of real vLLM servers behind the graph: routed by what their caches hold, one of them
//! killed in the midst of answers.
#![expect(clippy::print_stdout, reason = "the demo talks to a person")]

mod args;
mod checks;
mod clients;
mod conversation;
mod crash;
mod engine;
mod fleet;
mod pass;
mod process;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

use args::{Args, Job};
use checks::Checks;
use engine::MODEL;
use fleet::Fleet;
use pass::Pass;

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let args = Args::parse(std::env::args().skip(1))?;
    let folder = std::env::temp_dir().join(format!("vllm-demo-{}", std::process::id()));
    std::fs::create_dir(&folder).with_context(|| format!("creating {}", folder.display()))?;
    // Who is interrupted drops the fleet as well, which kills it.
    let outcome = tokio::select! {
        outcome = run(&args, &folder) => outcome,
        interrupted = interrupted(args.job) => interrupted,
    };
    if matches!(outcome, Ok(true)) {
        std::fs::remove_dir_all(&folder).context("removing the logs")?;
        return Ok(ExitCode::SUCCESS);
    }
    println!("\nthe logs of all processes are in {}", folder.display());
    outcome.map(|_| ExitCode::FAILURE)
}

/// Does what was asked for; tells whether all that was checked held.
async fn run(args: &Args, folder: &Path) -> Result<bool> {
    println!(
        "graph: HTTP -> front end -> 2 sidecars -> 2 vLLM servers; etcd and NATS between them"
    );
    println!("starting vLLM twice (about a minute)");
    let mut fleet = Fleet::start(args, folder).await?;
    let mut checks = Checks::default();
    match args.job {
        Job::Show => show(&mut fleet, &mut checks).await?,
        Job::Clients => {
            let front_end = fleet.front_end("front-end", "kv", args.port).await?;
            clients::run(front_end.address, args, folder, &mut checks).await?;
            front_end.end().await?;
        }
        Job::Serve => {
            let front_end = fleet.front_end("front-end", "kv", args.port).await?;
            println!("serving {MODEL} at http://{}/v1; end with Ctrl-C", front_end.address);
            for engine in &fleet.engines {
                println!("{} answers at http://{}", engine.name(), engine.address);
            }
            return std::future::pending().await;
        }
    }
    fleet.end().await?;
    Ok(checks.all_held())
}

/// The conversations by both policies, then the crash.
async fn show(fleet: &mut Fleet, checks: &mut Checks) -> Result<()> {
    println!("the conversations by round robin, then by KV routing, each to empty caches");
    let naive = Pass::run(fleet, "round-robin").await?;
    Pass::print_head();
    naive.print();
    let routed = Pass::run(fleet, "kv").await?;
    routed.print();
    println!("hits and queries are tokens, as vLLM counts them\n");

    let total = routed.answers.len();
    let texts = naive.answers.iter().zip(&routed.answers);
    let same = texts.filter(|(naive, routed)| naive.text == routed.text).count();
    checks.check(same == total, &format!("{same} of {total} answers the same by both"));
    let ratio = routed.count.hits / naive.count.hits;
    checks.check(
        naive.count.hits > 0.0 && ratio >= RATIO_MIN,
        &format!("hits by KV routing = {ratio:.2} x round robin's (at least {RATIO_MIN})"),
    );
    // A server that reports nothing would pass for one that was rightly expected to have nothing.
    let (reported, hits) = (routed.reported(), routed.count.hits);
    checks.check(
        reported as f64 == hits,
        &format!("cached tokens that the answers report = {reported} of vLLM's {hits} hits"),
    );
    let predicted = routed.predicted();
    let share = predicted as f64 / total as f64;
    checks.check(
        share >= PREDICTED_MIN,
        &format!("predicted cached tokens = vLLM's for {predicted} of {total} (at least 95 %)"),
    );
    for it in routed.finished.iter().filter(|it| !it.is_as_predicted()) {
        println!("       not so: {it:?}");
    }
    crash::run(fleet, checks).await
}

/// Waits for Ctrl-C or SIGTERM, which is how a server ends; to others it is a failure.
async fn interrupted(job: Job) -> Result<bool> {
    let mut terminated = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    tokio::select! {
        pressed = tokio::signal::ctrl_c() => pressed.context("waiting for Ctrl-C")?,
        _ = terminated.recv() => {}
    }
    if job == Job::Serve { Ok(true) } else { bail!("interrupted") }
}

/// What KV routing is worth on these conversations, at least.
const RATIO_MIN: f64 = 1.5;

const PREDICTED_MIN: f64 = 0.95;
