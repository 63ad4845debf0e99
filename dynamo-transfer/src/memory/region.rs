use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use super::table::{RegionTable, Rights};
use crate::descriptor::{LocalDescriptor, Ranges};
use crate::error::Result;

/// Memory registered with an agent.
///
/// Dropping it revokes it: peers are refused from then on, operations in flight keep the memory
/// alive until they end. [`close`](Self::close) does the same and gives the memory back.
#[must_use = "dropping the region revokes it"]
pub struct RegisteredRegion<B> {
    memory: Option<Arc<Segments<B>>>,
    handle: RegionHandle,
    table: Arc<RegionTable>,
}

/// Names a registered region, for [`Agent::metadata`](crate::Agent::metadata).
#[derive(Debug, Clone)]
pub struct RegionHandle {
    pub(crate) id: u64,
    pub(crate) len: u64,
}

/// The bytes of a region, whatever owns them.
///
/// A region is the concatenation of its segments. Each call passes the bytes of one segment, from
/// `offset` on and `len` at most; the caller goes on behind what it was passed.
pub(crate) trait RegionMemory: Send + Sync {
    /// Passes bytes to read.
    fn with_bytes(&self, offset: u64, len: usize, read: &mut dyn FnMut(&[u8]));

    /// Passes bytes to write; does nothing if the region is read-only.
    fn with_bytes_mut(&self, offset: u64, len: usize, write: &mut dyn FnMut(&mut [u8]));
}

/// One piece of a region.
pub(crate) enum Segment<B> {
    /// Read by anyone at any time.
    Shared(B),
    /// Locked for one copy or one socket call at a time, never across a wait.
    Exclusive(RwLock<B>, fn(&mut B) -> &mut [u8]),
}

pub(super) struct Segments<B> {
    segments: Vec<Segment<B>>,
    /// Where each segment ends within the region.
    ends: Vec<u64>,
}

impl<B: AsRef<[u8]>> Segment<B> {
    fn len(&self) -> usize {
        match self {
            Self::Shared(bytes) => bytes.as_ref().len(),
            Self::Exclusive(bytes, _) => {
                bytes.read().unwrap_or_else(PoisonError::into_inner).as_ref().len()
            }
        }
    }

    fn into_inner(self) -> B {
        match self {
            Self::Shared(bytes) => bytes,
            Self::Exclusive(bytes, _) => bytes.into_inner().unwrap_or_else(PoisonError::into_inner),
        }
    }
}

impl<B: AsRef<[u8]>> Segments<B> {
    /// Returns the segment at `offset` and the range of it that `len` bytes from there cover.
    fn at(&self, offset: u64, len: usize) -> Option<(&Segment<B>, std::ops::Range<usize>)> {
        let index = self.ends.partition_point(|&end| end <= offset);
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        let from = usize::try_from(offset - start).ok()?;
        let left = usize::try_from(end - offset).ok()?;
        Some((&self.segments[index], from..from + left.min(len)))
    }
}

impl<B: AsRef<[u8]> + Send + Sync> RegionMemory for Segments<B> {
    fn with_bytes(&self, offset: u64, len: usize, read: &mut dyn FnMut(&[u8])) {
        let Some((segment, range)) = self.at(offset, len) else { return };
        match segment {
            Segment::Shared(bytes) => read(&bytes.as_ref()[range]),
            Segment::Exclusive(bytes, _) => {
                read(&bytes.read().unwrap_or_else(PoisonError::into_inner).as_ref()[range]);
            }
        }
    }

    fn with_bytes_mut(&self, offset: u64, len: usize, write: &mut dyn FnMut(&mut [u8])) {
        let Some((segment, range)) = self.at(offset, len) else { return };
        if let Segment::Exclusive(bytes, as_mut) = segment {
            let mut bytes = bytes.write().unwrap_or_else(PoisonError::into_inner);
            write(&mut as_mut(&mut bytes)[range]);
        }
    }
}

impl<B: AsRef<[u8]> + Send + Sync + 'static> RegisteredRegion<B> {
    pub(crate) fn new(
        table: &Arc<RegionTable>,
        segments: Vec<Segment<B>>,
        rights: Rights,
    ) -> Result<Self> {
        let mut len = 0u64;
        let ends = segments
            .iter()
            .map(|segment| {
                len += segment.len() as u64;
                len
            })
            .collect();
        let memory = Arc::new(Segments { segments, ends });
        let id = table.insert(Arc::<Segments<B>>::clone(&memory), len, rights)?;
        let handle = RegionHandle { id, len };
        Ok(Self { memory: Some(memory), handle, table: Arc::clone(table) })
    }

    /// Revokes the region, waits for operations in flight and gives the memory back.
    ///
    /// Operations are bounded by their deadlines, and so is the wait.
    ///
    /// # Cancel safety
    /// Dropping the future is as dropping the region: the memory is freed when it is quiet.
    #[expect(clippy::missing_panics_doc, reason = "only if an invariant of ours is broken")]
    pub async fn close(mut self) -> Vec<B> {
        if let Some(quiet) = self.table.remove(self.handle.id) {
            quiet.wait().await;
        }
        let memory = self.memory.take().and_then(Arc::into_inner);
        let memory = memory.expect("a revoked region without operations has one owner");
        memory.segments.into_iter().map(Segment::into_inner).collect()
    }
}

impl<B> RegisteredRegion<B> {
    /// Returns the name of the region, for metadata.
    pub fn handle(&self) -> &RegionHandle {
        &self.handle
    }

    /// Returns the size of the region in bytes: the sum of its segments.
    pub fn len(&self) -> u64 {
        self.handle.len
    }

    /// Tells whether the region has no bytes.
    pub fn is_empty(&self) -> bool {
        self.handle.len == 0
    }

    /// Describes ranges of (offset, length) bytes, in the order they are to be used.
    ///
    /// Fails with [`OutOfBounds`](crate::ErrorKind::OutOfBounds) naming the first range that does
    /// not lie inside.
    pub fn descriptor(
        &self,
        ranges: impl IntoIterator<Item = (u64, u64)>,
    ) -> Result<LocalDescriptor> {
        let ranges = Ranges::new(ranges, self.handle.len)?;
        Ok(LocalDescriptor { table: Arc::clone(&self.table), id: self.handle.id, ranges })
    }
}

impl<B> Drop for RegisteredRegion<B> {
    fn drop(&mut self) {
        self.table.remove(self.handle.id);
    }
}

impl<B> fmt::Debug for RegisteredRegion<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegisteredRegion").field("handle", &self.handle).finish_non_exhaustive()
    }
}
