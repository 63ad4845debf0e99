//! What is replayed, and the rows that come of it.

use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use dynamo_router::RouterConfig;
use dynamo_router::testing::replay::{EngineConfig, Fleet, Policy, Report, Timing, Trace, replay};

use crate::peer::Chooser;
use crate::plot;
use crate::table::{Metric, Table};

pub struct Options {
    /// Where the rows go as JSON.
    pub path: Option<String>,
    /// A trace in Mooncake's format; the conversations, if they are beside the repository.
    pub trace: Option<PathBuf>,
    pub workers: usize,
    /// Of each synthetic trace.
    pub requests: usize,
    pub seed: u64,
    /// Where plots go, if any are asked for.
    pub plots: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        let beside = PathBuf::from("../shared/traces/conversation_trace.jsonl");
        let trace = beside.exists().then_some(beside);
        Self { path: None, trace, workers: 8, requests: 6000, seed: 0x5eed, plots: None }
    }
}

/// What one policy comes to: a share in per cent, times in milliseconds.
#[derive(Clone, Copy)]
pub struct Figures {
    pub reuse: f64,
    pub ttft_mean: f64,
    pub ttft_p50: f64,
    pub ttft_p99: f64,
    pub tpot_p99: f64,
    pub e2e_mean: f64,
}

impl Figures {
    fn of(report: &Report) -> Self {
        Self {
            reuse: report.reuse * 100.0,
            ttft_mean: report.ttft.mean_ms(),
            ttft_p50: report.ttft.percentile_ms(50),
            ttft_p99: report.ttft.percentile_ms(99),
            tpot_p99: report.tpot.percentile_ms(99),
            e2e_mean: report.e2e.mean_ms(),
        }
    }

    fn rows(&self) -> [(Metric, f64); 6] {
        [
            (REUSE, self.reuse),
            (TTFT_MEAN, self.ttft_mean),
            (TTFT_P50, self.ttft_p50),
            (TTFT_P99, self.ttft_p99),
            (TPOT_P99, self.tpot_p99),
            (E2E_MEAN, self.e2e_mean),
        ]
    }
}

const REUSE: Metric = Metric::higher("reuse", "%");
const TTFT_MEAN: Metric = Metric::lower("TTFT mean", "ms");
const TTFT_P50: Metric = Metric::lower("TTFT p50", "ms");
const TTFT_P99: Metric = Metric::lower("TTFT p99", "ms");
const TPOT_P99: Metric = Metric::lower("TPOT p99", "ms");
const E2E_MEAN: Metric = Metric::lower("e2e mean", "ms");

/// A trace over a fleet, by all policies.
struct Workload<'a> {
    name: String,
    trace: Trace,
    fleet: Fleet,
    /// The file it came from and its load, where the peer replays it too.
    peer: Option<(&'a Path, f64)>,
    /// What ours has to reach.
    targets: &'static [(Metric, f64)],
}

