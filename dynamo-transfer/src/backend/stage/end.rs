use std::sync::Arc;

use async_trait::async_trait;

use super::bounce::Bounce;
use crate::backend::copies::BRIEF_BYTES_MAX;
use crate::backend::cuda::{DeviceCopier, DeviceMemory};
use crate::backend::memcpy::copy_ranges;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Backed, Lease, Leased, Piece, Right, Span};

/// Ranges of an end, as offsets and lengths.
pub(crate) type Places = Vec<(u64, u64)>;

/// One end of a staged transfer.
#[async_trait]
pub(crate) trait End: Sync {
    /// Fills the beginning of a bounce buffer with the bytes of these places, one behind the other, or
    /// the places with them.
    ///
    /// Whatever touches the buffer keeps it, also when the future is dropped.
    async fn pass(&self, right: Right, bounce: &Arc<Bounce>, ranges: Vec<(u64, u64)>)
    -> Result<()>;

    /// Returns who has to reach the bounce buffers by itself.
    fn copier(&self) -> Option<&DeviceCopier> {
        None
    }
}

#[async_trait]
impl End for Leased {
    async fn pass(&self, right: Right, bounce: &Arc<Bounce>, places: Places) -> Result<()> {
        match self {
            Self::Host(lease) => copy(right, lease, bounce, places).await,
            Self::Far(lease) => {
                let mut at = 0;
                let pieces = places.into_iter().flat_map(|(offset, len)| {
                    let span = bounce.memory().spans(at, len);
                    at += len;
                    pieces(offset, span)
                });
                let (pieces, pinned) = (pieces.collect(), bounce.memory().pinned());
                let keep = Box::new((lease.clone(), Arc::clone(bounce)));
                lease.memory().pass(right, pieces, pinned, keep).await
            }
        }
    }

    fn copier(&self) -> Option<&DeviceCopier> {
        match self {
            Self::Host(_) => None,
            Self::Far(lease) => lease.memory().device().map(DeviceMemory::copier),
        }
    }
}

/// Lines spans up with far memory from `offset` on.
pub(super) fn pieces(
    mut offset: u64,
    spans: impl Iterator<Item = Span>,
) -> impl Iterator<Item = Piece> {
    spans.map(move |span| {
        let piece = Piece { offset, span };
        offset += span.len() as u64;
        piece
    })
}

async fn copy(right: Right, lease: &Lease, bounce: &Arc<Bounce>, places: Places) -> Result<()> {
    let (lease, bounce_lease) = (lease.clone(), bounce.lease());
    let bytes = places.iter().map(|place| place.1).sum();
    let copy = move || {
        let (places, whole) = (places.iter().copied(), std::iter::once((0, bytes)));
        match right {
            Right::Read => copy_ranges((&lease, places), (&bounce_lease, whole), bytes),
            Right::Write => copy_ranges((&bounce_lease, whole), (&lease, places), bytes),
        }
    };
    if bytes <= BRIEF_BYTES_MAX {
        return copy();
    }
    let copied = bounce.tasks().spawn_blocking(copy).await;
    copied.map_err(|e| Error::new(ErrorKind::Internal, "copying").with_source(e))?
}
