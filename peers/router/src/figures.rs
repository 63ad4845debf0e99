//! What comes of many measurements.

use crate::table::Metric;

/// What is measured of a workload, and the figure.
pub type Figure = (Metric, f64);

/// Returns the middle one, the upper of two.
pub fn median(figures: impl Iterator<Item = f64>) -> f64 {
    percentile(&mut figures.collect::<Vec<_>>(), 0.5)
}

/// Returns the median of each figure over the rounds; nothing if there were none.
pub fn medians(rounds: Vec<Vec<Figure>>) -> Option<Vec<Figure>> {
    let first = rounds.first()?;
    let middle = |at: usize| median(rounds.iter().map(|round| round[at].1));
    Some(first.iter().enumerate().map(|(at, (metric, _))| (*metric, middle(at))).collect())
}

/// Returns the figure that a share of `part` are below.
pub fn percentile(figures: &mut [f64], part: f64) -> f64 {
    let at = (figures.len() as f64 * part) as usize;
    *figures.select_nth_unstable_by(at, f64::total_cmp).1
}

pub const OURS: &str = "ours";

pub const APPLIED: Metric = Metric::higher("blocks applied", "1/s");
pub const FIND_P50: Metric = Metric::lower("find p50", "us");
pub const FIND_P99: Metric = Metric::lower("find p99", "us");
pub const PER_PAIR: Metric = Metric::lower("heap per worker and block", "B");
pub const ALLOCATIONS: Metric = Metric::lower("allocations per lookup", "1");
pub const LEFT: Metric = Metric::lower("heap, all removed", "MB");
pub const SCALING: Metric = Metric::higher("all cores / one times cores", "1");
pub const RECOVERY: Metric = Metric::lower("until all is known again", "s");
pub const DECISION_P50: Metric = Metric::lower("decision p50", "us");
pub const DECISION_P99: Metric = Metric::lower("decision p99", "us");
pub const DECISIONS: Metric = Metric::higher("decisions by one thread", "1/s");
pub const HASHED: Metric = Metric::lower("hashed in, p50", "us");
