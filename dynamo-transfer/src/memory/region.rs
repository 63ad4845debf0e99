use std::borrow::Borrow;
use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;
use std::time::Duration;

use super::MemoryKind;
use super::access::{Memory, copy};
use super::far::Far;
use super::lease::Backing;
use super::owned::Owned;
use super::table::{RegionTable, Rights};
use crate::backend::cuda::{DeviceBuffer, DeviceCopier, DeviceMemory};
#[cfg(unix)]
use crate::backend::file::{FileMemory, FileRegion, FileStore};
use crate::descriptor::{BlockIndices, BlockLayout, LocalDescriptor, Ranges};
use crate::error::{Error, ErrorKind, Result};

/// Memory registered with an agent.
///
/// Dropping it revokes it: peers are refused from then on, operations in flight keep the memory
/// alive until they end. [`close`](Self::close) does the same and gives the memory back.
#[must_use = "dropping the region revokes it"]
pub struct RegisteredRegion<B> {
    owner: Option<Owner<B>>,
    id: u64,
    generation: u64,
    len: u64,
    kind: MemoryKind,
    table: Arc<RegionTable>,
}

/// What peers are told of a region, and may do with it; [`Agent::metadata`](crate::Agent::metadata)
/// takes it.
#[derive(Debug, Clone, Copy)]
#[must_use = "peers learn of it by an agent's metadata"]
pub struct Grant {
    pub(crate) id: u64,
    pub(crate) generation: u64,
    pub(crate) is_writable: bool,
    pub(crate) ttl: Option<Duration>,
}

enum Owner<B> {
    Host(Arc<Owned<Memory, B>>),
    Far(Arc<Owned<Far, B>>),
}

impl<B: Send + Sync + 'static> RegisteredRegion<B> {
    /// Registers what `segments` show now: they are not asked again.
    pub(crate) fn read_only(table: &Arc<RegionTable>, segments: Vec<B>) -> Result<Self>
    where
        B: AsRef<[u8]>,
    {
        Self::new(table, Owner::Host(Arc::new(Owned::read_only(segments))), Rights::ReadOnly)
    }

    /// Registers what `segments` show now, to be written; they are not asked again.
    pub(crate) fn writable(
        table: &Arc<RegionTable>,
        segments: Vec<B>,
        rights: Rights,
    ) -> Result<Self>
    where
        B: AsMut<[u8]>,
    {
        Self::new(table, Owner::Host(Arc::new(Owned::writable(segments))), rights)
    }

    /// Registers the memory of buffers that `copier` reaches.
    pub(crate) fn device(
        table: &Arc<RegionTable>,
        copier: &DeviceCopier,
        segments: Vec<B>,
        rights: Rights,
    ) -> Result<Self>
    where
        B: Borrow<DeviceBuffer>,
    {
        let memory = DeviceMemory::new(copier, segments.iter().map(Borrow::borrow))?;
        let owned = Owned { memory: Far::Device(memory), segments };
        Self::new(table, Owner::Far(Arc::new(owned)), rights)
    }

    fn new(table: &Arc<RegionTable>, owner: Owner<B>, rights: Rights) -> Result<Self> {
        let backing = match &owner {
            Owner::Host(owned) => Backing::Host(Arc::<Owned<Memory, B>>::clone(owned)),
            Owner::Far(owned) => Backing::Far(Arc::<Owned<Far, B>>::clone(owned)),
        };
        let (len, kind) = (backing.len(), backing.kind());
        let (id, generation) = table.insert(backing, rights)?;
        Ok(Self { owner: Some(owner), id, generation, len, kind, table: Arc::clone(table) })
    }

    /// Revokes the region, waits for operations in flight and gives the memory back.
    ///
    /// Operations are bounded by their deadlines, and so is the wait; those of peers that send what
    /// they write, by what an owner waits for that. A peer that touches memory by itself, over shared
    /// memory or CMA, cannot be kept from it: if its process is stopped in the middle of a copy, the
    /// wait lasts until it goes on or ends; over shared memory, a hostile one that only says that it is
    /// copying makes it last as long as it keeps its connection. Whoever cannot wait so long drops the
    /// future. What such a peer has when this agent shuts down, and a device when it is lost, never
    /// ends: drop the region then.
    ///
    /// # Cancel safety
    /// Dropping the future is as dropping the region: the memory is freed when it is quiet.
    #[expect(clippy::missing_panics_doc, reason = "only if an invariant of ours is broken")]
    pub async fn close(mut self) -> Vec<B> {
        if let Some(uses) = self.table.remove(self.id) {
            uses.quiet().await;
        }
        let segments = self.owner.take().and_then(|owner| match owner {
            Owner::Host(owned) => Arc::into_inner(owned).map(|owned| owned.segments),
            Owner::Far(owned) => Arc::into_inner(owned).map(|owned| owned.segments),
        });
        segments.expect("a revoked region without operations has one owner")
    }

    /// Copies bytes of the region from `offset` on into `bytes`, whatever transfers are in flight:
    /// those that overlap leave a mix.
    ///
    /// Fails with [`OutOfBounds`](crate::ErrorKind::OutOfBounds), and with
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) if it is not host memory.
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
    /// Fails like [`read_at`](Self::read_at), and with
    /// [`PermissionDenied`](crate::ErrorKind::PermissionDenied) if the region is read-only.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let memory = self.checked(offset, bytes.len())?;
        let mut done = 0;
        while done < bytes.len() {
            let rest = &bytes[done..];
            let range = std::iter::once((offset + done as u64, rest.len() as u64));
            let copied = memory.scatter(range, |slices| copy(&[IoSlice::new(rest)], slices));
            done += copied.ok_or_else(|| {
                let message = format!("local region {} is read-only", self.id);
                Error::new(ErrorKind::PermissionDenied, message)
            })?;
        }
        Ok(())
    }

    fn checked(&self, offset: u64, len: usize) -> Result<&Memory> {
        Ranges::list([(offset, len as u64)], self.len)?;
        match &self.owner {
            Some(Owner::Host(owned)) => Ok(&owned.memory),
            _ => {
                let message = format!("region {} is {:?} memory", self.id, self.kind());
                Err(Error::new(ErrorKind::InvalidArgument, message))
            }
        }
    }
}

