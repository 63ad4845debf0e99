//! Who takes turns, and the rows that come of it.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::contender::{Contender, Figure, Full};
use crate::table::Table;
use crate::tiers::TURNS;
use crate::{ours, shared, targets, theirs, tiers};

pub struct Options {
    /// Where the rows go as JSON.
    pub path: Option<String>,
    pub rounds: usize,
    /// Blocks of a manager whose operations are timed.
    pub blocks: usize,
    /// Only what goes to a disk and back.
    pub is_tiers: bool,
}

/// Compares all, prints the rows, and writes them.
pub fn run(options: &Options) -> Result<()> {
    let blocks = options.blocks;
    // Two threads hold a sequence each.
    let is_enough = blocks / DEPTHS[1] >= 2 && blocks.is_multiple_of(DEPTHS[1]);
    ensure!(is_enough, "{blocks} blocks are not 2 or more times {}", DEPTHS[1]);
    let mut table = Table::default();
    for depth in DEPTHS.into_iter().filter(|_| !options.is_tiers) {
        println!("sequences of {depth} blocks");
        let contenders: [Box<dyn Contender>; 4] = [
            Box::new(Full::new(ours::manager, blocks, depth)?),
            Box::new(Full::new(theirs::lru, blocks, depth)?),
            Box::new(Full::new(theirs::lineage, blocks, depth)?),
            Box::new(Full::new(theirs::lineage_fifo, blocks, depth)?),
        ];
        let mut all: [Vec<_>; 4] = Default::default();
        for _ in 0..options.rounds.max(1) {
            for (contender, rounds) in contenders.iter().zip(&mut all) {
                rounds.push(contender.turn()?);
            }
        }
        let mut figures = all.map(medians);
        for (contender, figures) in contenders.iter().zip(&mut figures) {
            figures.extend(contender.heap()?);
        }
        rows(&mut table, depth, &figures);
    }
    let folder = options.path.as_deref().and_then(|path| Path::new(path).parent());
    let folder = folder.unwrap_or(Path::new(""));
    tiers::run(folder, options.rounds, &mut table).context("tiers")?;
    shared::run(options.rounds * TURNS, &mut table).context("shared tiers")?;
    table.print();
    options.path.as_deref().map_or(Ok(()), |path| table.write(path))
}

/// Returns the median of each figure over the rounds.
fn medians(rounds: Vec<Vec<Figure>>) -> Vec<Figure> {
    let middle = |at: usize| {
        let mut figures: Vec<f64> = rounds.iter().map(|round| round[at].2).collect();
        figures.sort_by(f64::total_cmp);
        figures[figures.len() / 2]
    };
    let named = rounds[0].iter().enumerate();
    named.map(|(at, (workload, metric, _))| (workload.clone(), *metric, middle(at))).collect()
}

/// Adds our figures, each beside a target of its own and beside that of each peer.
fn rows(table: &mut Table, depth: usize, [ours, theirs @ ..]: &[Vec<Figure>; 4]) {
    for (at, (workload, metric, figure)) in ours.iter().enumerate() {
        if let Some(target) = targets::alone(*metric, depth) {
            table.row(workload, *metric, *figure, None, Some(target));
        }
        for (name, peer) in PEERS.into_iter().zip(theirs) {
            let target = targets::beside_peer(workload, *metric);
            table.row(workload, *metric, *figure, Some((name, peer[at].2)), target);
        }
    }
}

const DEPTHS: [usize; 2] = [64, 8192];

/// kvbm-logical by its backends.
const PEERS: [&str; 3] = ["kvbm LRU", "kvbm lineage", "kvbm lineage, FIFO"];
