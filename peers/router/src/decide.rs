//! The whole decision: from a prompt's tokens, or its hashes, to a worker and what is booked on it.

use std::hint::black_box;

use anyhow::{Result, ensure};

use crate::choice::{self, Choice};
use crate::figures::{
    DECISION_P50, DECISION_P99, DECISIONS, Figure, HASHED, OURS, medians, percentile,
};
use crate::rows::Rows;
use crate::theirs::selection::{self, Selection};
use crate::turn::timed;
use crate::workload::mix;

/// What a decision starts from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Input {
    Tokens,
    Hashes,
}

/// A router of workers of which number w holds w / W of a prompt.
pub trait Decider {
    /// Decides `count` times, and lets go of what was booked each time; returns the last worker's
    /// number and what each time took, in us.
    ///
    /// The request is there before the clock runs, and its answer is dropped after.
    fn decide(&mut self, input: Input, count: usize) -> Result<(u64, Vec<f64>)>;
}

/// Measures all decisions, and what hashing takes of them.
pub fn run(rounds: usize, rows: &mut Rows<'_>) -> Result<()> {
    for (length, count) in PROMPTS {
        let tokens = tokens(length);
        for workers in WORKERS {
            for (input, what) in [(Input::Tokens, "tokens"), (Input::Hashes, "hashes")] {
                let name = format!("{length} {what} in, W={workers}");
                if rows.wants(&name) {
                    println!("{name}");
                    let both = decisions(workers, &tokens, input, [rounds, count])?;
                    rows.add(&name, [OURS, "SelectionCore"].into_iter().zip(both));
                }
            }
        }
    }
    let (length, _) = PROMPTS[1];
    let name = format!("{length} tokens in");
    if rows.wants(&name) {
        println!("{name}");
        let both = hashings(&tokens(length), rounds);
        rows.add(&name, [OURS, "dynamo-tokens"].into_iter().zip(both));
    }
    Ok(())
}

/// Measures both routers in so many rounds of so many decisions each; the peer up to as many
/// workers as it is measured with.
fn decisions(
    workers: usize,
    tokens: &[u32],
    input: Input,
    [rounds, count]: [usize; 2],
) -> Result<[Option<Vec<Figure>>; 2]> {
    let mut ours = Choice::new(workers, tokens)?;
    let is_theirs = workers <= WORKERS_THEIRS;
    let mut theirs = is_theirs.then(|| Selection::new(workers, tokens)).transpose()?;
    let mut figures = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        figures[0].push(turn(&mut ours, workers, input, count)?);
        if let Some(theirs) = &mut theirs {
            figures[1].push(turn(theirs, workers, input, count)?);
        }
    }
    if workers == WORKERS_SCALED && input == Input::Hashes {
        figures[0].iter_mut().for_each(|figures| figures.extend(ours.scaling()));
    }
    Ok(figures.map(medians))
}

/// Measures a router of `workers` workers, all idle: it has to choose one that holds nearly all.
fn turn(
    decider: &mut dyn Decider,
    workers: usize,
    input: Input,
    count: usize,
) -> Result<Vec<Figure>> {
    decider.decide(input, count / 10)?;
    let (worker, mut took) = decider.decide(input, count)?;
    ensure!(worker * 8 >= workers as u64 * 7, "worker {worker} of {workers} was chosen");
    let mean = took.iter().sum::<f64>() / took.len() as f64;
    Ok(vec![
        (DECISION_P50, percentile(&mut took, 0.5)),
        (DECISION_P99, percentile(&mut took, 0.99)),
        (DECISIONS, 1e6 / mean),
    ])
}

/// Measures how long both sides take to hash a prompt's blocks and their chain, in turns.
fn hashings(tokens: &[u32], rounds: usize) -> [Option<Vec<Figure>>; 2] {
    let half_of = |hash: &dyn Fn()| {
        let mut took: Vec<_> = (0..HASHINGS).map(|_| timed(hash).as_secs_f64() * 1e6).collect();
        vec![(HASHED, percentile(&mut took, 0.5))]
    };
    let mut figures = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        figures[0].push(half_of(&|| drop(black_box(choice::hash_in(tokens)))));
        figures[1].push(half_of(&|| drop(black_box(selection::hash_in(tokens)))));
    }
    figures.map(medians)
}

/// A prompt of so many tokens.
fn tokens(count: usize) -> Vec<u32> {
    (0..count as u64).map(|token| mix(token) as u32 >> 12).collect()
}

/// Returns how many of a prompt's `blocks` worker `number` of `workers` holds.
pub fn held(number: usize, workers: usize, blocks: usize) -> usize {
    blocks * number / workers
}

/// Tokens of a block, on both sides.
pub const BLOCK_TOKENS: usize = 16;

/// Of a prompt, and how often a turn decides for it.
const PROMPTS: [(usize, usize); 2] = [(2048, 5000), (131_072, 500)];

const WORKERS: [usize; 4] = [8, 64, 256, 1000];

/// So many the peer is measured with at most.
const WORKERS_THEIRS: usize = 256;

/// Where decisions are made by all threads too.
const WORKERS_SCALED: usize = 64;

const HASHINGS: usize = 300;
