//! `cargo xtask bench eviction`: how many blocks of a trace each policy finds again in caches of some
//! sizes, beside plain LRU and the optimum; nothing is timed, and each run finds the same.
#![expect(clippy::print_stdout, reason = "a program says what it finds")]
#![expect(clippy::cast_precision_loss, reason = "figures")]

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use dynamo_kv::evict::{BlockCost, CostAware, Eviction, Lru, ModelSize, S3Fifo};

use replay::{PlainLru, Pool};
use table::{Metric, Table};
use trace::Trace;

mod optimum;
mod replay;
#[expect(unreachable_pub, reason = "another program has it as its own")]
#[path = "../../../../peers/request-plane/src/table.rs"]
mod table;
mod trace;

fn main() -> Result<()> {
    let (json, path) = options()?;
    let trace = Trace::read(&path).with_context(|| {
        let path = std::path::absolute(&path).unwrap_or(path);
        format!("the trace at {}; --trace PATH names another\n{WHERE_FROM}", path.display())
    })?;
    let asked: usize = trace.requests.iter().map(Vec::len).sum();
    println!(
        "{} requests for {asked} blocks of {TOKENS} tokens, {} of them different",
        trace.requests.len(),
        trace.unique()
    );
    let results: Vec<_> =
        SHARES.iter().map(|share| Row::of(&trace, *share)).collect::<Result<_>>()?;
    print("blocks found, of all asked for", &results, |result| result.found);
    print("time to compute the rest, of that to compute all", &results, |result| result.computed);
    if let Some(json) = json {
        let table = table_of(&results);
        table.print();
        table.write(&json)?;
    }
    Ok(())
}

/// Returns where the figures go, and the trace.
fn options() -> Result<(Option<String>, PathBuf)> {
    let (mut json, mut trace) = (None, PathBuf::from(TRACE));
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--trace" => trace = args.next().context("--trace needs a path")?.into(),
            path if !path.starts_with('-') && json.is_none() => json = Some(arg),
            _ => bail!("unknown option {arg}; there is --trace PATH"),
        }
    }
    Ok((json, trace))
}

/// What comes of a trace in a cache of one size.
struct Row {
    percent: usize,
    capacity: usize,
    /// In the order of [`COLUMNS`].
    results: Vec<Figures>,
}

/// Shares of 1.
#[derive(Clone, Copy)]
struct Figures {
    found: f64,
    computed: f64,
}

impl Row {
    fn of(trace: &Trace, percent: usize) -> Result<Self> {
        let capacity = trace.unique() * percent / 100;
        let mut plain = PlainLru::new(trace, capacity);
        let mut found = vec![
            optimum::found(trace, capacity),
            trace.requests.iter().map(|request| plain.serve(request)).collect(),
        ];
        for (_, policy) in POLICIES {
            let mut pool = Pool::new(trace, capacity, policy());
            found.push(trace.requests.iter().map(|request| pool.serve(request)).collect());
        }
        let results: Vec<_> = found.iter().map(|found| figures(trace, found)).collect();
        let most = results[0].found;
        ensure!(results.iter().all(|result| result.found <= most), "more than the optimum");
        Ok(Self { percent, capacity, results })
    }
}

fn figures(trace: &Trace, found: &[usize]) -> Figures {
    let cost = cost();
    let seconds = |places: std::ops::Range<usize>| -> f64 {
        places.map(|place| cost.seconds(u32::try_from(place).unwrap_or(u32::MAX))).sum()
    };
    let (mut asked, mut computed, mut all) = (0, 0.0, 0.0);
    for (request, found) in trace.requests.iter().zip(found) {
        asked += request.len();
        computed += seconds(*found..request.len());
        all += seconds(0..request.len());
    }
    Figures { found: found.iter().sum::<usize>() as f64 / asked as f64, computed: computed / all }
}

fn print(title: &str, rows: &[Row], figure: fn(&Figures) -> f64) {
    println!("\n{title}");
    let names = COLUMNS.iter().chain(POLICIES.iter().map(|(name, _)| name));
    let names: String = names.map(|name| format!("{name:>13}")).collect();
    println!("{:<18}{names}", "capacity [blocks]");
    for row in rows {
        let figures: String = row.results.iter().map(|r| format!("{:>13.4}", figure(r))).collect();
        println!("{:<18}{figures}", format!("{} ({} %)", row.capacity, row.percent));
    }
}

fn table_of(rows: &[Row]) -> Table {
    let mut table = Table::default();
    for row in rows {
        let (best, plain) = (row.results[0], row.results[1]);
        for ((name, _), ours) in POLICIES.iter().zip(&row.results[2..]) {
            let workload = format!("{} % of the blocks, {name}", row.percent);
            let found = Metric::higher("blocks found", "1");
            let computed = Metric::lower("time to compute the rest", "1");
            table.row(&workload, found, ours.found, Some((COLUMNS[0], best.found)), None);
            table.row(&workload, found, ours.found, Some((COLUMNS[1], plain.found)), None);
            table.row(&workload, computed, ours.computed, Some((COLUMNS[1], plain.computed)), None);
        }
    }
    table
}

/// A model of 8 B parameters; how fast it is computed changes no share.
fn cost() -> BlockCost {
    let model = ModelSize { parameters: 8e9, layers: 32.0, width: 4096.0 };
    BlockCost::of_model(model, TOKENS, 4e14)
}

/// Beside the repository.
const TRACE: &str = "../shared/traces/conversation_trace.jsonl";

const WHERE_FROM: &str = "\
(a path is relative to the repository; the trace of the figures in docs/performance.md is conversation_trace.jsonl \
of github.com/kvcache-ai/Mooncake, folder FAST25-release/traces)";

/// The trace's blocks.
const TOKENS: usize = 512;

/// Capacities in percent of the different blocks.
const SHARES: [usize; 6] = [1, 2, 5, 10, 20, 50];

/// What the policies are compared with.
const COLUMNS: [&str; 2] = ["optimum", "plain LRU"];

type Policy = fn() -> Box<dyn Eviction>;

const POLICIES: [(&str, Policy); 4] = [
    ("LRU", || Box::new(Lru::default())),
    ("S3-FIFO", || Box::new(S3Fifo::default())),
    ("cost-aware", || Box::new(CostAware::new(cost()))),
    // From a lower tier, which is faster than to compute any.
    ("cost, loaded", || Box::new(CostAware::new(cost().with_load(0.0001)))),
];
