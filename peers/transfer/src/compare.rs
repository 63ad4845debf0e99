//! Who takes part in which workload, and the rows that come of it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use memmap2::MmapMut;

use crate::contender::{Contender, Kind, Turn};
use crate::memory::{self, REGION_BYTES};
use crate::ours::{self, BACKENDS, SHM, TCP, UCX};
use crate::protocol::{Pattern, Right};
use crate::table::{Metric, Table};
use crate::targets::target;

pub struct Options {
    /// Where the rows go as JSON.
    pub path: Option<PathBuf>,
    /// Those of ours that take part; all that are offered if none is named.
    pub backends: Vec<String>,
    pub rounds: usize,
    /// Interpreters that have the peers.
    pub nixl: Option<PathBuf>,
    pub mooncake: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        let backends = Vec::new();
        Self { path: None, backends, rounds: ROUNDS, nixl: None, mooncake: None }
    }
}

/// Compares all, prints the rows, and writes them.
pub fn run(options: &Options) -> Result<()> {
    let mut notes = Vec::new();
    let planned = planned(options, &mut notes)?;
    let regions = planned.len() * 2 + 2;
    enough_memory(regions)?;
    println!("{regions} regions of {} MiB each", REGION_BYTES >> 20);
    let logs = options.path.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
    let logs = logs.join("transfer-logs");
    std::fs::create_dir_all(&logs)?;

    let mut contenders = Vec::new();
    for (name, kind, spins) in planned {
        match Contender::start(name, kind, spins, &logs) {
            Ok(contender) => contenders.push(contender),
            Err(error) => notes.push(format!("SKIPPED: {name} does not start: {error:#}")),
        }
    }
    verify(&mut contenders);
    let samples = rounds(&mut contenders, options.rounds)?;
    let mut figures = Vec::new();
    for (contender, samples) in contenders.iter_mut().zip(samples) {
        let idle = match &contender.lost {
            None => contender.idle(IDLE_TIME).map_err(|e| contender.lose("when idle", &e)).ok(),
            Some(_) => None,
        };
        figures.push((contender.name, self::figures(contender, &samples, idle)));
    }

    let mut table = Table::default();
    for (contender, (name, own)) in contenders.iter().zip(&figures) {
        if let Kind::Ours(_) = contender.kind {
            rows(&mut table, name, own, &figures);
        }
    }
    table.print();
    let is_ours = |contender: &Contender| matches!(contender.kind, Kind::Ours(_));
    let lost = contenders.iter().filter_map(|c| Some((c, c.lost.as_ref()?)));
    notes.extend(lost.clone().map(|(c, why)| format!("LOST: {} {why}", c.name)));
    notes.iter().for_each(|note| println!("{note}"));
    if let Some(path) = &options.path {
        table.write(path.to_str().context("a path that is no text")?)?;
    }
    let failed: Vec<_> = lost.filter(|(c, _)| is_ours(c)).map(|(c, _)| c.name).collect();
    ensure!(failed.is_empty(), "ours failed: {}", failed.join(", "));
    Ok(())
}

type Planned = (&'static str, Kind, bool);

fn planned(options: &Options, notes: &mut Vec<String>) -> Result<Vec<Planned>> {
    let mut planned: Vec<Planned> = Vec::new();
    if let Some(name) = options.backends.iter().find(|name| !BACKENDS.contains(&name.as_str())) {
        bail!("no backend {name:?}; there are {}", BACKENDS.join(", "));
    }
    let chosen =
        |name: &&&str| options.backends.is_empty() || options.backends.iter().any(|n| n == **name);
    for &name in BACKENDS.iter().filter(chosen) {
        if ours::configs(name).is_some() {
            planned.push((name, Kind::Ours(name), false));
        } else {
            notes.push(format!("NOT OFFERED: {name}"));
        }
    }
    if let Some(python) = &options.nixl {
        let nixl = |args| Kind::Python(python.clone(), "with_nixl.py", args);
        planned.push((CMA_POLLED, nixl(&["cma", "polled"]), false));
        planned.push((CMA_THREAD, nixl(&["cma", "thread"]), true));
        planned.push((TCP_POLLED, nixl(&["tcp", "polled"]), false));
        planned.push((TCP_THREAD, nixl(&["tcp", "thread"]), true));
    } else {
        notes.push("SKIPPED: NIXL, for want of an interpreter that has it".to_owned());
    }
    if let Some(python) = &options.mooncake {
        let mooncake = Kind::Python(python.clone(), "with_mooncake.py", &[]);
        planned.push((MOONCAKE, mooncake, false));
    } else {
        notes.push("SKIPPED: Mooncake, for want of an interpreter that has it".to_owned());
    }
    Ok(planned)
}

fn enough_memory(regions: usize) -> Result<()> {
    let needed = regions * (REGION_BYTES + PROCESS_BYTES);
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<usize>().ok());
    let available = available.context("no MemAvailable")? << 10;
    ensure!(
        available > needed,
        "{} MiB of memory are needed and {} are free; name fewer backends or peers",
        needed >> 20,
        available >> 20
    );
    Ok(())
}

