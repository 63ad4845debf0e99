//! What is moved, and what is read off it.

use crate::contender::{Contender, Turn};
use crate::protocol::{Pattern, Right};
use crate::table::Metric;

/// What a contender took for a workload in one round, and the bytes per second of a plain copy just
/// before.
pub struct Sample {
    pub turn: Turn,
    pub copy: f64,
}

/// What an agent does besides moving bytes: nothing, describing, and starting.
#[derive(Debug, Clone, Copy, Default)]
pub struct Aside {
    /// Processors that a side takes which waits: the one that takes more.
    pub idle: Option<f64>,
    /// Seconds to describe many blocks on both sides and to post a read of them, as lists of ranges,
    /// as blocks of layouts, and as runs of those.
    pub describe: Option<[f64; 3]>,
}

pub type Figure = (String, Metric, f64);

/// Returns the medians of what a contender did.
pub fn figures(contender: &Contender, samples: &[Vec<Sample>], aside: Aside) -> Vec<Figure> {
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
    for (seconds, metric) in aside.describe.into_iter().flatten().zip(POSTS) {
        figures.push((what_is_moved(Right::Read, MANY), metric, seconds * 1e6));
    }
    figures.extend(aside.idle.map(|idle| ("an agent that waits".to_owned(), IDLE, idle)));
    figures.push(("an agent that starts".to_owned(), START, contender.start * 1e3));
    figures
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
pub fn workloads() -> impl Iterator<Item = (Right, Pattern, u32)> {
    let bulk = BULK.map(|pattern| (pattern, (TURN_BYTES / pattern.bytes()).clamp(2, 16)));
    let single = SINGLE.map(|block| (Pattern { block, count: 1 }, 1000));
    let patterns = bulk.into_iter().chain(single);
    patterns.flat_map(|(pattern, times)| {
        [Right::Read, Right::Write].map(|right| (right, pattern, times as u32))
    })
}

/// Returns a quantile; none of nothing.
pub fn quantile(figures: &mut [f64], percent: usize) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() * percent / 100).copied()
}

const BULK: [Pattern; 5] = [
    MANY,
    Pattern { block: 64 << 10, count: 256 },
    Pattern { block: 256 << 10, count: 256 },
    MIBS,
    Pattern { block: 16 << 20, count: 16 },
];
const SINGLE: [u64; 2] = [4 << 10, 64 << 10];
/// Those of which more is said than the rate.
const COSTLY: [Pattern; 2] = [MANY, MIBS];
pub const MANY: Pattern = Pattern { block: 4 << 10, count: 16_384 };
pub const MIBS: Pattern = Pattern { block: 1 << 20, count: 256 };

/// So much is moved in a turn, if that is not more than 16 transfers.
const TURN_BYTES: u64 = 256 << 20;

pub const RATE: Metric = Metric::higher("rate", "GB/s");
pub const SHARE: Metric = Metric::higher("share of memcpy", "1");
pub const P50: Metric = Metric::lower("p50", "us");
pub const P99: Metric = Metric::lower("p99", "us");
pub const POST: Metric = Metric::lower("caller's time in post", "us");
pub const POST_LIST: Metric = Metric::lower("list made and posted", "us");
pub const POST_BLOCKS: Metric = Metric::lower("blocks made and posted", "us");
pub const POST_RUN: Metric = Metric::lower("run of blocks made and posted", "us");
pub const INITIATOR_CPU: Metric = Metric::lower("CPU of initiator", "s/GB");
pub const OWNER_CPU: Metric = Metric::lower("CPU of owner", "s/GB");
pub const CPU: Metric = Metric::lower("CPU", "s/GB");
pub const IDLE: Metric = Metric::lower("idle CPU", "core");
pub const START: Metric = Metric::lower("start", "ms");

const POSTS: [Metric; 3] = [POST_LIST, POST_BLOCKS, POST_RUN];
