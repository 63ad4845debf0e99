//! What is read off an index when its turn comes.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::figures::{
    ALLOCATIONS, APPLIED, FIND_P50, FIND_P99, Figure, LEFT, PER_PAIR, RECOVERY, median, percentile,
};
use crate::heap;
use crate::index::{Contender, Index, Reader};
use crate::table::Metric;
use crate::workload::{Workload, mix};

/// A contender's figures of one workload, as they come.
pub struct Turns {
    contender: Contender,
    rounds: Vec<[f64; METRICS.len()]>,
    /// What the first lookups came to.
    checksum: Option<u64>,
    spent: Duration,
}

impl Turns {
    pub fn new(contender: Contender) -> Self {
        Self { contender, rounds: Vec::new(), checksum: None, spent: Duration::ZERO }
    }

    /// Fills an index and looks everything up, unless that has taken its time already.
    pub fn turn(&mut self, workload: &Workload) -> Result<()> {
        if self.spent > TIME_MAX {
            return Ok(());
        }
        let start = Instant::now();
        let mut index = (self.contender.make)();
        index.prepare(workload, &workload.events);
        let blocks = Workload::blocks(&workload.events);
        let applied = blocks as f64 / timed(|| index.apply()).as_secs_f64();
        let mut reader = index.reader();
        // The first pass is not timed: it is compared.
        let checksum = checksum(reader.as_mut(), workload);
        ensure!(*self.checksum.get_or_insert(checksum) == checksum, UNLIKE);
        let mut lookups = Vec::with_capacity(PASSES * workload.queries.len());
        for _ in 0..PASSES {
            lookups.extend(workload.queries.iter().map(|query| {
                reader.ask(&workload.prompts[*query]);
                timed(|| reader.find()).as_secs_f64() * 1e6
            }));
        }
        self.rounds.push([applied, percentile(&mut lookups, 0.5), percentile(&mut lookups, 0.99)]);
        drop((reader, index));
        self.spent += start.elapsed();
        Ok(())
    }

    /// Returns the medians of all turns.
    pub fn figures(&self) -> Vec<Figure> {
        let middle = |at: usize| median(self.rounds.iter().map(|round| round[at]));
        METRICS.into_iter().enumerate().map(|(at, metric)| (metric, middle(at))).collect()
    }
}

/// Fails unless all have found the same.
pub fn compare(turns: &[Turns]) -> Result<()> {
    for turn in turns {
        let (first, name) = (&turns[0], turn.contender.name);
        ensure!(turn.checksum == first.checksum, "{name} {UNLIKE}");
    }
    Ok(())
}

/// Returns what each pair of a worker and a block takes on the heap after all events, and what is
/// left once `emptying` has removed every block.
pub fn memory(contender: &Contender, workload: &Workload, emptying: &Workload) -> Vec<Figure> {
    let [full, lookups, left] = heap::count(|counts| {
        let mut index = (contender.make)();
        in_parts(index.as_mut(), workload);
        let full = counts().live_bytes;
        let lookups = allocations(index.reader().as_mut(), workload, &|| counts().allocations);
        in_parts(index.as_mut(), emptying);
        index.tidy();
        [full as f64, lookups, counts().live_bytes as f64]
    });
    let per_pair = full / workload.pairs as f64;
    vec![(PER_PAIR, per_pair), (ALLOCATIONS, lookups), (LEFT, left / 1e6)]
}

/// Returns how long an index that has lost all takes to know it again.
pub fn recovery(contender: &Contender, held: &Workload) -> Option<Vec<Figure>> {
    Some(vec![(RECOVERY, (contender.make)().recover(held).as_secs_f64())])
}

/// Applies all events, few at a time: what carries them to a thread does not grow to hold them all.
fn in_parts(index: &mut dyn Index, workload: &Workload) {
    for events in workload.events.chunks(EVENTS) {
        index.prepare(workload, events);
        index.apply();
    }
}

/// Returns how often a lookup asks the heap for memory, once a reader has answered some.
fn allocations(reader: &mut dyn Reader, workload: &Workload, counted: &dyn Fn() -> u64) -> f64 {
    let mut lookup = |query: &usize| {
        reader.ask(&workload.prompts[*query]);
        let before = counted();
        reader.find();
        counted() - before
    };
    let queries = &workload.queries;
    queries.iter().for_each(|query| _ = lookup(query));
    queries.iter().map(lookup).sum::<u64>() as f64 / queries.len() as f64
}

/// Sums up who holds how much of all prompts that are looked up.
fn checksum(reader: &mut dyn Reader, workload: &Workload) -> u64 {
    let mut sum = 0_u64;
    for (at, query) in workload.queries.iter().enumerate() {
        reader.ask(&workload.prompts[*query]);
        reader.find();
        reader.found(&mut |worker, blocks| {
            let found = mix(at as u64) ^ mix((worker as u64) << 32 | blocks as u64);
            sum = sum.wrapping_add(mix(found));
        });
    }
    sum
}

pub fn timed(run: impl FnOnce()) -> Duration {
    let start = Instant::now();
    run();
    start.elapsed()
}

const METRICS: [Metric; 3] = [APPLIED, FIND_P50, FIND_P99];

/// How often every prompt is looked up in a turn.
const PASSES: usize = 3;

/// Who has taken so long in a workload has no more turns in it.
const TIME_MAX: Duration = Duration::from_millis(2500);

/// Events at a time where memory is counted.
const EVENTS: usize = 64;

const UNLIKE: &str = "finds other prefixes than the others, or than before";
