//! What is aimed at.

use crate::contender::{ALLOCATIONS, CACHED, CYCLES, MATCHES, ONE_THREAD, SCALING};
use crate::table::Metric;

/// Returns the ratio to the peer that is to be reached.
pub fn beside_peer(workload: &str, metric: Metric) -> Option<f64> {
    match metric {
        CYCLES if workload.ends_with(ONE_THREAD) => Some(5.0),
        metric if MATCHES.contains(&metric) => Some(0.5),
        _ => None,
    }
}

/// Returns the figure of our own that is to be reached with sequences of `depth` blocks.
pub fn alone(metric: Metric, depth: usize) -> Option<f64> {
    match metric {
        SCALING => Some(1.6),
        CACHED => Some(128.0),
        // None for a block, five lists for the calls of a sequence, and now and then room for more blocks.
        ALLOCATIONS if depth <= 64 => Some(0.1),
        ALLOCATIONS => Some(0.001),
        _ => None,
    }
}
