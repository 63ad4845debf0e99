//! What is asked of every manager, and what is read off it.

use std::cell::Cell;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::heap;
use crate::manager::{BLOCK_TOKENS, Manager};
use crate::table::Metric;

/// A workload, what is measured of it, and the figure.
pub type Figure = (String, Metric, f64);

/// Who takes turns.
pub trait Contender {
    /// Does everything once; the figures of all contenders are in the same order.
    fn turn(&self) -> Result<Vec<Figure>>;

    /// Counts what a manager of [`MANY_BLOCKS`] asks of the heap.
    fn heap(&self) -> Result<Vec<Figure>>;
}

/// A manager whose blocks are all registered and cached between turns.
pub struct Full<M> {
    make: fn(usize) -> Result<M>,
    manager: M,
    blocks: usize,
    /// Blocks of a sequence.
    depth: usize,
    /// How many sequences there were.
    sequences: Cell<u32>,
}

impl<M: Manager> Full<M> {
    /// Fills a manager with sequences of `depth` blocks, a divisor of `blocks`.
    pub fn new(make: fn(usize) -> Result<M>, blocks: usize, depth: usize) -> Result<Self> {
        let this = Self { make, manager: make(blocks)?, blocks, depth, sequences: Cell::new(0) };
        this.new_sequences(blocks).iter().for_each(|keys| cycle(&this.manager, keys, depth));
        Ok(this)
    }

    /// Names sequences of so many blocks in all that no manager has seen.
    fn new_sequences(&self, blocks: usize) -> Vec<M::Keys> {
        let tokens = self.depth as u32 * BLOCK_TOKENS;
        let sequence = |_| {
            let number = self.sequences.replace(self.sequences.get() + 1);
            // The first token tells them apart, and with it everything that follows.
            let tokens: Vec<u32> = (0..tokens).map(|token| number.wrapping_add(token)).collect();
            M::keys(&tokens)
        };
        (0..blocks / self.depth).map(sequence).collect()
    }

    /// Takes each operation apart; all blocks are held, then all cached.
    fn operations(&self) -> Result<Vec<Figure>> {
        let sequences = self.new_sequences(self.blocks);
        let (manager, depth) = (&self.manager, self.depth);
        let [mut allocate, mut register, mut drops] = [Duration::ZERO; 3];
        let evicted = manager.evicted();
        let mut guards = Vec::with_capacity(sequences.len());
        for keys in &sequences {
            let blocks = timed(&mut allocate, || manager.allocate(depth));
            guards.push(timed(&mut register, || manager.register(blocks, keys)));
        }
        was_full(manager.evicted() - evicted, self.blocks)?;
        let held = self.finds(&sequences)?;
        for guards in guards {
            timed(&mut drops, || drop(guards));
        }
        let cached = self.finds(&sequences)?;
        let spent = [allocate, register, held[0], held[1], cached[0], cached[1], drops];
        let figures = OPERATIONS.into_iter().zip(spent).map(|(metric, spent)| {
            (depth_of(depth), metric, spent.as_secs_f64() * 1e9 / self.blocks as f64)
        });
        Ok(figures.collect())
    }

    /// Finds each sequence, with all others between this time and the last; and then at once again,
    /// of which it returns what one time took.
    fn finds(&self, sequences: &[M::Keys]) -> Result<[Duration; 2]> {
        let [mut first, mut again] = [Duration::ZERO; 2];
        for keys in sequences {
            let found = timed(&mut first, || self.manager.find(keys));
            ensure!(M::count(&found) == self.depth, "all are there");
            drop(found);
            for _ in 0..AGAIN {
                drop(timed(&mut again, || self.manager.find(keys)));
            }
        }
        Ok([first, again / AGAIN])
    }

