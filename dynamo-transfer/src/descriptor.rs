//! Byte ranges of a region, checked once.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::memory::{MemoryKind, RegionTable, Token};

/// Ranges of a region of this agent; cheap to clone.
#[derive(Clone)]
pub struct LocalDescriptor {
    pub(crate) table: Arc<RegionTable>,
    pub(crate) id: u64,
    pub(crate) ranges: Ranges,
}

/// Ranges of a region of a peer; cheap to clone.
#[derive(Clone)]
pub struct RemoteDescriptor {
    pub(crate) peer: Arc<crate::peer::PeerAddress>,
    pub(crate) id: u64,
    pub(crate) token: Token,
    pub(crate) kind: MemoryKind,
    pub(crate) ranges: Ranges,
}

impl LocalDescriptor {
    /// Returns how many bytes its ranges have together.
    pub fn len(&self) -> u64 {
        self.ranges.total()
    }

    /// Tells whether that is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl RemoteDescriptor {
    /// Returns how many bytes its ranges have together.
    pub fn len(&self) -> u64 {
        self.ranges.total()
    }

    /// Tells whether that is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Blocks of one size at one distance: block `i` is `block_bytes` bytes from
/// `offset + i * stride` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockLayout {
    /// Where block 0 begins, in bytes from the beginning of the region.
    pub offset: u64,
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Bytes from the beginning of one block to that of the next.
    pub stride: u64,
}

/// Which blocks of a layout, in the order they are to be used: a run of them, or a list of 4 bytes
/// each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockIndices(Indices);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Indices {
    Run(Range<u32>),
    List(Arc<Vec<u32>>),
}

/// Ranges that lie inside their region; cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ranges {
    /// One that is not empty.
    One { offset: u64, len: u64 },
    /// Any: their offsets and lengths, the sum of these, and where the one that reaches farthest ends.
    List { offsets: Arc<Vec<u64>>, lens: Lens, total: u64, end: u64 },
    /// Blocks of a layout.
    Blocks { layout: BlockLayout, indices: BlockIndices },
}

/// The lengths of a list: of blocks they are mostly one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lens {
    Same(u64),
    Each(Arc<Vec<u64>>),
}

/// A transfer as far as its cost goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) bytes: u64,
    /// Contiguous pieces.
    pub(crate) ranges: u64,
}

impl BlockLayout {
    /// Lays blocks of `block_bytes` bytes out one behind the other, from the region's beginning on.
    pub const fn contiguous(block_bytes: u64) -> Self {
        Self { offset: 0, block_bytes, stride: block_bytes }
    }

    /// Begins block 0 at `offset` of the region.
    #[must_use]
    pub const fn with_offset(self, offset: u64) -> Self {
        Self { offset, ..self }
    }

    /// Begins a block every `stride` bytes.
    #[must_use]
    pub const fn with_stride(self, stride: u64) -> Self {
        Self { stride, ..self }
    }

    /// Returns where block `index` is, unless that is beyond 2^64.
    fn range(&self, index: u32) -> Option<(u64, u64)> {
        let offset = self.stride.checked_mul(u64::from(index))?.checked_add(self.offset)?;
        Some((offset, self.block_bytes))
    }
}

impl Ranges {
    /// Takes (offset, length) pairs that lie inside a region; empty ones are left out.
    pub(crate) fn list(
        ranges: impl IntoIterator<Item = (u64, u64)>,
        region_len: u64,
    ) -> Result<Self> {
        let ranges = Self::unchecked(ranges);
        ranges.check(region_len)?;
        Ok(ranges)
    }

