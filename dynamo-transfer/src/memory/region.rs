use std::any::Any;
use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;
use std::time::Duration;

use super::access::{Memory, copy};
use super::buffer::{HostBuffer, SharedPart};
use super::span::Span;
use super::table::{Backed, RegionTable, Rights};
use crate::descriptor::{BlockLayout, LocalDescriptor, Ranges};
use crate::error::{Error, ErrorKind, Result};

/// Memory registered with an agent.
///
/// Dropping it revokes it: peers are refused from then on, operations in flight keep the memory
/// alive until they end. [`close`](Self::close) does the same and gives the memory back.
#[must_use = "dropping the region revokes it"]
pub struct RegisteredRegion<B> {
    owned: Option<Arc<Owned<B>>>,
    handle: RegionHandle,
    table: Arc<RegionTable>,
}

/// Names a registered region, for [`Agent::metadata`](crate::Agent::metadata).
#[derive(Debug, Clone, Copy)]
pub struct RegionHandle {
    pub(crate) id: u64,
    pub(crate) len: u64,
}

/// What a peer is told of a region, and may do with it.
///
/// A handle alone grants what the region was registered for, until it is revoked.
#[derive(Debug, Clone, Copy)]
pub struct Grant {
    pub(crate) id: u64,
    pub(crate) is_writable: bool,
    pub(crate) ttl: Option<Duration>,
}

/// The segments of a region, beside where their bytes are.
struct Owned<B> {
    memory: Memory,
    /// Untouched until nobody uses `memory` any more: the addresses were taken from borrows that
    /// count as lasting so long.
    segments: Vec<B>,
}

impl<B: Send + Sync> Backed for Owned<B> {
    fn memory(&self) -> &Memory {
        &self.memory
    }
}

impl<B: Send + Sync + 'static> RegisteredRegion<B> {
    /// Registers what `segments` show now: they are not asked again.
    pub(crate) fn shared(table: &Arc<RegionTable>, segments: Vec<B>) -> Result<Self>
    where
        B: AsRef<[u8]>,
    {
        let spans = segments.iter().map(|segment| Span::of(segment.as_ref())).collect();
        let memory = Memory::new(spans, true).with_parts(parts(&segments));
        Self::new(table, Owned { memory, segments }, Rights::ReadOnly)
    }

    /// Registers what `segments` show now, to be written; they are not asked again.
    pub(crate) fn exclusive(
        table: &Arc<RegionTable>,
        mut segments: Vec<B>,
        rights: Rights,
    ) -> Result<Self>
    where
        B: AsMut<[u8]>,
    {
        let parts = parts(&segments);
        let spans = segments.iter_mut().map(|segment| Span::of_mut(segment.as_mut())).collect();
        let memory = Memory::new(spans, false).with_parts(parts);
        Self::new(table, Owned { memory, segments }, rights)
    }

    fn new(table: &Arc<RegionTable>, owned: Owned<B>, rights: Rights) -> Result<Self> {
        let (len, owned) = (owned.memory.len(), Arc::new(owned));
        let id = table.insert(Arc::<Owned<B>>::clone(&owned), rights)?;
        let handle = RegionHandle { id, len };
        Ok(Self { owned: Some(owned), handle, table: Arc::clone(table) })
    }

    /// Revokes the region, waits for operations in flight and gives the memory back.
    ///
    /// Operations are bounded by their deadlines, and so is the wait; those of peers that send what
    /// they write, by what an owner waits for that. A peer that touches memory by itself, over shared
    /// memory or CMA, cannot be kept from it: if its process is stopped in the middle of a copy, the
    /// wait lasts until it goes on or ends. Whoever cannot wait so long drops the future.
    ///
    /// # Cancel safety
    /// Dropping the future is as dropping the region: the memory is freed when it is quiet.
    #[expect(clippy::missing_panics_doc, reason = "only if an invariant of ours is broken")]
    pub async fn close(mut self) -> Vec<B> {
        if let Some(quiet) = self.table.remove(self.handle.id) {
            quiet.wait().await;
        }
        let owned = self.owned.take().and_then(Arc::into_inner);
        owned.expect("a revoked region without operations has one owner").segments
    }

    /// Copies bytes of the region from `offset` on into `bytes`, whatever transfers are in flight:
    /// those that overlap leave a mix.
    ///
    /// Fails with [`OutOfBounds`](crate::ErrorKind::OutOfBounds).
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let memory = self.checked(offset, bytes.len())?;
        let mut done = 0;
        while done < bytes.len() {
            let rest = &mut bytes[done..];
            let range = std::iter::once((offset + done as u64, rest.len() as u64));
            done += memory.gather(range, |slices| copy(slices, &mut [IoSliceMut::new(rest)]));
        }
        Ok(())
    }

    /// Copies `bytes` into the region from `offset` on, whatever transfers are in flight: those that
    /// overlap leave a mix.
    ///
    /// Fails with [`OutOfBounds`](crate::ErrorKind::OutOfBounds), and with
    /// [`PermissionDenied`](crate::ErrorKind::PermissionDenied) if the region is read-only.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let memory = self.checked(offset, bytes.len())?;
        let mut done = 0;
        while done < bytes.len() {
            let rest = &bytes[done..];
            let range = std::iter::once((offset + done as u64, rest.len() as u64));
            let copied = memory.scatter(range, |slices| copy(&[IoSlice::new(rest)], slices));
            done += copied.ok_or_else(|| {
                let message = format!("local region {} is read-only", self.handle.id);
                Error::new(ErrorKind::PermissionDenied, message)
            })?;
        }
        Ok(())
    }

    fn checked(&self, offset: u64, len: usize) -> Result<&Memory> {
        Ranges::list([(offset, len as u64)], self.handle.len)?;
        let owned = self.owned.as_ref();
        Ok(&owned.ok_or_else(|| Error::new(ErrorKind::Internal, "a region is not open"))?.memory)
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
        Ok(self.describe(Ranges::list(ranges, self.handle.len)?))
    }

    /// Describes blocks of a layout, in the order they are to be used: 4 bytes for each.
    ///
    /// Fails with [`OutOfBounds`](crate::ErrorKind::OutOfBounds) naming a block that does not lie
    /// inside.
    pub fn blocks(&self, layout: BlockLayout, indices: Vec<u32>) -> Result<LocalDescriptor> {
        Ok(self.describe(Ranges::blocks(layout, indices, self.handle.len)?))
    }

    fn describe(&self, ranges: Ranges) -> LocalDescriptor {
        LocalDescriptor { table: Arc::clone(&self.table), id: self.handle.id, ranges }
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

impl From<&RegionHandle> for Grant {
    fn from(handle: &RegionHandle) -> Self {
        Self { id: handle.id, is_writable: true, ttl: None }
    }
}

impl RegionHandle {
    /// Grants reading, also if the region was registered for more.
    pub fn read_only(&self) -> Grant {
        Grant { is_writable: false, ..Grant::from(self) }
    }

    /// Grants what the region was registered for.
    pub fn grant(&self) -> Grant {
        self.into()
    }
}

impl Grant {
    /// Ends the grant after `ttl`, by the owner's clock.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }
}

/// Returns what other processes can map of each segment; nothing if that is none.
fn parts<B: 'static>(segments: &[B]) -> Vec<Option<SharedPart>> {
    let part = |segment: &B| {
        let segment = segment as &dyn Any;
        let buffer = segment.downcast_ref::<Arc<HostBuffer>>().map(|buffer| &**buffer);
        buffer.or_else(|| segment.downcast_ref()).and_then(HostBuffer::part)
    };
    let parts: Vec<_> = segments.iter().map(part).collect();
    if parts.iter().all(Option::is_none) { Vec::new() } else { parts }
}

