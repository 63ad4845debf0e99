//! Who takes part in which workload, and the rows that come of it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use memmap2::MmapMut;

use crate::contender::{Contender, Kind};
use crate::figures::{Aside, Figure, MANY, RATE, SHARE, Sample, figures, what_is_moved, workloads};
use crate::files::{self, FILE};
use crate::memory::{self, REGION_BYTES};
use crate::ours::{BACKENDS, SHARED, SHM, TCP, UCX};
use crate::protocol::{Form, Pattern};
use crate::table::Table;
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
    /// Another UCX for ours than the system's.
    pub ucx: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        let backends = Vec::new();
        Self { path: None, backends, rounds: ROUNDS, nixl: None, mooncake: None, ucx: None }
    }
}

impl Options {
    fn takes(&self, backend: &str) -> bool {
        self.backends.is_empty() || self.backends.iter().any(|name| name == backend)
    }
}

/// Compares all, prints the rows, and writes them.
pub fn run(options: &Options) -> Result<()> {
    let mut notes = Vec::new();
    let planned = planned(options, &mut notes)?;
    let regions = planned.len() * 2 + 2;
    enough_memory(regions)?;
    println!("{regions} regions of {} MiB each", REGION_BYTES >> 20);
    let folder = options.path.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
    let logs = folder.join("transfer-logs");
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
        let aside = match &contender.lost {
            None => contender.aside().map_err(|e| contender.lose("besides", &e)),
            Some(_) => Ok(Aside::default()),
        };
        figures
            .push((contender.name, self::figures(contender, &samples, aside.unwrap_or_default())));
    }

    let mut table = Table::default();
    for (contender, (name, own)) in contenders.iter().zip(&figures) {
        if let Kind::Ours(..) = contender.kind {
            rows(&mut table, name, own, &figures);
        }
    }
    if options.takes(FILE) {
        contenders.iter().for_each(Contender::stop);
        println!("reading and writing files");
        files::run(folder, &mut table).context("files")?;
    }
    table.print();
    let is_ours = |contender: &Contender| matches!(contender.kind, Kind::Ours(..));
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
    let is_there = |name: &&String| **name == FILE || BACKENDS.contains(&name.as_str());
    if let Some(name) = options.backends.iter().find(|name| !is_there(name)) {
        bail!("no backend {name:?}; there are {} and {FILE}", BACKENDS.join(", "));
    }
    for name in BACKENDS.into_iter().filter(|name| options.takes(name)) {
        let libraries = options.ucx.clone().filter(|_| name == UCX);
        planned.push((name, Kind::Ours(name, libraries), false));
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

/// Adds the rows of a backend of ours: beside what is aimed at, and beside each peer.
fn rows(table: &mut Table, backend: &str, own: &[Figure], all: &[(&str, Vec<Figure>)]) {
    let is_there = |name| all.iter().any(|(other, _)| *other == name);
    let peers: &[&[&str]] = match backend {
        SHM | SHARED | UCX => &[&[CMA_POLLED, CMA_THREAD], &[MOONCAKE]],
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
    /// Measures what it does when it moves nothing, and what only ours are asked.
    fn aside(&mut self) -> Result<Aside> {
        let describe = match self.kind {
            Kind::Ours(..) => Some([
                self.describe(Form::List, MANY)?,
                self.describe(Form::Blocks, MANY)?,
                self.describe(Form::Run, MANY)?,
            ]),
            Kind::Python(..) => None,
        };
        Ok(Aside { idle: Some(self.idle(IDLE_TIME)?), describe })
    }

    fn lose(&mut self, at: &str, error: &anyhow::Error) {
        println!("{} fails at {at}: {error:#}", self.name);
        self.stop();
        self.lost = Some(format!("at {at}: {error:#}"));
    }
}

const CMA_POLLED: &str = "NIXL CMA, polled";
const CMA_THREAD: &str = "NIXL CMA, thread";
const TCP_POLLED: &str = "NIXL TCP, polled";
const TCP_THREAD: &str = "NIXL TCP, thread";
const MOONCAKE: &str = "Mooncake TCP";

const ROUNDS: usize = 7;
/// So that all is done in ten minutes where it can be.
const ROUNDS_TIME: Duration = Duration::from_secs(300);
const ROUNDS_MIN: usize = 3;
/// What a process has besides its region, at most.
const PROCESS_BYTES: usize = 64 << 20;
const COPIES_MAX: u32 = 4;
const IDLE_TIME: Duration = Duration::from_secs(5);