/// Lets each move random bytes in every workload, once.
fn verify(contenders: &mut [Contender]) {
    for contender in contenders {
        println!("verifying what {} moves", contender.name);
        for (seed, (right, pattern, _)) in (3..).zip(workloads()) {
            if let Err(error) = contender.verify(right, pattern, seed) {
                contender.lose(&what_is_moved(right, pattern), &error);
                break;
            }
        }
    }
}

/// What a contender took for a workload in one round, and the bytes per second of a plain copy just
/// before.
struct Sample {
    turn: Turn,
    copy: f64,
}

/// Gives each its turn, several times round: for each contender, the samples of each workload.
fn rounds(contenders: &mut [Contender], rounds: usize) -> Result<Vec<Vec<Vec<Sample>>>> {
    let (owner, mut initiator) = (memory::region(1)?, memory::region(2)?);
    let empty = || workloads().map(|_| Vec::new()).collect();
    let mut samples: Vec<Vec<Vec<Sample>>> = contenders.iter().map(|_| empty()).collect();
    let started = Instant::now();
    for round in 0..rounds {
        if round >= ROUNDS_MIN && started.elapsed() > ROUNDS_TIME {
            println!("{round} rounds have to do: the machine is slow or busy");
            break;
        }
        println!("round {} of {rounds}", round + 1);
        for (workload, (right, pattern, times)) in workloads().enumerate() {
            for at in 0..contenders.len() {
                // Nobody always comes behind the same one.
                let at = (at + round) % contenders.len();
                if contenders[at].lost.is_some() {
                    continue;
                }
                let copy = copy(pattern, times, &owner, &mut initiator);
                match contenders[at].turn(right, pattern, times) {
                    Ok(turn) => samples[at][workload].push(Sample { turn, copy }),
                    Err(error) => contenders[at].lose(&what_is_moved(right, pattern), &error),
                }
            }
        }
    }
    Ok(samples)
}

/// Returns the bytes per second of a plain copy of the pattern by one thread.
fn copy(pattern: Pattern, times: u32, owner: &MmapMut, initiator: &mut MmapMut) -> f64 {
    memory::copy(pattern, owner, initiator);
    let times = times.min(COPIES_MAX);
    let started = Instant::now();
    for _ in 0..times {
        memory::copy(pattern, owner, initiator);
    }
    pattern.bytes() as f64 * f64::from(times) / started.elapsed().as_secs_f64()
}

type Figure = (String, Metric, f64);

/// Returns the medians of what a contender did.
fn figures(contender: &Contender, samples: &[Vec<Sample>], idle: Option<f64>) -> Vec<Figure> {
    let mut figures = Vec::new();
    for ((right, pattern, _), samples) in workloads().zip(samples) {
        let name = what_is_moved(right, pattern);
        let mut add = |metric: Metric, figure: &dyn Fn(&Sample) -> Option<f64>| {
            let of_rounds: Option<Vec<f64>> = samples.iter().map(figure).collect();
            if let Some(median) = of_rounds.and_then(|mut rounds| quantile(&mut rounds, 50)) {
                figures.push((name.clone(), metric, median));
            }
        };
        if pattern.count == 1 {
            let of = |sample: &Sample, percent| quantile(&mut sample.turn.totals.clone(), percent);
            add(P50, &|sample| Some(of(sample, 50)? * 1e6));
            add(P99, &|sample| Some(of(sample, 99)? * 1e6));
            continue;
        }
        let rate = |sample: &Sample| {
            let totals = &sample.turn.totals;
            Some(pattern.bytes() as f64 * totals.len() as f64 / totals.iter().sum::<f64>())
        };
        add(RATE, &|sample| Some(rate(sample)? / 1e9));
        add(SHARE, &|sample| Some(rate(sample)? / sample.copy));
        if COSTLY.contains(&pattern) {
            add(POST, &|sample| Some(quantile(&mut sample.turn.posts.clone(), 50)? * 1e6));
            add(INITIATOR_CPU, &|sample| Some(sample.turn.initiator_cpu * 1e9));
            add(OWNER_CPU, &|sample| Some(sample.turn.owner_cpu? * 1e9));
        }
    }
    figures.extend(idle.map(|idle| ("an agent that waits".to_owned(), IDLE, idle)));
    figures.push(("an agent that starts".to_owned(), START, contender.start * 1e3));
    figures
}

