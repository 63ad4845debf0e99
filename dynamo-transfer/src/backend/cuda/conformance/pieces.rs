//! Pieces of host memory that many own, and places in device memory.

use super::Random;
use crate::backend::cuda::{BlockCopy, DeviceCopier};
use crate::error::ErrorKind;
use crate::memory::{HostBuffer, Slot};

/// Pinned slots, pageable memory, and both in one submission.
pub(super) async fn pieces_that_many_own_are_exact(copier: &DeviceCopier, seed: u64) {
    const SLOT: usize = 20_000;
    const COUNT: usize = 24;
    let mut random = Random(seed);
    let slots = || -> Vec<Slot> {
        let buffer = copier.allocate_pinned(COUNT * SLOT).expect("allocates");
        HostBuffer::from(buffer).into_slots(SLOT).collect()
    };
    let there = copier.allocate(COUNT * SLOT).expect("allocates");
    let second = copier.allocate(COUNT * SLOT).expect("allocates");
    let truth = random.bytes(COUNT * SLOT);
    // Last slot first, some of it pageable in every second round.
    for is_mixed in [false, true] {
        let source = |(at, mut slot): (usize, Slot)| -> (usize, Piece) {
            let bytes = &truth[at * SLOT..][..SLOT];
            slot.copy_from_slice(bytes);
            let piece: Piece = if is_mixed && at % 3 == 0 {
                Piece::Pageable(bytes.to_vec())
            } else {
                Piece::Slot(slot)
            };
            ((COUNT - 1 - at) * SLOT, piece)
        };
        let sources: Vec<_> = slots().into_iter().enumerate().map(source).collect();
        let sources = copier.upload_pieces(sources, &there).await.expect("uploads");
        assert_eq!(sources.len(), COUNT);
        let across: Vec<_> = (0..COUNT)
            .map(|at| BlockCopy { source: (COUNT - 1 - at) * SLOT, target: at * SLOT, len: SLOT })
            .collect();
        let kept = copier.copy_keeping(&there, &second, &across, sources).await.expect("copies");
        assert_eq!(kept.len(), COUNT);
        let target = |(at, slot): (usize, Slot)| -> (usize, Piece) {
            let piece: Piece = if is_mixed && at % 5 == 0 {
                Piece::Pageable(vec![0; SLOT])
            } else {
                Piece::Slot(slot)
            };
            (at * SLOT, piece)
        };
        let targets = slots().into_iter().enumerate().map(target).collect();
        let targets = copier.download_pieces(&second, targets).await.expect("downloads");
        for (at, piece) in targets {
            assert!(*piece.as_ref() == truth[at..at + SLOT], "at {at}, seed {seed}");
        }
    }
}

pub(super) async fn a_piece_outside_its_buffer_is_refused_and_given_up(copier: &DeviceCopier) {
    let buffer = copier.allocate(4096).expect("allocates");
    let piece = HostBuffer::new(4096).into_slots(4096).next().expect("one slot").share();
    let refused = copier.upload_pieces(vec![(1, piece.clone())], &buffer).await;
    let refused = refused.expect_err("it does not fit");
    assert_eq!((refused.kind(), piece.holders_count()), (ErrorKind::OutOfBounds, 1));
    let targets = vec![(usize::MAX, vec![0; 16])];
    let refused = copier.download_pieces(&buffer, targets).await.expect_err("it does not fit");
    assert_eq!(refused.kind(), ErrorKind::OutOfBounds);
}

/// Memory of either kind.
enum Piece {
    Slot(Slot),
    Pageable(Vec<u8>),
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Slot(slot) => slot,
            Self::Pageable(bytes) => bytes,
        }
    }
}

impl AsMut<[u8]> for Piece {
    fn as_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Slot(slot) => slot,
            Self::Pageable(bytes) => bytes,
        }
    }
}
