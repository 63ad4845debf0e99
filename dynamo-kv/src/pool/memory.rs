//! What the slots of a pool are made of.

use std::sync::Arc;

use dynamo_core::{Error, ErrorKind, Result};
use dynamo_transfer::HostBuffer;
use dynamo_transfer::device::{DeviceBuffer, DeviceCopier};

/// Where the blocks of a pool lie.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum BlockMemory {
    /// In memory of the process.
    #[default]
    Host,
    /// In memory of the process that a device reaches by itself: copies between it and the device's own
    /// need neither processor nor thread. It is as [`Host`](Self::Host) in all else.
    Pinned(DeviceCopier),
    /// In memory of a device. The processor does not reach it: the bytes of such a block are none here,
    /// and [`DeviceBlock`](crate::block::DeviceBlock) says where they are.
    Device(DeviceCopier),
}

/// The memory of a pool.
pub(crate) enum Memory {
    Host(HostBuffer),
    Device(Arc<DeviceMemory>),
}

/// Device memory, cut into slots.
pub(crate) struct DeviceMemory {
    pub(crate) buffer: DeviceBuffer,
    pub(crate) copier: DeviceCopier,
    pub(crate) block_bytes: usize,
}

impl Memory {
    /// Allocates memory for so many blocks, whose bytes can be counted.
    pub(crate) fn allocate(kind: BlockMemory, block_bytes: usize, slots: usize) -> Result<Self> {
        let bytes = block_bytes * slots;
        match kind {
            BlockMemory::Host => Ok(Self::Host(HostBuffer::new(bytes))),
            BlockMemory::Pinned(copier) => {
                let buffer = copier.allocate_pinned(bytes);
                let buffer = buffer.map_err(|error| failed("pinned memory for blocks", error))?;
                Ok(Self::Host(buffer.into()))
            }
            BlockMemory::Device(copier) => {
                let buffer = copier.allocate(bytes);
                let buffer = buffer.map_err(|error| failed("device memory for blocks", error))?;
                Ok(Self::Device(Arc::new(DeviceMemory { buffer, copier, block_bytes })))
            }
        }
    }
}

impl DeviceMemory {
    /// Returns where a slot begins, in bytes.
    pub(crate) fn offset(&self, index: usize) -> usize {
        index * self.block_bytes
    }
}

/// Says that a device failed at what was wanted of it.
pub(crate) fn failed(what: &str, error: dynamo_transfer::Error) -> Error {
    use dynamo_transfer::ErrorKind as Kind;
    let kind = match error.kind() {
        Kind::Overloaded => ErrorKind::Overloaded,
        Kind::DeadlineExceeded => ErrorKind::DeadlineExceeded,
        Kind::Closed => ErrorKind::Closed,
        Kind::InvalidArgument | Kind::OutOfBounds => ErrorKind::InvalidArgument,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, what).with_source(error)
}
