#![expect(unsafe_code, reason = "a device is handed memory by its address")]
//! Copies between device memory and pieces of host memory that many own.

use std::sync::Arc;

use super::buffer::DeviceBuffer;
use super::copier::{DeviceCopier, piece};
use super::copy::{BlockCopy, DeviceCopy};
use super::device::{Copies, Direction, SpanCopy};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Span;

impl DeviceCopier {
    /// Posts one submission that copies whole pieces of host memory to device memory, each to the offset
    /// in `target` that stands before it; they come back with the future.
    ///
    /// What is pinned by this copier is copied by the device alone; if some of it is not, all passes
    /// through the driver's hands, on a thread of the runtime. Fails like [`upload`](Self::upload); the
    /// pieces are then dropped once nothing touches them, also those of a future that is dropped. So
    /// whatever has to stay as it is until then, the owner of a place in `target` too, may be part of a
    /// piece.
    ///
    /// # Panics
    /// If called outside a tokio runtime with memory that is not pinned.
    pub fn upload_pieces<B: AsRef<[u8]> + Send + 'static>(
        &self,
        sources: Vec<(usize, B)>,
        target: &DeviceBuffer,
    ) -> DeviceCopy<Vec<(usize, B)>> {
        let spans = sources.iter().map(|(offset, source)| (*offset, Span::of(source.as_ref())));
        let copies = match self.pieces(Direction::HostToDevice, target, spans) {
            Ok(copies) => copies,
            Err(error) => return DeviceCopy::failed(error),
        };
        let leases = (sources, Arc::clone(target.memory()));
        // SAFETY: the spans of device memory lie inside the buffer, which the leases keep, and nobody
        // refers to those; the others were taken from shared borrows of what the leases own and leave
        // where it is, which count as lasting until they end.
        unsafe { self.start(copies, leases) }.map(|(sources, _)| sources)
    }

    /// Posts one submission that fills whole pieces of host memory, each from the offset in `source` that
    /// stands before it; they come back with the future.
    ///
    /// As [`upload_pieces`](Self::upload_pieces) in all else.
    ///
    /// # Panics
    /// As there.
    pub fn download_pieces<B: AsMut<[u8]> + Send + 'static>(
        &self,
        source: &DeviceBuffer,
        mut targets: Vec<(usize, B)>,
    ) -> DeviceCopy<Vec<(usize, B)>> {
        let spans = targets.iter_mut().map(|(offset, to)| (*offset, Span::of_mut(to.as_mut())));
        let copies = match self.pieces(Direction::DeviceToHost, source, spans) {
            Ok(copies) => copies,
            Err(error) => return DeviceCopy::failed(error),
        };
        let leases = (targets, Arc::clone(source.memory()));
        // SAFETY: as above, with exclusive borrows of the pieces.
        unsafe { self.start(copies, leases) }.map(|(targets, _)| targets)
    }

    /// Posts copies of blocks from device to device memory, as [`copy`](Self::copy) does, and keeps
    /// `kept` until they have passed, whether anyone waits or not; it comes back with the future.
    ///
    /// Fails like [`upload`](Self::upload); `kept` is then dropped once nothing touches the blocks.
    pub fn copy_keeping<K: Send + 'static>(
        &self,
        source: &DeviceBuffer,
        target: &DeviceBuffer,
        blocks: &[BlockCopy],
        kept: K,
    ) -> DeviceCopy<K> {
        let sides = (&**source.memory(), &**target.memory());
        let copies = match self.copies(Direction::DeviceToDevice, sides, blocks) {
            Ok(copies) => copies,
            Err(error) => return DeviceCopy::failed(error),
        };
        let leases = (Arc::clone(source.memory()), Arc::clone(target.memory()), kept);
        // SAFETY: the spans lie inside both buffers, which the leases keep; device memory is never
        // referred to.
        unsafe { self.start(copies, leases) }.map(|(_, _, kept)| kept)
    }

    /// Pairs pieces of host memory with places in device memory.
    fn pieces(
        &self,
        direction: Direction,
        buffer: &DeviceBuffer,
        pieces: impl Iterator<Item = (usize, Span)>,
    ) -> Result<Copies> {
        if buffer.memory().device_id() != self.device_id() {
            let message = "a buffer is of another device than the copier";
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        let mut is_pinned = true;
        let list = pieces.map(|(offset, host)| {
            is_pinned &= self.has_pinned(host);
            let device = piece(buffer.memory().span(), offset, host.len())?;
            Ok(match direction {
                Direction::HostToDevice => SpanCopy { source: host, target: device },
                _ => SpanCopy { source: device, target: host },
            })
        });
        let list = list.collect::<Result<_>>()?;
        Ok(Copies { direction, method: None, is_pinned, list })
    }
}
