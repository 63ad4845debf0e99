//! What is aimed at.

use crate::figures::{
    APPLIED, DECISION_P50, DECISIONS, FIND_P50, FIND_P99, HASHED, LEFT, PER_PAIR, RECOVERY, SCALING,
};
use crate::table::Metric;

/// Returns the figure that is aimed at, if there is one.
pub fn of(workload: &str, metric: Metric) -> Option<f64> {
    let row = ROWS.iter().find(|(name, of, _)| *name == workload && *of == metric);
    row.map(|(.., target)| *target)
}

const ROWS: [(&str, Metric, f64); 27] = [
    ("trace, blocks of 16, W=8", FIND_P50, 1.2),
    ("trace, blocks of 16, W=8", FIND_P99, 7.0),
    ("trace, blocks of 16, W=64", FIND_P50, 1.3),
    ("trace, blocks of 16, W=64", FIND_P99, 8.0),
    ("trace, blocks of 512, W=256", FIND_P50, 0.6),
    ("trace, blocks of 512, W=256", FIND_P99, 1.5),
    ("shared, W=8", FIND_P50, 2.5),
    ("shared, W=64", FIND_P50, 2.8),
    ("shared, W=256", FIND_P50, 3.2),
    ("staggered, W=256", FIND_P50, 6.0),
    ("trace, blocks of 16, W=64, mixed", FIND_P99, 10.0),
    ("shared, W=64", SCALING, 0.9),
    ("trace, blocks of 16, W=64", APPLIED, 20e6),
    ("shared, W=64", APPLIED, 300e6),
    ("trace, LRU, W=8", APPLIED, 20e6),
    ("trace, blocks of 16, W=8", PER_PAIR, 28.0),
    ("trace, blocks of 16, W=64", PER_PAIR, 25.0),
    ("trace, LRU, W=8", PER_PAIR, 45.0),
    ("trace, LRU, W=8", LEFT, 1.0),
    ("recovery of 2.3 M blocks", RECOVERY, 1.0),
    ("2048 tokens in, W=8", DECISION_P50, 2.0),
    ("2048 tokens in, W=64", DECISION_P50, 2.5),
    ("2048 tokens in, W=256", DECISION_P50, 4.0),
    ("131072 tokens in, W=64", DECISION_P50, 50.0),
    ("131072 hashes in, W=64", DECISION_P50, 6.0),
    ("2048 tokens in, W=64", DECISIONS, 300e3),
    ("131072 tokens in", HASHED, 45.0),
];
