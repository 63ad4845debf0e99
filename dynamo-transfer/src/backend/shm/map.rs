//! Copies between memory of this agent and memory of a peer that is mapped here.
#![expect(unsafe_code, reason = "copying from and to mapped memory of a peer")]

use std::io::{IoSlice, IoSliceMut};
use std::ptr;

use crate::memory::Span;

/// Copies from the peer until one side ends; returns how many bytes.
///
/// The spans are of mappings that live: whoever calls holds them, and the peer's lease on its region.
pub(super) fn read(from: &[Span], to: &mut [IoSliceMut<'_>]) -> usize {
    let to = to.iter_mut().map(|slice| Span::of_mut(slice));
    copy(from.iter().copied(), to)
}

/// Copies to the peer until one side ends; returns how many bytes.
///
/// The spans are of mappings that live and may be written.
pub(super) fn write(from: &[IoSlice<'_>], to: &[Span]) -> usize {
    copy(from.iter().map(|slice| Span::of(slice)), to.iter().copied())
}

fn copy(mut from: impl Iterator<Item = Span>, mut to: impl Iterator<Item = Span>) -> usize {
    let (mut source, mut target): (Option<Span>, Option<Span>) = (None, None);
    let mut copied = 0;
    loop {
        let Some(this) = source.filter(|span| span.len() > 0).or_else(|| from.next()) else {
            return copied;
        };
        let Some(that) = target.filter(|span| span.len() > 0).or_else(|| to.next()) else {
            return copied;
        };
        let len = this.len().min(that.len());
        // SAFETY: both are valid for their lengths: one is a slice that the caller borrows, the other
        // lies in a mapping of a file that keeps its size. They do not overlap: what a mapping shows
        // is never also registered here at that address. The other process is no thread of this one:
        // bytes that it changes meanwhile arrive as a mix.
        unsafe { ptr::copy_nonoverlapping(this.as_ptr(), that.as_ptr(), len) };
        copied += len;
        source = Some(this.slice(len, this.len() - len));
        target = Some(that.slice(len, that.len() - len));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_sizes_are_copied_until_one_side_ends() {
        let mut peer = [[1u8, 2, 3], [4, 5, 6]];
        let spans: Vec<_> = peer.iter_mut().map(|bytes| Span::of_mut(bytes)).collect();
        let (mut a, mut b) = ([0; 2], [0; 3]);
        let mut slices =
            [IoSliceMut::new(&mut a), IoSliceMut::new(&mut []), IoSliceMut::new(&mut b)];
        assert_eq!(read(&spans, &mut slices), 5);
        assert_eq!((a, b), ([1, 2], [3, 4, 5]));
        assert_eq!(write(&[IoSlice::new(&[9; 4]), IoSlice::new(&[8; 4])], &spans), 6);
        assert_eq!(peer, [[9, 9, 9], [9, 8, 8]]);
    }
}
