//! `cargo xtask bench faults`: workers killed and frozen, etcd frozen, killed and wiped, under load;
//! every answer is checked token by token.
//!
//! ```text
//! this process: Migrate ─► Observed ─► Client ──TCP──► worker processes
//!               └ kills, freezes, checks               └ etcd (a process, too)
//! ```
#![expect(clippy::print_stdout, reason = "a program says what it finds")]
#![expect(clippy::cast_precision_loss, reason = "figures")]

mod fleet;
mod load;
mod observed;

#[expect(clippy::unwrap_used, reason = "a server that cannot be started ends the run")]
#[path = "../../../../dynamo-core/tests/etcd/server.rs"]
mod server;
#[expect(unreachable_pub, reason = "another program has it as its own")]
#[path = "../../../../peers/request-plane/src/table.rs"]
mod table;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use dynamo_core::random::Random;
use tokio::time::Instant;

use fleet::Fleet;
use load::{Load, Tally};
use observed::Log;
use server::Server;
use table::{Metric, Table};

struct Plan {
    kills: usize,
    stops: usize,
    outage: Duration,
    path: Option<String>,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [role, etcd] = &args[..]
        && role == "worker"
    {
        fleet::work(etcd).await?;
        return Ok(ExitCode::SUCCESS);
    }
    run(plan(&args)?).await
}

fn plan(args: &[String]) -> Result<Plan> {
    let mut plan = Plan { kills: 200, stops: 20, outage: Duration::from_secs(60), path: None };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut number = || -> Result<u64> {
            let value = args.next().with_context(|| format!("{arg} needs a number"))?;
            value.parse().with_context(|| format!("{arg} {value}"))
        };
        match arg.as_str() {
            "--kills" => plan.kills = usize::try_from(number()?)?,
            "--stops" => plan.stops = usize::try_from(number()?)?,
            "--outage" => plan.outage = Duration::from_secs(number()?),
            path if !path.starts_with('-') => plan.path = Some(path.to_owned()),
            _ => bail!("usage: faults [--kills N] [--stops N] [--outage SECONDS] [FILE]"),
        }
    }
    Ok(plan)
}

