use dynamo_core::protocol::Tier;
use proptest::prelude::*;

use super::reference::Reference;
use super::*;

#[cfg(not(dynamo_loom))]
mod budget;
#[cfg(dynamo_loom)]
mod models;
#[cfg(not(dynamo_loom))]
mod snapshots;
#[cfg(not(dynamo_loom))]
mod staggered;
#[cfg(not(dynamo_loom))]
mod threads;

pub(super) const TIERS: [Tier; 4] = [Tier::Device, Tier::Host, Tier::Disk, Tier::Remote];

/// Different workers, in different words of the coverage.
const WORKERS: [usize; 6] = [0, 1, 2, 70, 130, 1_500];

#[derive(Debug, Clone)]
enum Op {
    Store { run: Run, knows_parent: bool },
    Remove { run: Run, is_backwards: bool },
    Clear { worker: usize },
}

/// Blocks of a path that a worker has in a tier.
#[derive(Debug, Clone)]
struct Run {
    worker: usize,
    tier: Tier,
    path: usize,
    from: usize,
    to: usize,
}

fn run() -> impl Strategy<Value = Run> {
    // Around the ends of segments things happen; and few long runs meet.
    let at = prop_oneof![0..BLOCKS, 0..8_usize, 60..70_usize, Just(BLOCKS)];
    let worker = prop::sample::select(&WORKERS[..]);
    let tier = prop::sample::select(&TIERS[..]);
    (worker, tier, 0..PATHS, at.clone(), at).prop_map(|(worker, tier, path, a, b)| {
        let (from, to) = (a.min(b), a.max(b));
        Run { worker, tier, path, from, to }
    })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (run(), prop::bool::weighted(0.8))
            .prop_map(|(run, knows_parent)| Op::Store { run, knows_parent }),
        4 => (run(), any::<bool>()).prop_map(|(run, is_backwards)| Op::Remove { run, is_backwards }),
        1 => prop::sample::select(&WORKERS[..]).prop_map(|worker| Op::Clear { worker }),
    ]
}

pub(super) fn worker(id: usize) -> Slot {
    Slot::from_index(id).unwrap()
}

pub(super) const PATHS: usize = 6;
pub(super) const BLOCKS: usize = 200;

/// Returns the hashes of a sequence that parts from the others at a block of its own.
pub(super) fn path(path: usize) -> Vec<SequenceHash> {
    const PARTS_AT: [usize; PATHS] = [0, 0, 1, 40, 64, 100];
    let locals = (0..BLOCKS).map(|at| if at < PARTS_AT[path] { at } else { at + path * BLOCKS });
    let hashes = locals.scan(0_u64, |parent, local| {
        *parent =
            (*parent ^ local as u64 ^ 0x5555).wrapping_mul(0xff51_afd7_ed55_8ccd) ^ *parent >> 31;
        Some(SequenceHash(*parent))
    });
    hashes.collect()
}

fn apply(index: &mut PrefixIndex, reference: &mut Reference, op: &Op) {
    match op {
        Op::Store { run, knows_parent } => {
            let path = path(run.path);
            let parent = run.from.checked_sub(1).filter(|_| *knows_parent);
            let hashes = &path[run.from..run.to];
            index.store(worker(run.worker), run.tier, parent.map(|parent| path[parent]), hashes);
            reference.store(worker(run.worker), run.tier, hashes);
        }
        Op::Remove { run, is_backwards } => {
            let mut hashes = path(run.path)[run.from..run.to].to_vec();
            if *is_backwards {
                hashes.reverse();
            }
            index.remove(worker(run.worker), run.tier, &hashes);
            reference.remove(worker(run.worker), run.tier, &hashes);
        }
        Op::Clear { worker: id } => {
            index.clear(worker(*id));
            reference.clear(worker(*id));
        }
    }
}

fn agree(index: &PrefixIndex, reference: &Reference) -> Result<(), TestCaseError> {
    let mut matches = Matches::default();
    for (at, hashes) in (0..PATHS).map(path).enumerate() {
        // Not every query ends where something was stored.
        let hashes = &hashes[..BLOCKS - at * 7];
        index.reader().find(hashes, &mut matches);
        for id in WORKERS.map(worker) {
            prop_assert_eq!(matches.tiers(id), reference.tiers(id, hashes), "{:?} on {}", id, at);
            prop_assert_eq!(matches.depth(id), reference.depth(id, hashes));
        }
        prop_assert!(matches.iter().all(|(slot, _)| WORKERS.contains(&slot.index())));
    }
    for id in WORKERS.map(worker) {
        prop_assert_eq!(index.held(id), reference.held(id));
    }
    prop_assert_eq!(index.is_empty(), reference.len() == 0);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn the_index_agrees_with_the_naive_model(ops in prop::collection::vec(op(), 0..40)) {
        let (mut index, mut reference) = (PrefixIndex::default(), Reference::default());
        for op in &ops {
            apply(&mut index, &mut reference, op);
            agree(&index, &reference)?;
        }
        index.sweep();
        prop_assert_eq!(index.len(), reference.len());
        index.check();
        WORKERS.into_iter().for_each(|id| index.clear(worker(id)));
        prop_assert!(index.is_empty());
        prop_assert_eq!(index.len(), 0);
        prop_assert!(index.view.bytes() < 4096, "{} bytes are left", index.view.bytes());
    }
}