/// Adds the rows of a backend of ours: beside what is aimed at, and beside each peer.
fn rows(table: &mut Table, backend: &str, own: &[Figure], all: &[(&str, Vec<Figure>)]) {
    let is_there = |name| all.iter().any(|(other, _)| *other == name);
    let peers: &[&[&str]] = match backend {
        SHM | UCX => &[&[CMA_POLLED, CMA_THREAD], &[MOONCAKE]],
        // On one host they need no socket; as long as we do, they are our peers like that too.
        TCP if !is_there(SHM) => {
            &[&[CMA_POLLED, CMA_THREAD], &[TCP_POLLED, TCP_THREAD], &[MOONCAKE]]
        }
        TCP => &[&[TCP_POLLED, TCP_THREAD], &[MOONCAKE]],
        _ => &[],
    };
    for (workload, metric, ours) in own {
        let figure = |peer: &&'static str| {
            let (_, figures) = all.iter().find(|(name, _)| name == peer)?;
            let (_, _, figure) = figures.iter().find(|(w, m, _)| w == workload && m == metric)?;
            Some((*peer, *figure))
        };
        let is_rate = *metric == RATE;
        let better = |a: (_, f64), b: (_, f64)| if (a.1 > b.1) == is_rate { a } else { b };
        let best = |group: &&[&'static str]| group.iter().filter_map(figure).reduce(better);
        // Shares of copies are for the target.
        let peers: Vec<_> = match *metric {
            SHARE => Vec::new(),
            _ => peers.iter().filter_map(best).collect(),
        };
        let name = format!("{workload}, {backend}");
        let target = target(backend, workload, *metric);
        if target.is_some() || peers.is_empty() {
            table.row(&name, *metric, *ours, None, target);
        }
        for peer in peers {
            table.row(&name, *metric, *ours, Some(peer), None);
        }
    }
}

impl Contender {
    fn lose(&mut self, at: &str, error: &anyhow::Error) {
        println!("{} fails at {at}: {error:#}", self.name);
        self.stop();
        self.lost = Some(format!("at {at}: {error:#}"));
    }
}

/// Names a workload.
pub fn what_is_moved(right: Right, Pattern { block, count }: Pattern) -> String {
    let block = match block {
        block if block >= 1 << 20 => format!("{} MiB", block >> 20),
        block => format!("{} KiB", block >> 10),
    };
    format!("{} {count} x {block}", right.name())
}

/// Returns everything that is moved, and how often in a turn.
fn workloads() -> impl Iterator<Item = (Right, Pattern, u32)> {
    let bulk = BULK.map(|pattern| (pattern, (TURN_BYTES / pattern.bytes()).clamp(2, 16)));
    let single = SINGLE.map(|block| (Pattern { block, count: 1 }, 1000));
    let patterns = bulk.into_iter().chain(single);
    patterns.flat_map(|(pattern, times)| {
        [Right::Read, Right::Write].map(|right| (right, pattern, times as u32))
    })
}

/// Returns a quantile; none of nothing.
fn quantile(figures: &mut [f64], percent: usize) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() * percent / 100).copied()
}

const BULK: [Pattern; 5] = [
    Pattern { block: 4 << 10, count: 16_384 },
    Pattern { block: 64 << 10, count: 256 },
    Pattern { block: 256 << 10, count: 256 },
    MIBS,
    Pattern { block: 16 << 20, count: 16 },
];
const SINGLE: [u64; 2] = [4 << 10, 64 << 10];
/// Those of which more is said than the rate.
const COSTLY: [Pattern; 2] = [BULK[0], MIBS];
const MIBS: Pattern = Pattern { block: 1 << 20, count: 256 };

pub const RATE: Metric = Metric::higher("rate", "GB/s");
pub const SHARE: Metric = Metric::higher("share of memcpy", "1");
pub const P50: Metric = Metric::lower("p50", "us");
pub const P99: Metric = Metric::lower("p99", "us");
pub const POST: Metric = Metric::lower("caller's time in post", "us");
pub const INITIATOR_CPU: Metric = Metric::lower("CPU of initiator", "s/GB");
pub const OWNER_CPU: Metric = Metric::lower("CPU of owner", "s/GB");
pub const IDLE: Metric = Metric::lower("idle CPU of owner", "core");
pub const START: Metric = Metric::lower("start", "ms");

const CMA_POLLED: &str = "NIXL CMA, polled";
const CMA_THREAD: &str = "NIXL CMA, thread";
const TCP_POLLED: &str = "NIXL TCP, polled";
const TCP_THREAD: &str = "NIXL TCP, thread";
const MOONCAKE: &str = "Mooncake TCP";

const ROUNDS: usize = 7;
/// So that all is done in ten minutes where it can be.
const ROUNDS_TIME: Duration = Duration::from_secs(300);
const ROUNDS_MIN: usize = 3;
/// So much is moved in a turn, if that is not more than 16 transfers.
const TURN_BYTES: u64 = 256 << 20;
/// What a process has besides its region, at most.
const PROCESS_BYTES: usize = 64 << 20;
const COPIES_MAX: u32 = 4;
const IDLE_TIME: Duration = Duration::from_secs(5);