    /// Takes pairs that somebody else is to check.
    pub(crate) fn unchecked(ranges: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let ranges = ranges.into_iter();
        let count = ranges.size_hint().0.min(RANGES_MAX);
        let mut ranges = ranges.filter(|range| range.1 > 0);
        let (first, second) = (ranges.next(), ranges.next());
        if let (Some((offset, len)), None) = (first, second) {
            return Self::One { offset, len };
        }
        // Thousands of them: what grows by doubling is copied, and its pages found, twice.
        let mut offsets = Vec::with_capacity(count);
        let mut each: Option<Vec<u64>> = None;
        let (same, mut total, mut end) = (first.map_or(0, |first| first.1), 0u64, 0);
        for (offset, len) in first.into_iter().chain(second).chain(ranges) {
            if let Some(each) = &mut each {
                each.push(len);
            } else if len != same {
                let lens = each.insert(Vec::with_capacity(count));
                lens.resize(offsets.len(), same);
                lens.push(len);
            }
            offsets.push(offset);
            total = total.saturating_add(len);
            end = offset.saturating_add(len).max(end);
        }
        let lens = each.map_or(Lens::Same(same), |each| Lens::Each(Arc::new(each)));
        Self::List { offsets: Arc::new(offsets), lens, total, end }
    }

    /// Takes blocks of a layout that lie inside a region.
    pub(crate) fn blocks(
        layout: BlockLayout,
        indices: BlockIndices,
        region_len: u64,
    ) -> Result<Self> {
        let indices = if layout.block_bytes == 0 { (0..0).into() } else { indices };
        let ranges = Self::Blocks { layout, indices };
        ranges.check(region_len)?;
        Ok(ranges)
    }

    /// Fails with the first range that does not lie inside a region.
    pub(crate) fn check(&self, region_len: u64) -> Result<()> {
        let is_outside = |&(offset, len): &(u64, u64)| {
            offset.checked_add(len).is_none_or(|end| end > region_len)
        };
        let outside = match self {
            Self::List { end, .. } if *end <= region_len && *end < u64::MAX => None,
            Self::One { .. } | Self::List { .. } => {
                self.iter().find(is_outside).map(|(offset, len)| format!("range {offset}+{len}"))
            }
            Self::Blocks { layout, indices } => {
                let is_outside = |index| layout.range(index).is_none_or(|range| is_outside(&range));
                indices.last().filter(|last| is_outside(*last)).map(|last| format!("block {last}"))
            }
        };
        if let Some(range) = outside {
            let message = format!("{range} lies outside a region of {region_len} bytes");
            return Err(Error::new(ErrorKind::OutOfBounds, message));
        }
        if self.count() > RANGES_MAX {
            let message = format!("{} ranges, at most {RANGES_MAX}", self.count());
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        if self.total() == u64::MAX {
            return Err(Error::new(ErrorKind::InvalidArgument, "ranges of more than 2^64 bytes"));
        }
        Ok(())
    }

    /// Returns what moving them costs by.
    pub(crate) fn load(&self) -> Load {
        Load { bytes: self.total(), ranges: self.count() as u64 }
    }

    /// Returns range `index`, as offset and length; none behind the last.
    pub(crate) fn get(&self, index: usize) -> Option<(u64, u64)> {
        match self {
            Self::One { offset, len } => (index == 0).then_some((*offset, *len)),
            Self::List { offsets, lens, .. } => Some((*offsets.get(index)?, lens.get(index)?)),
            Self::Blocks { layout, indices } => layout.range(indices.get(index)?),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64)> + Clone {
        (0..self.count()).map_while(|index| self.get(index))
    }

    pub(crate) fn count(&self) -> usize {
        match self {
            Self::One { .. } => 1,
            Self::List { offsets, .. } => offsets.len(),
            Self::Blocks { indices, .. } => indices.count(),
        }
    }

    /// Returns the sum of all lengths; 2^64 - 1 if it is more.
    pub(crate) fn total(&self) -> u64 {
        match self {
            Self::One { len, .. } => *len,
            Self::List { total, .. } => *total,
            Self::Blocks { layout, indices } => {
                layout.block_bytes.saturating_mul(indices.count() as u64)
            }
        }
    }
}

impl From<Range<u32>> for BlockIndices {
    fn from(run: Range<u32>) -> Self {
        Self(Indices::Run(run))
    }
}

impl From<Vec<u32>> for BlockIndices {
    fn from(list: Vec<u32>) -> Self {
        Self(Indices::List(Arc::new(list)))
    }
}

impl BlockIndices {
    fn count(&self) -> usize {
        match &self.0 {
            Indices::Run(run) => run.len(),
            Indices::List(list) => list.len(),
        }
    }

    fn get(&self, index: usize) -> Option<u32> {
        match &self.0 {
            Indices::Run(run) => run.clone().nth(index),
            Indices::List(list) => list.get(index).copied(),
        }
    }

    /// Returns the largest.
    fn last(&self) -> Option<u32> {
        match &self.0 {
            Indices::Run(run) => run.clone().last(),
            Indices::List(list) => list.iter().copied().max(),
        }
    }
}

impl Lens {
    fn get(&self, index: usize) -> Option<u64> {
        match self {
            Self::Same(len) => Some(*len),
            Self::Each(lens) => lens.get(index).copied(),
        }
    }
}

impl RemoteDescriptor {
    pub(crate) fn load(&self) -> Load {
        self.ranges.load()
    }
}

impl fmt::Debug for LocalDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalDescriptor")
            .field("region", &self.id)
            .field("ranges", &self.ranges)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for RemoteDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The token grants access: it stays out of logs.
        f.debug_struct("RemoteDescriptor")
            .field("peer", &self.peer.name)
            .field("region", &self.id)
            .field("ranges", &self.ranges)
            .finish_non_exhaustive()
    }
}