impl PrefixIndex {
    /// Asserts what is always true of the writer's books.
    fn check(&self) {
        let (mut places, mut used) = (0, 0);
        for segment in self.view.segments().filter(|segment| segment.len() > 0) {
            let hashes = segment.hashes()[..segment.len()].iter().zip(segment.first..);
            for (hash, place) in hashes {
                let hash = hash.load(Ordering::Relaxed);
                assert_eq!(
                    self.view.find(hash),
                    Some(place),
                    "a block that is there is found there"
                );
            }
            places += segment.len();
            used += 1;
            assert_ne!(self.view.held_by_anyone(&segment) >> (segment.len() - 1), 0);
        }
        assert_eq!(places, self.places);
        assert_eq!(used, self.spare.used.iter().sum::<usize>());
    }
}

#[test]
fn a_prompt_without_full_blocks_matches_nobody() {
    let mut index = PrefixIndex::default();
    index.store(worker(1), Tier::Host, None, &path(0));
    let mut matches = Matches::default();
    index.reader().find(&path(0), &mut matches);
    assert_eq!(matches.iter().collect::<Vec<_>>(), [(worker(1), BLOCKS)]);
    index.reader().find(&[], &mut matches);
    assert_eq!(matches.iter().count(), 0);
}

#[test]
fn what_is_in_two_tiers_counts_for_the_faster_one() {
    let mut index = PrefixIndex::default();
    index.store(worker(1), Tier::Disk, None, &path(0));
    index.store(worker(1), Tier::Device, None, &path(0)[..70]);
    let mut matches = Matches::default();
    index.reader().find(&path(0), &mut matches);
    assert_eq!(matches.tiers(worker(1)), [70, 0, 130, 0]);
    index.remove(worker(1), Tier::Device, &path(0)[..70]);
    index.reader().find(&path(0), &mut matches);
    assert_eq!(matches.tiers(worker(1)), [0, 0, 200, 0]);
}

#[test]
fn a_worker_is_as_gone_after_its_slot_was_used_again_often() {
    let mut index = PrefixIndex::default();
    let mut matches = Matches::default();
    index.store(worker(0), Tier::Device, None, &path(1));
    for round in 0..500 {
        index.store(worker(1), Tier::Device, None, &path(round % 2)[..100]);
        index.clear(worker(1));
        index.reader().find(&path(round % 2), &mut matches);
        assert_eq!(matches.depth(worker(1)), 0);
        assert_eq!(matches.depth(worker(0)), if round % 2 == 1 { BLOCKS } else { 0 });
    }
    assert!(index.view.lanes.lives.len() < 200, "numbers of lanes are used again");
}

#[test]
fn an_index_over_its_budget_drops_the_coldest_ends() {
    let config = IndexConfig::default().with_bytes_max(0);
    let mut index = PrefixIndex::new(config);
    let reader = index.reader();
    let mut matches = Matches::default();
    let hot = path(0);
    index.store(worker(0), Tier::Device, None, &hot);
    let (mut stored, mut places) = (hot.len(), 0);
    for sequence in 0..3_000_u64 {
        // Lengths of all kinds, of many workers: every kind of memory is taken.
        let id = worker(usize::try_from(sequence % 300).unwrap());
        let run: Vec<_> =
            (1..sequence % 400 + 2).map(|at| SequenceHash((sequence << 32 | at) * 77)).collect();
        index.store(id, TIERS[usize::try_from(sequence % 4).unwrap()], None, &run);
        stored += run.len();
        assert!(index.bytes() <= IndexConfig::BYTES_MIN, "{} bytes", index.bytes());
        reader.find(&hot, &mut matches);
        assert_eq!(matches.depth(worker(0)), BLOCKS, "what is asked for is kept");
        places = places.max(index.len());
    }
    index.check();
    assert_eq!(index.len() as u64 + index.dropped_total(), stored as u64);
    assert!(index.dropped_total() > 0 && places > 20_000, "{places} blocks were held");
    (0..300).for_each(|id| index.clear(worker(id)));
    assert!(index.is_empty() && index.view.bytes() < 4096);
}

#[test]
fn more_than_a_thousand_workers_share_a_prefix() {
    let mut index = PrefixIndex::default();
    let hashes = path(0);
    for id in 0..1_200 {
        index.store(worker(id), Tier::Device, None, &hashes[..id % 200 + 1]);
    }
    let mut matches = Matches::default();
    index.reader().find(&hashes, &mut matches);
    assert!((0..1_200).all(|id| matches.depth(worker(id)) == id % 200 + 1));
    assert_eq!(matches.iter().count(), 1_200);
}
