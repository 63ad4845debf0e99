//! What is aimed at, on a machine like the one the figures were measured on.

use crate::figures::{
    IDLE, INITIATOR_CPU, OWNER_CPU, P50, P99, POST, POST_BLOCKS, POST_LIST, POST_RUN, RATE, SHARE,
    START, what_is_moved,
};
use crate::files;
use crate::ours::{MEMCPY, SHARED, SHM, TCP, UCX};
use crate::protocol::{Pattern, Right};
use crate::table::Metric;

/// Returns the figure that a backend of ours is to reach.
pub fn target(backend: &str, workload: &str, metric: Metric) -> Option<f64> {
    let read = |count, block| what_is_moved(Right::Read, Pattern { block, count });
    let write = |count, block| what_is_moved(Right::Write, Pattern { block, count });
    let is = |name: String| workload == name;
    match (metric, backend) {
        // One copy; a system call that copies.
        (SHARE, SHARED) if is(read(256, 1 << 20)) => Some(0.95),
        (SHARE, SHM | UCX) if is(read(256, 1 << 20)) => Some(0.78),
        (RATE, SHARED) if is(read(16_384, 4 << 10)) => Some(7.5),
        (RATE, SHM | UCX) if is(read(16_384, 4 << 10)) => Some(5.0),
        (RATE, TCP) if is(read(256, 1 << 20)) || is(write(256, 1 << 20)) => Some(6.0),
        (RATE, TCP) if is(read(256, 64 << 10)) => Some(4.5),
        (RATE, TCP) if is(read(16_384, 4 << 10)) => Some(3.0),
        // Copied by whoever waits: nobody is woken.
        (P50, SHM | SHARED) if is(read(1, 4 << 10)) => Some(2.0),
        // With the waking of a task.
        (P50, TCP) if is(read(1, 4 << 10)) => Some(25.0),
        (P99, TCP) if is(read(1, 4 << 10)) => Some(45.0),
        (P50, TCP) if is(read(1, 64 << 10)) => Some(36.0),
        (POST, _) if is(read(256, 1 << 20)) || is(read(16_384, 4 << 10)) => Some(20.0),
        (POST_LIST, _) => Some(300.0),
        (POST_BLOCKS | POST_RUN, _) => Some(20.0),
        (INITIATOR_CPU | OWNER_CPU, TCP) if is(read(256, 1 << 20)) => Some(0.2),
        (IDLE, backend) if backend != MEMCPY => Some(0.001),
        (START, _) => Some(5.0),
        _ => None,
    }
}

/// Returns the figure that a store is to reach with files.
pub fn of_file(workload: &str, metric: Metric) -> Option<f64> {
    let is = |right, block| workload == files::what_is_moved(right, block, true);
    match metric {
        RATE if is(Right::Write, 64 << 10) => Some(2.9),
        RATE if is(Right::Read, 64 << 10) => Some(2.1),
        _ => None,
    }
}

/// Returns the ratio to plain calls that a store is to reach: from the page cache, none is lost.
pub fn beside_calls(workload: &str, metric: Metric) -> Option<f64> {
    let is = |right| workload == files::what_is_moved(right, 1 << 20, false);
    (metric == RATE && (is(Right::Read) || is(Right::Write))).then_some(1.0)
}
