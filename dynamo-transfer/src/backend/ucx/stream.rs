//! The bytes of an operation on one side, in the order they travel.

#![expect(unsafe_code, reason = "copying into registered memory")]

use crate::memory::{Lease, Span};

/// Ranges of a leased region, one after the other; keeps the memory alive.
pub(super) struct Stream {
    lease: Lease,
    ranges: Vec<(u64, u64)>,
    /// Where each range ends within the stream.
    ends: Vec<u64>,
}

impl Stream {
    /// Lines ranges up that lie inside the region; `None` if they are more than 2^64 bytes.
    pub(super) fn new(lease: Lease, mut ranges: Vec<(u64, u64)>) -> Option<Self> {
        ranges.retain(|range| range.1 > 0);
        let mut end = 0u64;
        let mut ends = Vec::with_capacity(ranges.len());
        for range in &ranges {
            end = end.checked_add(range.1)?;
            ends.push(end);
        }
        Some(Self { lease, ranges, ends })
    }

    /// Returns the number of bytes.
    pub(super) fn total(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Calls `each` with the memory of `len` bytes from `position` on, or of those there are.
    pub(super) fn spans(&self, position: u64, len: u64, mut each: impl FnMut(Span)) {
        let (mut at, end) = (position, position.saturating_add(len).min(self.total()));
        let first = self.ends.partition_point(|&end| end <= at);
        for (&(offset, range_len), &range_end) in self.ranges.iter().zip(&self.ends).skip(first) {
            if at >= end {
                return;
            }
            let skipped = at - (range_end - range_len);
            let taken = (range_end - at).min(end - at);
            self.lease.spans(offset + skipped, taken).into_iter().for_each(&mut each);
            at += taken;
        }
    }

    /// Returns the pieces of the region between the first and the last of its bytes.
    pub(super) fn segments(&self) -> Vec<Span> {
        let first = self.ranges.iter().map(|range| range.0).min().unwrap_or(0);
        let end = self.ranges.iter().map(|range| range.0 + range.1).max().unwrap_or(0);
        self.lease.spans(first, end - first).into_iter().collect()
    }

    /// Copies bytes to `position` on; does nothing and says so if they do not fit.
    pub(super) fn fill(&self, position: u64, bytes: &[u8]) -> bool {
        let len = bytes.len() as u64;
        if position.checked_add(len).is_none_or(|end| end > self.total()) {
            return false;
        }
        let mut left = bytes;
        self.spans(position, len, |span| {
            let (head, tail) = left.split_at(span.len().min(left.len()));
            // SAFETY: the span lies in a region that the lease keeps alive and that may be written,
            // as was checked when it was leased; `head` is at most as long, and is a buffer of UCX.
            unsafe { std::ptr::copy_nonoverlapping(head.as_ptr(), span.as_ptr(), head.len()) };
            left = tail;
        });
        left.is_empty()
    }
}
