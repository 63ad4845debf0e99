//! Lookups in one thread while another writes, and the same in all threads at once.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::figures::{APPLIED, FIND_P50, FIND_P99, Figure, SCALING, percentile};
use crate::index::Contender;
use crate::turn::timed;
use crate::workload::Workload;

/// One thread takes in the second half of the events as fast as it can, while another looks up what
/// comes; nothing if that cannot be.
pub fn mixed(contender: &Contender, workload: &Workload) -> Option<Vec<Figure>> {
    let mut index = (contender.make)();
    let mut reader = index.reader_elsewhere()?;
    let (before, during) = workload.events.split_at(workload.events.len() / 2);
    index.prepare(workload, before);
    index.apply();
    index.prepare(workload, during);
    let (prompts, queries) = (&workload.prompts[..], &workload.queries[..]);
    let (start, is_over) = (&Barrier::new(2), &AtomicBool::new(false));
    let (took, mut lookups) = thread::scope(|scope| {
        let lookups = scope.spawn(move || {
            start.wait();
            let mut lookups = Vec::new();
            for query in queries.iter().cycle() {
                reader.ask(&prompts[*query]);
                lookups.push(timed(|| reader.find()).as_secs_f64() * 1e6);
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
            }
            lookups
        });
        start.wait();
        let took = timed(|| index.apply());
        is_over.store(true, Ordering::Relaxed);
        (took, lookups.join().expect("no panic"))
    });
    Some(vec![
        (APPLIED, Workload::blocks(during) as f64 / took.as_secs_f64()),
        (FIND_P50, percentile(&mut lookups, 0.5)),
        (FIND_P99, percentile(&mut lookups, 0.99)),
    ])
}

/// Compares a thread on each core, all of which look up the same prompt, with one; nothing if that
/// cannot be.
pub fn lookups(contender: &Contender, workload: &Workload) -> Option<Vec<Figure>> {
    let mut index = (contender.make)();
    index.prepare(workload, &workload.events);
    index.apply();
    let scaling = scaling(|| {
        let mut reader = index.reader_elsewhere()?;
        reader.ask(&workload.prompts[0]);
        Some(move || reader.find())
    });
    scaling.map(|figure| vec![figure])
}

/// Compares a thread on each core with one: what all do together, of as many times what one does
/// alone.
pub fn scaling<W: FnMut() + Send>(make: impl Fn() -> Option<W>) -> Option<Figure> {
    let rate = |threads: usize| (0..threads).map(|_| make()).collect::<Option<_>>().map(at_once);
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
    Some((SCALING, rate(cores)? / (rate(1)? * cores as f64)))
}

/// Returns how often a second all do their work together.
fn at_once<W: FnMut() + Send>(all: Vec<W>) -> f64 {
    let start = &Barrier::new(all.len());
    thread::scope(|scope| {
        let count = |mut work: W| {
            start.wait();
            let begin = Instant::now();
            let mut times = 0;
            while begin.elapsed() < SPAN {
                (0..BATCH).for_each(|_| work());
                times += BATCH;
            }
            f64::from(times) / begin.elapsed().as_secs_f64()
        };
        let threads: Vec<_> =
            all.into_iter().map(|work| scope.spawn(move || count(work))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
    })
}

const SPAN: Duration = Duration::from_millis(300);

/// Times between looks at the clock.
const BATCH: u32 = 32;