#[cfg(test)]
mod tests {
    use super::super::Right;
    use super::*;

    #[tokio::test]
    async fn memory_of_any_owner_can_be_lent_and_comes_back_as_it_was_left() {
        let table = Arc::new(RegionTable::new().unwrap());
        // In the box itself, behind it, and behind that.
        let inline =
            RegisteredRegion::exclusive(&table, vec![[1u8; 4], [2; 4]], Rights::PeersWrite);
        let inline = inline.unwrap();
        let boxed = vec![vec![3u8; 4].into_boxed_slice()];
        let boxed = RegisteredRegion::exclusive(&table, boxed, Rights::OwnerWrites).unwrap();
        let shared: Arc<[u8]> = vec![4u8; 4].into();
        let lent = RegisteredRegion::shared(&table, vec![Arc::clone(&shared)]).unwrap();
        let lease = table.lease_local(inline.handle().id, Right::Read).unwrap();
        inline.write_at(2, &[9; 4]).unwrap();
        let mut bytes = [0; 8];
        inline.read_at(0, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 1, 9, 9, 9, 9, 2, 2]);
        boxed.write_at(0, &[8]).unwrap();
        assert_eq!(lent.write_at(0, &[8]).unwrap_err().kind(), ErrorKind::PermissionDenied);
        assert_eq!(boxed.read_at(1, &mut bytes).unwrap_err().kind(), ErrorKind::OutOfBounds);
        drop(lease);
        assert_eq!(inline.close().await, [[1, 1, 9, 9], [9, 9, 2, 2]]);
        assert_eq!(boxed.close().await[0][..], [8, 3, 3, 3]);
        assert_eq!(lent.close().await[0], shared);
    }

    #[test]
    fn many_small_segments_are_one_region() {
        let table = Arc::new(RegionTable::new().unwrap());
        let segments = vec![[0u8; 3]; 700];
        let region = RegisteredRegion::exclusive(&table, segments, Rights::OwnerWrites).unwrap();
        let written: Vec<u8> = (0..=250).cycle().take(2100).collect();
        region.write_at(0, &written).unwrap();
        let mut read = vec![0; 2100];
        region.read_at(0, &mut read).unwrap();
        assert!(read == written);
    }
}
