//! What the index has allocated, counted by the allocator: at no time more than it may.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::alloc::System;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use dynamo_core::protocol::{SequenceHash, Tier};
use dynamo_core::random::Random;
use dynamo_router::Slot;
use dynamo_router::index::{IndexConfig, PrefixIndex};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const TIERS: [Tier; 4] = [Tier::Device, Tier::Host, Tier::Disk, Tier::Remote];

/// Blocks of a sequence, and different sequences.
const BLOCKS: usize = 1_000;
const SEQUENCES: usize = 600;

const BYTES_MAX: usize = IndexConfig::BYTES_MIN;

/// Stores, removes and clears what `random` says.
fn change(
    index: &mut PrefixIndex,
    workers: usize,
    random: &mut Random,
    run: &mut Vec<SequenceHash>,
) {
    let mut below = |count: usize| random.below(count).unwrap();
    let worker = Slot::from_index(below(workers) * (Slot::COUNT / workers)).unwrap();
    let (tier, sequence) = (TIERS[below(16).min(TIERS.len() - 1)], below(SEQUENCES) as u64);
    let (from, to) = (below(BLOCKS), below(BLOCKS));
    let (from, to) = (from.min(to), from.max(to));
    // Four sequences share their first blocks.
    let of = |at: usize| if at < 100 { sequence / 4 } else { SEQUENCES as u64 + sequence };
    let hash = |at: usize| SequenceHash((of(at) << 32 | (at as u64 + 1)) * 77);
    run.clear();
    run.extend((from..to).map(hash));
    match below(10) {
        0..6 => index.store(worker, tier, from.checked_sub(1).map(hash), run),
        6..9 => {
            // Every other one: what is left is a mask.
            let mut is_kept = false;
            run.retain(|_| {
                is_kept = !is_kept;
                is_kept
            });
            index.remove(worker, tier, run);
        }
        _ => index.clear(worker),
    }
}

/// One test: what is counted is the whole process's.
#[test]
fn the_index_never_has_more_memory_than_its_budget() {
    let region = Region::new(ALLOCATOR);
    let live = || {
        let change = region.change();
        change.bytes_allocated.saturating_sub(change.bytes_deallocated)
    };
    let (is_over, peak) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut run = Vec::with_capacity(BLOCKS);
    thread::scope(|scope| {
        let _ends = Ends(&is_over);
        // What is there only while something is replaced is seen from beside, as often as can be.
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                peak.fetch_max(live(), Ordering::Relaxed);
                thread::yield_now();
            }
        });
        for workers in [3, 100, 4_000] {
            let before = live();
            peak.store(0, Ordering::Relaxed);
            let mut index = PrefixIndex::new(IndexConfig::default().with_bytes_max(BYTES_MAX));
            let mut random = Random::new(11);
            let mut most = 0;
            for _ in 0..1_500 {
                change(&mut index, workers, &mut random, &mut run);
                let bytes = live() - before;
                assert!(bytes <= index.bytes() + BYTES_MORE, "{bytes} are more than it says");
                most = most.max(bytes);
            }
            let peak = peak.load(Ordering::Relaxed).saturating_sub(before).max(most);
            assert!(peak <= BYTES_MAX, "{peak} bytes at once for {workers} workers");
            assert!(index.dropped_total() > 0 && most > BYTES_MAX / 3, "{most} bytes of {workers}");
        }
    });
}

/// Lets the other thread end, whatever becomes of this one.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Of an index, beside what it counts.
const BYTES_MORE: usize = 64 << 10;
