//! The index as bytes: read as it was written, or not at all.

use proptest::prelude::*;

use super::{agree, apply, op, path, worker};
use crate::index::reference::Reference;
use crate::index::{IndexConfig, Matches, PrefixIndex, SnapshotError};
use dynamo_core::protocol::Tier;

fn restore(bytes: &[u8]) -> Result<PrefixIndex, SnapshotError> {
    PrefixIndex::restore(IndexConfig::default(), bytes)
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
        let bytes = index.snapshot();
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
        index.store(worker(3), Tier::Host, None, &path(2)[..40]);
        index.store(worker(4), Tier::Disk, None, &path(2)[..7]);
        let bytes = index.snapshot();
        let mut words: Vec<_> =
            bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        words.pop();
        let at = at % words.len();
        words[at.max(2)] = word;
        words.push(crate::index::snapshot::checksum(&words));
        let bytes: Vec<_> = words.into_iter().flat_map(u64::to_le_bytes).collect();
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
    let bytes = index.snapshot();
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