/// What came of one, ours first.
pub struct Outcome {
    pub load: Option<f64>,
    pub reports: Vec<(&'static str, Report)>,
    pub peers: Vec<(&'static str, Figures)>,
}

impl Outcome {
    /// Returns the figures of all, ours first.
    pub fn figures(&self) -> impl Iterator<Item = (&'static str, Figures)> + '_ {
        let ours = self.reports.iter().map(|(name, report)| (*name, Figures::of(report)));
        ours.chain(self.peers.iter().copied())
    }
}

/// Replays all, prints the rows, and writes them.
pub fn run(options: &Options) -> Result<()> {
    ensure!(options.workers > 0, "a fleet has at least one worker");
    let mut table = Table::default();
    let mut outcomes = Vec::new();
    for workload in workloads(options)? {
        let outcome = workload.replay(options.seed)?;
        workload.print(&outcome);
        workload.rows(&outcome, &mut table);
        outcomes.push(outcome);
    }
    println!();
    table.print();
    if let Some(folder) = &options.plots {
        plot::write(folder, &outcomes)?;
    }
    options.path.as_deref().map_or(Ok(()), |path| table.write(path))
}

fn workloads(options: &Options) -> Result<Vec<Workload<'_>>> {
    let (workers, mut all) = (options.workers, Vec::new());
    match &options.trace {
        Some(path) => traced(path, workers, &mut all)?,
        None => println!("!!! SKIPPING the trace, and the peer with it: --trace says where it is"),
    }
    for per_s in [4.0, 8.0, 12.0] {
        let (count, seed) = (options.requests, options.seed);
        let zero = Trace::zero_reuse(count, per_s, seed);
        let hot = Trace::hot_prefix(count, per_s, HOT_BLOCKS, seed);
        for (name, trace) in [("no reuse", zero), ("one hot prefix", hot)] {
            let name = format!("{name}, {per_s}/s");
            let fleet = Fleet::aggregated(workers);
            all.push(Workload { name, trace, fleet, peer: None, targets: &[] });
        }
    }
    Ok(all)
}

/// The trace at growing load, with growing fleets, with other engines, and with roles.
fn traced<'a>(path: &'a Path, workers: usize, all: &mut Vec<Workload<'a>>) -> Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let trace = Trace::mooncake(&text)?;
    let at = |load: f64| trace.clone().at_load(load);
    let fleet = Fleet::aggregated(workers);
    let targets: [&[(Metric, f64)]; 3] = [
        &[],
        &[(REUSE, 24.0), (TTFT_MEAN, 255.0), (TPOT_P99, 24.0)],
        &[(REUSE, 23.0), (TTFT_MEAN, 290.0), (TPOT_P99, 48.0)],
    ];
    for (load, targets) in [1.0, 2.0, 4.0].into_iter().zip(targets) {
        let name = format!("trace x{load}, {workers} workers");
        let peer = Some((path, load));
        all.push(Workload { name, trace: at(load), fleet, peer, targets });
    }
    let more = Fleet::aggregated(2 * workers);
    let linear = EngineConfig::default().with_timing(Timing::Linear);
    let split = Fleet::disaggregated(workers - workers / 2, (workers / 2).max(1));
    let lagging = fleet.with_event_lag(std::time::Duration::from_secs(1));
    for (what, load, fleet) in [
        ("twice the workers", 4.0, more),
        ("linear steps", 2.0, fleet.with_engine(linear)),
        ("events 1 s late", 2.0, lagging),
        ("half prefill, half decode", 2.0, split),
    ] {
        let name = format!("trace x{load}, {what}");
        all.push(Workload { name, trace: at(load), fleet, peer: None, targets: &[] });
    }
    Ok(())
}

impl Workload<'_> {
    /// Lets all policies replay it, two at once.
    fn replay(&self, seed: u64) -> Result<Outcome> {
        let ours = Policy::Kv(Box::new(RouterConfig::default().with_seed(seed)));
        let plain = [Policy::RoundRobin, Policy::Random, Policy::LeastLoaded, Policy::SharedCache];
        let (reports, peers) = thread::scope(|scope| {
            let peers = scope.spawn(|| self.replay_peer());
            let policies = std::iter::once(&ours).chain(&plain);
            let reports = policies
                .map(|policy| Ok((policy.name(), replay(&self.trace, &self.fleet, policy)?)));
            (reports.collect::<Result<Vec<_>>>(), peers.join())
        });
        let peers = peers.map_err(|_| anyhow::anyhow!("the peer panicked"))??;
        Ok(Outcome { load: self.peer.map(|(_, load)| load), reports: reports?, peers })
    }

    fn replay_peer(&self) -> Result<Vec<(&'static str, Figures)>> {
        let Some((trace, load)) = self.peer else { return Ok(Vec::new()) };
        let workers = self.fleet.workers();
        let choosers = [Chooser::RoundRobin, Chooser::Default, Chooser::Tuned];
        let figures = choosers.map(|chooser| {
            let figures = chooser.replay(trace, load, workers);
            Ok((chooser.name(), figures.with_context(|| chooser.name())?))
        });
        figures.into_iter().collect()
    }

    fn print(&self, outcome: &Outcome) {
        println!("\n{}: {} requests", self.name, self.trace.len());
        for (name, figures) in outcome.figures() {
            let Figures { reuse, ttft_mean, ttft_p50, ttft_p99, tpot_p99, e2e_mean } = figures;
            println!(
                "  {name:<20} reuse {reuse:5.2} %   TTFT {ttft_mean:7.1} / {ttft_p50:7.1} / {ttft_p99:8.1}   \
                 TPOT p99 {tpot_p99:7.2}   e2e {e2e_mean:8.1} ms"
            );
        }
    }

    fn rows(&self, outcome: &Outcome, table: &mut Table) {
        let mut all = outcome.figures();
        let Some((_, ours)) = all.next() else { return };
        let ours = ours.rows();
        for (metric, target) in self.targets {
            let figure =
                ours.iter().find(|(of, _)| of == metric).map_or(0.0, |(_, figure)| *figure);
            table.row(&self.name, *metric, figure, None, Some(*target));
        }
        for (name, figures) in all {
            for ((metric, ours), (_, theirs)) in ours.into_iter().zip(figures.rows()) {
                let target = beside(name, metric, self.targets);
                table.row(&self.name, metric, ours, Some((name, theirs)), target);
            }
        }
    }
}

/// Returns the ratio to a peer that is to be reached.
fn beside(name: &str, metric: Metric, targets: &[(Metric, f64)]) -> Option<f64> {
    match (name, metric) {
        ("least loaded", TTFT_P99) => Some(1.05),
        ("dynamo tuned", TTFT_MEAN | TPOT_P99) if !targets.is_empty() => Some(1.0),
        _ => None,
    }
}

/// 8,192 tokens that all requests begin with.
const HOT_BLOCKS: usize = 16;
