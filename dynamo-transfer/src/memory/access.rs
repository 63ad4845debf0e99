//! The one place where registered memory becomes slices.
#![expect(
    unsafe_code,
    reason = "registered memory is addresses; slices are made of them here alone"
)]

use std::io::{IoSlice, IoSliceMut};
use std::slice;

use smallvec::SmallVec;

use super::buffer::SharedPart;
use super::hold::Holds;
use super::span::Span;
use super::spans::{SpanList, Spans};
use crate::backend::cuda::DeviceId;

/// Where the bytes of a region are: the concatenation of its segments.
pub(crate) struct Memory {
    spans: SpanList,
    /// What other processes can map of each span.
    parts: Vec<Option<SharedPart>>,
    /// The device that reaches all of it by itself.
    pinned: Option<DeviceId>,
    /// Who touches it; no thread of this process writes a region without.
    holds: Option<Holds>,
}

impl Memory {
    /// Takes over `spans`, which stay valid for reads, and unless `is_read_only` for writes by
    /// nobody else, as long as this lives: whoever makes one keeps their owners beside it.
    pub(super) fn new(spans: Vec<Span>, is_read_only: bool) -> Self {
        let holds = (!is_read_only).then(Holds::default);
        Self { spans: SpanList::new(spans), parts: Vec::new(), pinned: None, holds }
    }

    /// Notes which spans other processes can map.
    pub(super) fn with_parts(mut self, parts: Vec<Option<SharedPart>>) -> Self {
        self.parts = parts;
        self
    }

    /// Notes the device that reaches all of it by itself.
    pub(super) fn with_pinned(mut self, pinned: Option<DeviceId>) -> Self {
        self.pinned = pinned;
        self
    }

    pub(crate) fn pinned(&self) -> Option<DeviceId> {
        self.pinned
    }

    /// Returns all spans, each with what other processes can map of it.
    #[cfg(target_os = "linux")]
    pub(crate) fn parts(&self) -> impl Iterator<Item = (Span, Option<&SharedPart>)> {
        let part = |index| self.parts.get(index).and_then(Option::as_ref);
        self.spans.iter().enumerate().map(move |(index, span)| (span, part(index)))
    }

    pub(crate) fn len(&self) -> u64 {
        self.spans.len()
    }