/// Ranges of one descriptor: far above the blocks of one hand-over, few enough to be held.
const RANGES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_a_layout_are_where_it_says_and_outside_is_refused() {
        let layout = BlockLayout::contiguous(10).with_offset(5).with_stride(16);
        let ranges = Ranges::blocks(layout, vec![3, 0, 1].into(), 5 + 3 * 16 + 10).unwrap();
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [(53, 10), (5, 10), (21, 10)]);
        assert_eq!((ranges.count(), ranges.total()), (3, 30));
        let run = Ranges::blocks(layout, (1..4).into(), 5 + 3 * 16 + 10).unwrap();
        assert_eq!(run.iter().collect::<Vec<_>>(), [(21, 10), (37, 10), (53, 10)]);
        assert_eq!((run.count(), run.total()), (3, 30));
        for indices in [BlockIndices::from(vec![3, 0]), (1..4).into()] {
            let outside = Ranges::blocks(layout, indices, 5 + 3 * 16 + 9).unwrap_err();
            assert_eq!(outside.kind(), ErrorKind::OutOfBounds);
            assert!(outside.message().contains("block 3"), "{outside}");
        }
        let far = BlockLayout::contiguous(u64::MAX);
        assert_eq!(
            Ranges::blocks(far, vec![1].into(), u64::MAX).unwrap_err().kind(),
            ErrorKind::OutOfBounds
        );
        #[expect(clippy::reversed_empty_ranges, reason = "a run may be empty")]
        let none = Ranges::blocks(layout, (9..2).into(), 0).unwrap();
        assert_eq!((none.count(), none.total()), (0, 0));
    }

    #[test]
    fn a_list_keeps_each_length_and_names_the_first_range_outside() {
        for lens in [[7, 7, 7], [7, 7, 3], [7, 3, 7], [3, 7, 7]] {
            let list = [(90, lens[0]), (0, 0), (20, lens[1]), (93, lens[2])];
            let ranges = Ranges::list(list, 100).unwrap();
            assert_eq!(ranges.iter().collect::<Vec<_>>(), [list[0], list[2], list[3]]);
            assert_eq!(ranges.total(), lens.iter().sum::<u64>());
            let outside = Ranges::list(list, 22).unwrap_err();
            assert_eq!(outside.kind(), ErrorKind::OutOfBounds);
            assert!(outside.message().contains(&format!("range 90+{}", lens[0])), "{outside}");
        }
        let beyond = Ranges::list([(0, 1), (u64::MAX, 2)], u64::MAX).unwrap_err();
        assert!(beyond.message().contains("+2"), "{beyond}");
        Ranges::list([(0, 1), (u64::MAX - 2, 2)], u64::MAX).unwrap();
    }

    #[test]
    fn more_bytes_than_can_be_counted_are_refused() {
        let error = Ranges::list([(0, u64::MAX - 1), (0, 2)], u64::MAX).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
}
