use std::fmt;
use std::sync::Arc;

use dynamo_core::{Error, Result};
use dynamo_transfer::device::{BlockCopy, DeviceBuffer};

use super::{BlockRun, MutableBlock, PartialBlock, RegisteredBlock};
use crate::pool::{DeviceMemory, Home, failed};
use crate::tier::Outgoing;

/// Where a block of device memory is, for kernels of an engine: known as long as its guard is borrowed.
///
/// The guard keeps the block, not work that a device was given: whoever launches a kernel, or posts a copy
/// by itself, keeps the guard until that has ended.
#[derive(Clone, Copy)]
pub struct DeviceBlock<'a> {
    memory: &'a Arc<DeviceMemory>,
    index: usize,
}

impl<'a> DeviceBlock<'a> {
    /// Returns where a slot of a pool is; `None` if that is in host memory.
    pub(crate) fn of(home: &'a Home, index: usize) -> Option<Self> {
        home.device().map(|memory| Self { memory, index })
    }

    /// Returns which block of the pool's memory it is, as block tables count.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Returns the memory of the whole pool.
    pub fn buffer(&self) -> &'a DeviceBuffer {
        &self.memory.buffer
    }

    /// Returns where the block begins in [`buffer`](Self::buffer), in bytes.
    pub fn offset(&self) -> usize {
        self.memory.offset(self.index)
    }

    /// Returns where the device knows the block: a `CUdeviceptr`.
    pub fn address(&self) -> u64 {
        self.buffer().address() + self.offset() as u64
    }

    /// Returns its size in bytes.
    pub fn bytes(&self) -> usize {
        self.memory.block_bytes
    }

    pub(crate) fn memory(&self) -> &'a Arc<DeviceMemory> {
        self.memory
    }

    /// Fails unless host memory of so many bytes is as large.
    fn check(&self, len: usize) -> Result<()> {
        if len == self.bytes() {
            return Ok(());
        }
        Err(Error::invalid(format!("{len} bytes for a block of {}", self.bytes())))
    }
}

impl MutableBlock {
    /// Returns where the block is in device memory; `None` if it is in host memory.
    pub fn device(&self) -> Option<DeviceBlock<'_>> {
        DeviceBlock::of(self.slot().home(), self.slot().index())
    }

    /// Fills a block of device memory with `source`, which comes back with it.
    ///
    /// Fails with [`InvalidArgument`](dynamo_core::ErrorKind::InvalidArgument) if the block is in host
    /// memory or not of that size, and as its device does: then the block is free once nothing writes to
    /// it any more.
    ///
    /// # Cancel safety
    /// If it is dropped, the block is free once nothing writes to it any more.
    pub async fn upload<B>(self, source: B) -> Result<(Self, B)>
    where
        B: AsRef<[u8]> + Send + 'static,
    {
        let block = self.device().ok_or_else(in_host_memory)?;
        block.check(source.as_ref().len())?;
        let (memory, offset) = (Arc::clone(block.memory), block.offset());
        let pieces = vec![(offset, Pair { host: source, device: self })];
        let pieces = memory.copier.upload_pieces(pieces, &memory.buffer).await;
        let pieces = pieces.map_err(|error| failed("filling a block of device memory", error))?;
        let pair = pieces.into_iter().next().map(|(_, Pair { host, device })| (device, host));
        pair.ok_or_else(|| Error::internal("a piece that was copied comes back"))
    }
}

impl RegisteredBlock {
    /// Returns where the block is in device memory; `None` if it is in host memory.
    pub fn device(&self) -> Option<DeviceBlock<'_>> {
        DeviceBlock::of(self.held().home(), self.held().index())
    }

    /// Copies a block of device memory to `target`, which comes back.
    ///
    /// Fails with [`InvalidArgument`](dynamo_core::ErrorKind::InvalidArgument) if the block is in host
    /// memory or not of that size, and as its device does.
    ///
    /// # Cancel safety
    /// If it is dropped, block and target are kept until nothing touches them any more.
    pub async fn download<B>(&self, mut target: B) -> Result<B>
    where
        B: AsMut<[u8]> + Send + 'static,
    {
        let block = self.device().ok_or_else(in_host_memory)?;
        block.check(target.as_mut().len())?;
        let pieces = vec![(block.offset(), Pair { host: target, device: self.clone() })];
        let pieces = block.memory.copier.download_pieces(block.buffer(), pieces).await;
        let pieces = pieces.map_err(|error| failed("reading a block of device memory", error))?;
        let target = pieces.into_iter().next().map(|(_, pair)| pair.host);
        target.ok_or_else(|| Error::internal("a piece that was copied comes back"))
    }
}

impl PartialBlock {
    /// Returns where the block is in device memory; `None` if it is in host memory.
    pub fn device(&self) -> Option<DeviceBlock<'_>> {
        self.block.device()
    }
}

impl BlockRun {
    /// Returns where a block is in device memory; `None` if there is none, or it is in host memory.
    pub fn device(&self, index: usize) -> Option<DeviceBlock<'_>> {
        let (slots, at) = self.slot(index)?;
        DeviceBlock::of(slots.last().home(), slots.index(at)?)
    }
}

impl fmt::Debug for DeviceBlock<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceBlock({} of {:?})", self.index, self.buffer())
    }
}

/// Host memory and the guard of the device memory that a copy connects it with.
struct Pair<B, G> {
    host: B,
    device: G,
}

impl<B: AsRef<[u8]>, G> AsRef<[u8]> for Pair<B, G> {
    fn as_ref(&self) -> &[u8] {
        self.host.as_ref()
    }
}

impl<B: AsMut<[u8]>, G> AsMut<[u8]> for Pair<B, G> {
    fn as_mut(&mut self) -> &mut [u8] {
        self.host.as_mut()
    }
}

/// Copies blocks of a device's memory into others there, in one submission; returns those that are
/// filled: all, or none if the device fails.
pub(crate) async fn copy_across(
    sources: Vec<Outgoing>,
    targets: Vec<MutableBlock>,
) -> Vec<MutableBlock> {
    let Some(memory) = targets.first().and_then(MutableBlock::device) else { return targets };
    let memory = Arc::clone(memory.memory);
    let pairs = sources.iter().zip(&targets).filter_map(|(source, target)| {
        let (source, target) = (source.device()?.offset(), target.device()?.offset());
        Some(BlockCopy { source, target, len: memory.block_bytes })
    });
    let pairs: Vec<_> = pairs.collect();
    let (buffer, kept) = (&memory.buffer, (sources, targets));
    match memory.copier.copy_keeping(buffer, buffer, &pairs, kept).await {
        Ok((_, targets)) => targets,
        Err(error) => {
            tracing::debug!(%error, "blocks on their way down cannot be copied");
            Vec::new()
        }
    }
}

fn in_host_memory() -> Error {
    Error::invalid("a block that is in host memory")
}