    /// Returns how many blocks a second are allocated, registered and dropped by `threads` threads,
    /// each with sequences of its own.
    fn cycles(&self, threads: usize) -> Result<f64> {
        let sequences: Vec<_> = (0..threads).map(|_| self.new_sequences(self.blocks)).collect();
        let (manager, depth, barrier) = (&self.manager, self.depth, &Barrier::new(threads));
        let evicted = manager.evicted();
        let spans: Vec<_> = thread::scope(|scope| {
            let work = |sequences: &Vec<M::Keys>| {
                barrier.wait();
                let start = Instant::now();
                sequences.iter().for_each(|keys| cycle(manager, keys, depth));
                (start, Instant::now())
            };
            let threads = sequences.iter().map(|some| scope.spawn(move || work(some)));
            let threads: Vec<_> = threads.collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        let blocks = threads * self.blocks;
        was_full(manager.evicted() - evicted, blocks)?;
        let start = spans.iter().map(|(start, _)| *start).min();
        let end = spans.iter().map(|(_, end)| *end).max();
        let span = end.zip(start).map_or(Duration::ZERO, |(end, start)| end - start);
        Ok(blocks as f64 / span.as_secs_f64())
    }
}

impl<M: Manager> Contender for Full<M> {
    fn turn(&self) -> Result<Vec<Figure>> {
        let mut figures = self.operations()?;
        let [one, two] = [self.cycles(1)?, self.cycles(2)?];
        let mut add = |threads, metric, figure| {
            figures.push((format!("{}, {threads}", depth_of(self.depth)), metric, figure));
        };
        add(ONE_THREAD, CYCLES, one);
        add("2 threads", CYCLES, two);
        add("2 threads", SCALING, two / one);
        Ok(figures)
    }

    fn heap(&self) -> Result<Vec<Figure>> {
        let sequences = self.new_sequences(MANY_BLOCKS);
        let further = self.new_sequences(self.blocks);
        let [empty, cached, allocations] = heap::count(|counts| -> Result<_> {
            let manager = (self.make)(MANY_BLOCKS)?;
            let cycle = |keys| cycle(&manager, keys, self.depth);
            let empty = counts();
            sequences.iter().for_each(cycle);
            let full = counts();
            further.iter().for_each(cycle);
            was_full(manager.evicted(), self.blocks)?;
            let steady = counts().allocations - full.allocations;
            let each = |bytes: i64| bytes as f64 / MANY_BLOCKS as f64;
            let allocations = steady as f64 / self.blocks as f64;
            Ok([each(empty.live_bytes), each(full.live_bytes), allocations])
        })?;
        let figures = [(EMPTY, empty), (CACHED, cached), (ALLOCATIONS, allocations)];
        Ok(figures.map(|(metric, figure)| (depth_of(self.depth), metric, figure)).into())
    }
}

/// Takes a sequence's blocks through all states, from allocated to cached.
fn cycle<M: Manager>(manager: &M, keys: &M::Keys, depth: usize) {
    let blocks = manager.allocate(depth);
    drop(manager.register(blocks, keys));
}

/// Fails if not about every block that was allocated had to be evicted.
fn was_full(evicted: u64, allocated: usize) -> Result<()> {
    let share = evicted as f64 / allocated as f64;
    ensure!((0.9..1.1).contains(&share), "{evicted} evicted for {allocated} allocated");
    Ok(())
}

fn timed<T>(spent: &mut Duration, run: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = run();
    *spent += start.elapsed();
    result
}

/// Names the workload of sequences of `depth` blocks.
fn depth_of(depth: usize) -> String {
    format!("depth {depth}")
}

/// Blocks of a manager whose memory is counted.
const MANY_BLOCKS: usize = 1 << 20;

/// How often a sequence is found again.
const AGAIN: u32 = 4;

pub const ONE_THREAD: &str = "1 thread";

pub const MATCHES: [Metric; 4] = [
    Metric::lower("match held", "ns/block"),
    Metric::lower("match held, again", "ns/block"),
    Metric::lower("match cached", "ns/block"),
    Metric::lower("match cached, again", "ns/block"),
];
const OPERATIONS: [Metric; 7] = [
    Metric::lower("allocate", "ns/block"),
    Metric::lower("complete + register", "ns/block"),
    MATCHES[0],
    MATCHES[1],
    MATCHES[2],
    MATCHES[3],
    Metric::lower("drop", "ns/block"),
];
pub const CYCLES: Metric = Metric::higher("full cycles", "blocks/s");
pub const SCALING: Metric = Metric::higher("2 threads / 1 thread", "1");
const EMPTY: Metric = Metric::lower("live heap, empty", "B/block");
pub const CACHED: Metric = Metric::lower("live heap, all cached", "B/block");
pub const ALLOCATIONS: Metric = Metric::lower("allocations, steady", "1/block");