async fn run(plan: Plan) -> Result<ExitCode> {
    let mut etcd = Server::start().context("etcd is needed")?;
    let mut fleet = Fleet::start(etcd.url()).await?;
    let load = Load::new(&fleet).await?;
    let mut table = Table::default();
    let mut is_good = true;

    println!("{} workers are killed, one after the other", plan.kills);
    let (tally, ()) = load.during(kill(&mut fleet, plan.kills, load.log())).await?;
    is_good &= counted(&mut table, &format!("{} SIGKILLs", plan.kills), &tally);
    is_good &= plan.kills == 0 || detected(&mut table, "SIGKILL", &load, &tally, KILLED_P99_MS_MAX);

    println!("{} workers are frozen, half of them for good", plan.stops);
    let (tally, ()) = load.during(freeze(&mut fleet, plan.stops, load.log())).await?;
    is_good &= counted(&mut table, &format!("{} SIGSTOPs", plan.stops), &tally);
    is_good &=
        plan.stops == 0 || detected(&mut table, "SIGSTOP", &load, &tally, STOPPED_P99_MS_MAX);

    for way in ["frozen", "killed", "wiped"] {
        println!("etcd is {way} for {:?}", plan.outage);
        let (tally, back) = load.during(outage(&mut etcd, &fleet, way, plan.outage)).await?;
        let workload = format!("etcd {way} {} s", plan.outage.as_secs());
        is_good &= counted(&mut table, &workload, &tally);
        let back = back.as_secs_f64();
        table.row(&workload, Metric::lower("all listed", "s"), back, None, Some(LISTED_S_MAX));
        is_good &= is_within(&format!("all listed after etcd {way} [s]"), back, LISTED_S_MAX);
    }
    fleet.end().await?;
    table.print();
    if let Some(path) = plan.path {
        table.write(&path)?;
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Kills a random worker every now and then; another one takes its place.
async fn kill(fleet: &mut Fleet, kills: usize, log: &Log) -> Result<()> {
    let mut random = Random::unseeded();
    for number in 0..kills {
        let at = fleet.pick(&mut random);
        log.fault("SIGKILL", fleet.id(at), Instant::now());
        fleet.kill(at)?;
        fleet.replace(at).await?;
        if number % 50 == 49 {
            println!("  {} killed", number + 1);
        }
        tokio::time::sleep(random.around(Duration::from_millis(600))).await;
    }
    Ok(())
}

/// Freezes a random worker; later it goes on, or is killed and another one takes its place.
async fn freeze(fleet: &mut Fleet, stops: usize, log: &Log) -> Result<()> {
    let mut random = Random::unseeded();
    for number in 0..stops {
        let at = fleet.pick(&mut random);
        log.fault("SIGSTOP", fleet.id(at), Instant::now());
        fleet.signal(at, "STOP").await?;
        tokio::time::sleep(FROZEN).await;
        if number % 2 == 0 {
            fleet.signal(at, "CONT").await?;
        } else {
            fleet.kill(at)?;
            fleet.replace(at).await?;
        }
        tokio::time::sleep(random.around(Duration::from_millis(600))).await;
    }
    Ok(())
}

/// Takes etcd away for a while; returns how long after its return everyone is listed again.
async fn outage(etcd: &mut Server, fleet: &Fleet, way: &str, outage: Duration) -> Result<Duration> {
    match way {
        "frozen" => etcd.signal("-STOP"),
        _ => etcd.kill(),
    }
    tokio::time::sleep(outage).await;
    match way {
        "frozen" => etcd.signal("-CONT"),
        "wiped" => {
            etcd.wipe();
            etcd.restart();
        }
        _ => etcd.restart(),
    }
    let back = Instant::now();
    fleet.wait_listed().await?;
    Ok(back.elapsed())
}

/// Notes what was lost; tells whether nothing was.
fn counted(table: &mut Table, workload: &str, tally: &Tally) -> bool {
    let zero = Some(0.0);
    let wrong = tally.wrong;
    for (metric, count) in [
        ("lost", tally.lost),
        ("hung", tally.hung),
        ("duplicate", wrong.duplicate),
        ("missing", wrong.missing),
        ("otherwise wrong", wrong.other),
    ] {
        table.row(workload, Metric::lower(metric, "1"), count as f64, None, zero);
    }
    table.row(workload, Metric::higher("answers", "1"), tally.answers as f64, None, None);
    table.row(workload, Metric::lower("moved", "1"), tally.gaps_ms.len() as f64, None, None);
    tally.lost + tally.hung + wrong.duplicate + wrong.missing + wrong.other == 0
}

/// Notes how soon the streams of a worker failed, and how long their readers waited for a token;
/// tells whether it was soon enough.
fn detected(table: &mut Table, fault: &str, load: &Load, tally: &Tally, p99_ms_max: f64) -> bool {
    let detected = load.log().detections_ms(fault);
    for (metric, share, target) in [("p50", 50, None), ("p99", 99, Some(p99_ms_max))] {
        let workload = format!("{fault} to error, {} streams", detected.len());
        let value = percentile(&detected, share);
        table.row(&workload, Metric::lower(metric, "ms"), value, None, target);
    }
    for (metric, share) in [("p50", 50), ("p99", 99), ("max", 100)] {
        let workload = format!("{fault}, longest wait for a token");
        let value = percentile(&tally.gaps_ms, share);
        table.row(&workload, Metric::lower(metric, "ms"), value, None, None);
    }
    is_within(&format!("{fault} to error, p99 [ms]"), percentile(&detected, 99), p99_ms_max)
}

/// Tells whether a figure meets its target, and says so if it does not; one that could not be
/// measured does not.
fn is_within(what: &str, value: f64, target: f64) -> bool {
    let is_within = value <= target;
    if !is_within {
        println!("  missed: {what} is {value:.3}, not <= {target}");
    }
    is_within
}

fn percentile(values: &[f64], share: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() * share / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// What a socket says at once, and what only silence says.
const KILLED_P99_MS_MAX: f64 = 50.0;
const STOPPED_P99_MS_MAX: f64 = 3000.0;
/// How soon after the return of etcd a newcomer finds every worker.
const LISTED_S_MAX: f64 = 10.0;

/// Longer than it takes to be noticed.
const FROZEN: Duration = Duration::from_secs(4);
