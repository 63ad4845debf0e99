//! The bytes of an operation on one side, in the order they travel.

use std::io::IoSlice;
use std::sync::Arc;

use super::protocol::{Header, protocol};
use crate::backend::Operation;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Concat, Lease, Memory, SLICES_MAX, Span, copy};

/// Ranges of a leased region, one after the other; keeps the memory alive.
pub(super) struct Stream {
    holder: Holder,
    ranges: Vec<(u64, u64)>,
    whole: Concat,
    /// Whether fragments have a checksum.
    is_checked: bool,
}

/// What keeps the memory of a stream alive.
pub(super) enum Holder {
    /// A transfer of this agent, for its local memory.
    Operation(Arc<Operation>),
    /// What was leased to a peer.
    Lease(Lease),
}

impl Stream {
    /// Lines ranges up that lie inside the region and are fewer bytes than 2^64.
    pub(super) fn new(holder: Holder, ranges: impl Iterator<Item = (u64, u64)>) -> Self {
        let ranges: Vec<_> = ranges.filter(|range| range.1 > 0).collect();
        let whole = Concat::new(ranges.iter().map(|range| range.1));
        Self { holder, ranges, whole, is_checked: false }
    }

    /// Has each fragment compared with the checksum that it comes with.
    pub(super) fn checked(self, is_checked: bool) -> Self {
        Self { is_checked, ..self }
    }

    /// Returns the checksum that a fragment goes with (CRC-32C; RFC 3720, appendix B.4); 0 if none is
    /// looked at.
    pub(super) fn checksum(&self, fragment: &[u8]) -> u32 {
        if self.is_checked { crc32c::crc32c(fragment) } else { 0 }
    }

    /// Copies a fragment into place, unless it is not what was sent or does not fit.
    pub(super) fn take(&self, header: &Header, fragment: &[u8]) -> Result<()> {
        if self.checksum(fragment) != header.checksum {
            let message =
                format!("{} bytes have another checksum than where they came from", fragment.len());
            return Err(Error::new(ErrorKind::Corrupted, message));
        }
        if self.fill(header.position, fragment) {
            return Ok(());
        }
        Err(protocol("data outside of the operation"))
    }

    /// Returns the number of bytes.
    pub(super) fn total(&self) -> u64 {
        self.whole.len()
    }

    /// Returns where `len` bytes from `position` on are, or those of them that there are; whoever
    /// uses the spans keeps the stream.
    pub(super) fn spans(&self, position: u64, len: u64) -> impl Iterator<Item = Span> {
        self.part(position, len).flat_map(|(offset, len)| self.memory().spans(offset, len))
    }

    /// Returns the pieces of the region between the first and the last of its bytes.
    pub(super) fn segments(&self) -> Vec<Span> {
        let first = self.ranges.iter().map(|range| range.0).min().unwrap_or(0);
        let end = self.ranges.iter().map(|range| range.0 + range.1).max().unwrap_or(0);
        self.memory().spans(first, end - first).collect()
    }

    /// Copies `len` bytes from `position` on, or those of them that there are.
    pub(super) fn gather(&self, position: u64, len: u64) -> Vec<u8> {
        let end = position.saturating_add(len).min(self.total());
        let mut bytes =
            Vec::with_capacity(usize::try_from(end.saturating_sub(position)).unwrap_or(0));
        loop {
            let at = position + bytes.len() as u64;
            if at >= end {
                return bytes;
            }
            self.memory().gather(self.part(at, end - at).take(SLICES_MAX), |slices| {
                slices.iter().for_each(|slice| bytes.extend_from_slice(slice));
            });
        }
    }

    /// Copies bytes to `position` on; does nothing and says so if they do not fit.
    fn fill(&self, position: u64, bytes: &[u8]) -> bool {
        let len = bytes.len() as u64;
        if position.checked_add(len).is_none_or(|end| end > self.total()) {
            return false;
        }
        let mut done = 0;
        while done < bytes.len() {
            let rest = &bytes[done..];
            let part = self.part(position + done as u64, rest.len() as u64).take(SLICES_MAX);
            let copied = self.memory().scatter(part, |slices| copy(&[IoSlice::new(rest)], slices));
            match copied {
                Some(copied) if copied > 0 => done += copied,
                // A region that is read-only, which no lease to write is of.
                _ => return false,
            }
        }
        true
    }

    fn memory(&self) -> &Memory {
        match &self.holder {
            Holder::Operation(operation) => operation.local.memory(),
            Holder::Lease(lease) => lease.memory(),
        }
    }

    /// Returns the ranges of `len` bytes from `position` on, or of those that there are.
    fn part(&self, position: u64, len: u64) -> impl Iterator<Item = (u64, u64)> + Clone {
        let pieces = self.whole.pieces(position, len);
        pieces.map(|(index, at, len)| (self.ranges[index].0 + at, len))
    }
}