    /// Returns where `len` bytes from `offset` on are; less if the region ends before.
    pub(crate) fn spans(&self, offset: u64, len: u64) -> Spans<'_> {
        self.spans.spans(offset, len)
    }

    /// Passes ranges of (offset, length) bytes to be read, `SLICES_MAX` pieces at most; returns
    /// what `read` returns.
    pub(crate) fn gather<T>(
        &self,
        ranges: impl Iterator<Item = (u64, u64)> + Clone,
        read: impl FnOnce(&[IoSlice<'_>]) -> T,
    ) -> T {
        let spans = ranges.clone().flat_map(|(offset, len)| self.spans(offset, len));
        let _hold = self.holds.as_ref().map(|holds| holds.hold(hull(ranges), false));
        let slices = spans.take(SLICES_MAX).map(|span| {
            // SAFETY: the span is valid while self is, and the hold keeps this process's writers away
            // from it. Peers that map the memory or come by the kernel, the kernel and devices write
            // it from outside the program and without a hold: then its bytes are some mix, none of
            // which is invalid, and what the slice is passed to relies on no byte staying as it is.
            IoSlice::new(unsafe { slice::from_raw_parts(span.as_ptr(), span.len()) })
        });
        read(&slices.collect::<Few<_>>())
    }

    /// Passes ranges of (offset, length) bytes to be written, `SLICES_MAX` pieces at most, which
    /// must not overlap; `None` if the region is read-only.
    pub(crate) fn scatter<T>(
        &self,
        ranges: impl Iterator<Item = (u64, u64)> + Clone,
        write: impl FnOnce(&mut [IoSliceMut<'_>]) -> T,
    ) -> Option<T> {
        let spans = disjoint(ranges.clone()).flat_map(|(offset, len)| self.spans(offset, len));
        let _hold = self.holds.as_ref()?.hold(hull(ranges), true);
        let slices = spans.take(SLICES_MAX).map(|span| {
            // SAFETY: the span is valid while self is, the hold keeps the rest of this process away
            // from it, and it overlaps no other one of them. Who reads and writes it from outside the
            // program is as above: what is left is some mix, and nobody relies on what he wrote.
            IoSliceMut::new(unsafe { slice::from_raw_parts_mut(span.as_ptr(), span.len()) })
        });
        Some(write(&mut slices.collect::<Few<_>>()))
    }
}

/// Returns the ranges up to the first that overlaps one before it.
fn disjoint(ranges: impl Iterator<Item = (u64, u64)>) -> impl Iterator<Item = (u64, u64)> {
    // In their order, without overlaps.
    let mut seen = Few::<(u64, u64)>::new();
    ranges.take_while(move |&(offset, len)| {
        if seen.last().is_none_or(|last| last.0 + last.1 <= offset) {
            seen.push((offset, len));
            return true;
        }
        let at = seen.partition_point(|range| range.0 < offset);
        let before = at.checked_sub(1).map_or(0, |before| seen[before].0 + seen[before].1);
        let is_apart = before <= offset && offset + len <= seen[at].0;
        if is_apart {
            seen.insert(at, (offset, len));
        }
        is_apart
    })
}

fn hull(ranges: impl Iterator<Item = (u64, u64)>) -> std::ops::Range<u64> {
    let (start, end) = ranges.fold((u64::MAX, 0), |(start, end), (offset, len)| {
        (offset.min(start), offset.saturating_add(len).max(end))
    });
    start..end
}

/// Copies from one list of pieces to another until one of them ends; returns how many bytes.
pub(crate) fn copy(from: &[IoSlice<'_>], to: &mut [IoSliceMut<'_>]) -> usize {
    let (mut from, mut to) = (from.iter(), to.iter_mut());
    let (mut source, mut target): (&[u8], &mut [u8]) = (&[], &mut []);
    let mut copied = 0;
    loop {
        if source.is_empty() {
            let Some(next) = from.next() else { return copied };
            source = next;
        }
        if target.is_empty() {
            let Some(next) = to.next() else { return copied };
            target = next;
        }
        let len = source.len().min(target.len());
        let (head, behind) = std::mem::take(&mut target).split_at_mut(len);
        head.copy_from_slice(&source[..len]);
        (source, target) = (&source[len..], behind);
        copied += len;
    }
}

/// A list that is allocated if it is long.
type Few<T> = SmallVec<[T; 2]>;

/// What one call of the kernel takes (`UIO_MAXIOV` of Linux is 1024).
pub(crate) const SLICES_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    fn once(offset: u64, len: u64) -> impl Iterator<Item = (u64, u64)> + Clone {
        std::iter::once((offset, len))
    }

    #[test]
    fn ranges_cross_segments_and_end_with_the_region() {
        let mut segments = vec![vec![0u8; 3], Vec::new(), vec![0u8; 5]];
        let spans = segments.iter_mut().map(|segment| Span::of_mut(segment)).collect();
        let memory = Memory::new(spans, false);
        assert_eq!(memory.len(), 8);
        let written = memory.scatter(once(1, 6), |slices| {
            let from: Vec<u8> = (1..=6).collect();
            (slices.len(), copy(&[IoSlice::new(&from)], slices))
        });
        assert_eq!(written, Some((2, 6)));
        let mut all = [9; 10];
        let read =
            memory.gather(once(0, 10), |slices| copy(slices, &mut [IoSliceMut::new(&mut all)]));
        assert_eq!((read, all), (8, [0, 1, 2, 3, 4, 5, 6, 0, 9, 9]));
        assert_eq!(segments, [vec![0, 1, 2], vec![], vec![3, 4, 5, 6, 0]]);
    }

    #[test]
    fn what_overlaps_is_not_written_at_once_and_what_is_read_only_never() {
        let mut bytes = vec![0u8; 16];
        let memory = Memory::new(vec![Span::of_mut(&mut bytes)], false);
        let pieces = |ranges: &'static [(u64, u64)]| {
            memory.scatter(ranges.iter().copied(), |slices| slices.len()).unwrap()
        };
        assert_eq!(pieces(&[(0, 4), (8, 4), (4, 4)]), 3);
        assert_eq!(pieces(&[(0, 4), (8, 4), (11, 2)]), 2);
        assert_eq!(pieces(&[(8, 4), (0, 4), (3, 2)]), 2);
        let shared = Memory::new(vec![Span::of(&bytes)], true);
        assert_eq!(shared.scatter(once(0, 4), |slices| slices.len()), None);
        assert_eq!(shared.gather(once(0, 4), |slices| slices.len()), 1);
    }
}