#[cfg(unix)]
impl RegisteredRegion<FileRegion> {
    /// Registers a file that `store` reaches.
    pub(crate) fn file(
        table: &Arc<RegionTable>,
        store: &FileStore,
        file: FileRegion,
        rights: Rights,
    ) -> Result<Self> {
        if rights != Rights::ReadOnly {
            file.check_writable()?;
        }
        let memory = Far::File(FileMemory::new(store, &file));
        Self::new(table, Owner::Far(Arc::new(Owned { memory, segments: vec![file] })), rights)
    }
}

impl<B> RegisteredRegion<B> {
    /// Grants peers what the region was registered for, until it is revoked.
    pub fn grant(&self) -> Grant {
        let Self { id, generation, .. } = *self;
        Grant { id, generation, is_writable: true, ttl: None }
    }

    /// Returns the number of the region: no other region of its agent has it, and peers see the same.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Returns the size of the region in bytes: the sum of its segments.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns what the region is made of.
    pub fn kind(&self) -> MemoryKind {
        self.kind
    }

    /// Tells whether the region has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Describes ranges of (offset, length) bytes, in the order they are to be used.
    ///
    /// Fails with [`OutOfBounds`](crate::ErrorKind::OutOfBounds) naming the first range that does
    /// not lie inside.
    pub fn descriptor(
        &self,
        ranges: impl IntoIterator<Item = (u64, u64)>,
    ) -> Result<LocalDescriptor> {
        Ok(self.describe(Ranges::list(ranges, self.len)?))
    }

    /// Describes blocks of a layout: a run of them, as `0..1000`, or a `Vec` of indices in the order
    /// they are to be used, which takes 4 bytes for each.
    ///
    /// Fails with [`OutOfBounds`](crate::ErrorKind::OutOfBounds) naming a block that does not lie
    /// inside.
    pub fn blocks(
        &self,
        layout: BlockLayout,
        indices: impl Into<BlockIndices>,
    ) -> Result<LocalDescriptor> {
        Ok(self.describe(Ranges::blocks(layout, indices.into(), self.len)?))
    }

    fn describe(&self, ranges: Ranges) -> LocalDescriptor {
        LocalDescriptor { table: Arc::clone(&self.table), id: self.id, ranges }
    }
}

impl<B> Drop for RegisteredRegion<B> {
    fn drop(&mut self) {
        self.table.remove(self.id);
    }
}

impl<B> fmt::Debug for RegisteredRegion<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegisteredRegion")
            .field("id", &self.id)
            .field("len", &self.len)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl Grant {
    /// Grants reading alone, also if the region was registered for more.
    pub fn read_only(mut self) -> Self {
        self.is_writable = false;
        self
    }

    /// Ends the grant after `ttl`, by the owner's clock.
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::super::Right;
    use super::*;

    #[tokio::test]
    async fn memory_of_any_owner_can_be_lent_and_comes_back_as_it_was_left() {
        let table = Arc::new(RegionTable::new().unwrap());
        // In the box itself, behind it, and behind that.
        let inline = RegisteredRegion::writable(&table, vec![[1u8; 4], [2; 4]], Rights::PeersWrite);
        let inline = inline.unwrap();
        let boxed = vec![vec![3u8; 4].into_boxed_slice()];
        let boxed = RegisteredRegion::writable(&table, boxed, Rights::OwnerWrites).unwrap();
        let shared: Arc<[u8]> = vec![4u8; 4].into();
        let lent = RegisteredRegion::read_only(&table, vec![Arc::clone(&shared)]).unwrap();
        let lease = table.lease_local(inline.grant().id, Right::Read, &Arc::default()).unwrap();
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
        let region = RegisteredRegion::writable(&table, segments, Rights::OwnerWrites).unwrap();
        let written: Vec<u8> = (0..=250).cycle().take(2100).collect();
        region.write_at(0, &written).unwrap();
        let mut read = vec![0; 2100];
        region.read_at(0, &mut read).unwrap();
        assert!(read == written);
    }
}
