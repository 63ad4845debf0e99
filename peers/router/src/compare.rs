//! Who takes turns at what, and the rows that come of it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::figures::{Figure, OURS, medians};
use crate::index::Contender;
use crate::rows::Rows;
use crate::trace::Trace;
use crate::turn::{self, Turns};
use crate::workload::Workload;
use crate::{decide, long, ours, theirs, together, trace};

pub struct Options {
    /// Where the rows go as JSON.
    pub path: Option<String>,
    pub trace: PathBuf,
    pub rounds: usize,
    /// Only workloads whose names have this in them.
    pub only: Option<String>,
}

/// Compares all, prints the rows, and writes them.
pub fn run(options: &Options) -> Result<()> {
    let mut bench = Bench { options, rows: Rows::new(options.only.as_deref()) };
    let result = bench.all();
    bench.rows.print();
    result?;
    options.path.as_deref().map_or(Ok(()), |path| bench.rows.write(path))
}

struct Bench<'a> {
    options: &'a Options,
    rows: Rows<'a>,
}

impl Bench<'_> {
    fn all(&mut self) -> Result<()> {
        self.traces()?;
        self.prompts_of_8192()?;
        decide::run(self.options.rounds, &mut self.rows)
    }

    fn traces(&mut self) -> Result<()> {
        let path = &self.options.trace;
        if !path.exists() {
            println!("!!! SKIPPING all of the trace: no {}; {HOW_TO_GET}", path.display());
            return Ok(());
        }
        let trace = Trace::read(path)?;
        for block_size in [512, 16] {
            let prompts = trace.prompts(block_size);
            for workers in WORKERS {
                let name = format!("trace, blocks of {block_size}, W={workers}");
                self.index(&name, || trace::growing(&prompts, workers))?;
            }
            if block_size == 16 {
                let blocks = CACHE_TOKENS / block_size;
                self.index("trace, LRU, W=8", || trace::churning(&prompts, 8, blocks))?;
                self.recovery("recovery of 2.3 M blocks", || trace::held(&prompts, 7, 2_300_000));
            }
        }
        Ok(())
    }

    fn prompts_of_8192(&mut self) -> Result<()> {
        for workers in WORKERS {
            self.index(&format!("shared, W={workers}"), || long::shared(workers))?;
            self.index(&format!("staggered, W={workers}"), || long::staggered(workers))?;
            self.index(&format!("fan-out, W={workers}"), || long::fan_out(workers))?;
        }
        Ok(())
    }

    /// Measures all that is wanted of one workload.
    fn index(&mut self, name: &str, make: impl FnOnce() -> Workload) -> Result<()> {
        let mixed = format!("{name}, mixed");
        let is_mixed = name == MIXED && self.rows.wants(&mixed);
        if !self.rows.wants(name) && !is_mixed {
            return Ok(());
        }
        let workload = make();
        if self.rows.wants(name) {
            say(name, &workload);
            self.turns(name, &workload)?;
            if MEMORY.contains(&name) {
                self.memory(name, &workload);
            }
            if name == SCALED {
                let all = contenders(|one| one.is_in_place);
                self.together(name, &all, together::lookups, &workload);
            }
        }
        if is_mixed {
            let all = contenders(|one| !one.is_slow);
            self.together(&mixed, &all, together::mixed, &workload);
        }
        Ok(())
    }

    /// Measures all indexes, one after the other in each round.
    fn turns(&mut self, name: &str, workload: &Workload) -> Result<()> {
        let all = contenders(|_| true);
        let mut turns: Vec<_> = all.iter().map(|contender| Turns::new(*contender)).collect();
        for _ in 0..self.options.rounds {
            for turns in &mut turns {
                turns.turn(workload).with_context(|| name.to_owned())?;
            }
        }
        turn::compare(&turns).with_context(|| name.to_owned())?;
        let figures = turns.iter().map(|turns| Some(turns.figures()));
        self.rows.add(name, names(&all).zip(figures));
        Ok(())
    }

    fn memory(&mut self, name: &str, workload: &Workload) {
        println!("{name}: memory");
        let emptying = workload.emptying();
        let all = contenders(|one| !one.is_slow || !workload.is_big());
        let figures = all.iter().map(|one| Some(turn::memory(one, workload, &emptying)));
        self.rows.add(name, names(&all).zip(figures));
    }

    /// Measures how soon an index that has lost all knows it again.
    fn recovery(&mut self, name: &str, make: impl FnOnce() -> Workload) {
        if !self.rows.wants(name) {
            return;
        }
        let held = make();
        say(name, &held);
        self.together(name, &contenders(|one| !one.is_slow), turn::recovery, &held);
    }

    /// Measures those indexes of which that can be measured, in turns.
    fn together(
        &mut self,
        name: &str,
        all: &[Contender],
        measure: fn(&Contender, &Workload) -> Option<Vec<Figure>>,
        workload: &Workload,
    ) {
        println!("{name}: in turns");
        let mut figures: Vec<Vec<_>> = vec![Vec::new(); all.len()];
        for _ in 0..self.options.rounds {
            for (contender, figures) in all.iter().zip(&mut figures) {
                figures.extend(measure(contender, workload));
            }
        }
        self.rows.add(name, names(all).zip(figures.into_iter().map(medians)));
    }
}

/// Returns ours, and those of theirs that are wanted.
fn contenders(is_wanted: impl Fn(&Contender) -> bool) -> Vec<Contender> {
    let ours = Contender { name: OURS, make: ours::make, is_in_place: true, is_slow: false };
    [ours].into_iter().chain(theirs::CONTENDERS.into_iter().filter(is_wanted)).collect()
}

fn names(contenders: &[Contender]) -> impl Iterator<Item = &'static str> {
    contenders.iter().map(|contender| contender.name)
}

fn say(name: &str, workload: &Workload) {
    let (events, blocks) = (workload.events.len(), Workload::blocks(&workload.events));
    let (removed, pairs) = (workload.removed.len(), workload.pairs);
    let stored = blocks - removed;
    println!("{name}: {events} events, {stored} blocks stored, {removed} removed, {pairs} left");
}

/// Returns where the trace is unless an option says it.
pub fn trace_beside() -> PathBuf {
    Path::new("../shared/traces/conversation_trace.jsonl").to_owned()
}

const HOW_TO_GET: &str =
    "conversation_trace.jsonl is in Mooncake's repository (FAST25-release/traces); --trace PATH";

const WORKERS: [usize; 3] = [8, 64, 256];

/// Of a worker whose cache churns.
const CACHE_TOKENS: usize = 1_000_000;

/// Where memory is counted, which takes a time of its own.
const MEMORY: [&str; 5] = [
    "trace, blocks of 512, W=64",
    "trace, blocks of 16, W=8",
    "trace, blocks of 16, W=64",
    "trace, LRU, W=8",
    "fan-out, W=64",
];

/// Where a thread reads while another writes.
const MIXED: &str = "trace, blocks of 16, W=64";

/// Where all threads read the same.
const SCALED: &str = "shared, W=64";
