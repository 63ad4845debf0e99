//! The index as bytes: read as it was written, or not at all.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{WORKERS, agree, apply, op, path, worker};
use crate::index::reference::Reference;
use crate::index::{IndexConfig, Matches, PrefixIndex, SnapshotError};
use crate::workers::Slot;
use dynamo_core::protocol::{InstanceId, SequenceHash, Tier, WorkerId};

/// Returns the worker that is in a slot.
#[expect(clippy::unnecessary_wraps, reason = "as a router says it")]
fn name(slot: Slot) -> Option<WorkerId> {
    let number = slot.index();
    let instance = InstanceId((number as u64 / 2).wrapping_mul(u64::MAX / 7));
    Some(WorkerId { instance, rank: u32::try_from(number % 2).unwrap() })
}

fn restore(bytes: &[u8]) -> Result<PrefixIndex, SnapshotError> {
    let slots: BTreeMap<_, _> =
        WORKERS.map(worker).into_iter().map(|slot| (name(slot), slot)).collect();
    PrefixIndex::restore(IndexConfig::default(), bytes, |worker| slots.get(&Some(worker)).copied())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn an_index_is_read_as_it_was_written(
        ops in prop::collection::vec(op(), 0..30),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u32,
    ) {
        let (mut index, mut reference) = (PrefixIndex::default(), Reference::default());
        ops.iter().for_each(|op| apply(&mut index, &mut reference, op));
        let bytes = index.snapshot(name);
        let mut restored = restore(&bytes).unwrap();
        restored.check();
        agree(&restored, &reference)?;
        prop_assert_eq!(restored.len(), reference.len());

        let at = at.index(bytes.len());
        prop_assert!(restore(&bytes[..at]).is_err());
        let mut damaged = bytes;
        damaged[at] ^= 1_u8 << bit;
        prop_assert!(restore(&damaged).is_err());

        // What is restored goes on as what was written.
        for op in ops.iter().rev() {
            apply(&mut restored, &mut reference, op);
        }
        agree(&restored, &reference)?;
    }

    #[test]
    fn what_no_index_wrote_is_an_error_even_with_the_right_sum(
        at in 2_usize..60,
        word in any::<u64>(),
    ) {
        let mut index = PrefixIndex::default();
        index.store(worker(1), Tier::Host, None, &path(2)[..40]);
        index.store(worker(70), Tier::Disk, None, &path(2)[..7]);
        let bytes = index.snapshot(name);
        let mut words: Vec<_> =
            bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        words.pop();
        let at = at % words.len();
        words[at.max(2)] = word;
        let bytes = crate::index::seal(words.into_iter().flat_map(u64::to_le_bytes).collect());
        // It may be another index, but never one whose books are wrong.
        if let Ok(index) = restore(&bytes) {
            index.check();
        }
    }
}

#[test]
fn each_damage_has_its_name() {
    let mut index = PrefixIndex::default();
    index.store(worker(1), Tier::Device, None, &path(0));
    let bytes = index.snapshot(name);
    let mut matches = Matches::default();
    restore(&bytes).unwrap().reader().find(&path(0), &mut matches);
    assert_eq!(matches.depth(worker(1)), path(0).len());
    assert_eq!(restore(b"").unwrap_err(), SnapshotError::NotASnapshot);
    assert_eq!(restore(&bytes[..bytes.len() - 3]).unwrap_err(), SnapshotError::Length);
    assert_eq!(restore(&bytes[..bytes.len() - 8]).unwrap_err(), SnapshotError::Checksum);
    let mut other = bytes;
    other[8] = 9;
    assert_eq!(restore(&other).unwrap_err(), SnapshotError::Version(9));
}

#[test]
fn workers_are_put_where_they_belong_and_those_without_a_place_are_left_out() {
    let mut index = PrefixIndex::default();
    for id in 0..100 {
        index.store(worker(id), Tier::Device, None, &path(id % 3)[..id + 1]);
        index.store(worker(id), Tier::Host, None, &path(4)[..id + 1]);
    }
    // One is not known by name, and of the others every second one has a place.
    let bytes = index.snapshot(|slot| name(slot).filter(|_| slot.index() != 8));
    let place = |id: usize| (id.is_multiple_of(2) && id != 8).then(|| worker(2_000 - id));
    let ids: BTreeMap<_, _> = (0..100).map(|id| (name(worker(id)), id)).collect();
    let restored =
        PrefixIndex::restore(IndexConfig::default(), &bytes, |name| place(ids[&Some(name)]));
    let restored = restored.unwrap();
    restored.check();
    let mut matches = Matches::default();
    for (query, hashes) in (0..6).map(path).enumerate() {
        index.reader().find(&hashes, &mut matches);
        let placed = matches.iter().filter_map(|(slot, depth)| Some((place(slot.index())?, depth)));
        let mut expected: Vec<_> = placed.collect();
        expected.sort_unstable();
        restored.reader().find(&hashes, &mut matches);
        assert_eq!(matches.iter().collect::<Vec<_>>(), expected, "path {query}");
    }
    let held: BTreeSet<SequenceHash> = (0..100)
        .filter(|id| place(*id).is_some())
        .flat_map(|id| [path(id % 3)[..id + 1].to_vec(), path(4)[..id + 1].to_vec()].concat())
        .collect();
    assert_eq!(restored.len(), held.len(), "what only others held is not there");
}
