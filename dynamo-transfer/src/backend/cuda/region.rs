#![expect(unsafe_code, reason = "a device is handed memory by its address")]

use std::fmt;
use std::sync::Arc;

use super::buffer::DeviceBuffer;
use super::copier::DeviceCopier;
use super::device::{Copies, Device, Direction, SpanCopy};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Keep, Piece, Right, Span, SpanList};

/// Tells devices of this process apart while they live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeviceId(usize);

impl DeviceId {
    pub(super) fn of(device: &Arc<dyn Device>) -> Self {
        Self(Arc::as_ptr(device).cast::<()>().addr())
    }
}

/// Where the bytes of device memory are that an agent has registered, and who reaches them.
pub(crate) struct DeviceMemory {
    spans: SpanList,
    copier: DeviceCopier,
    ordinal: u32,
}

impl DeviceMemory {
    /// Takes the concatenation of buffers; whoever makes one keeps them beside it.
    ///
    /// Fails if one is of another device.
    pub(crate) fn new<'a>(
        copier: &DeviceCopier,
        buffers: impl Iterator<Item = &'a DeviceBuffer>,
    ) -> Result<Self> {
        let span = |buffer: &DeviceBuffer| {
            let memory = buffer.memory();
            if memory.device_id() != copier.device_id() {
                let message = "a buffer is of another device than the copier";
                return Err(Error::new(ErrorKind::InvalidArgument, message));
            }
            Ok(memory.span())
        };
        let spans = buffers.map(span).collect::<Result<_>>()?;
        let (copier, ordinal) = (copier.clone(), copier.ordinal());
        Ok(Self { spans: SpanList::new(spans), copier, ordinal })
    }

    pub(crate) fn len(&self) -> u64 {
        self.spans.len()
    }

    pub(crate) fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// Tells of which device it is.
    pub(crate) fn id(&self) -> DeviceId {
        self.copier.device_id()
    }

    pub(crate) fn copier(&self) -> &DeviceCopier {
        &self.copier
    }

    /// Fills pieces of host memory from here, or writes them here, in one submission.
    ///
    /// `pinned` is the device that reaches the pieces by itself, `keep` keeps this and them alive; see
    /// [`Far::pass`](crate::memory::Far::pass).
    pub(crate) async fn pass(
        &self,
        right: Right,
        pieces: &[Piece],
        pinned: Option<DeviceId>,
        keep: Keep,
    ) -> Result<()> {
        let pairs = pieces.iter().flat_map(|piece| {
            let mut at = 0;
            self.spans.spans(piece.offset, piece.span.len() as u64).map(move |device| {
                let host = piece.span.slice(at, device.len());
                at += device.len();
                (host, device)
            })
        });
        let (direction, list) = match right {
            Right::Read => (Direction::DeviceToHost, list(pairs.map(|(host, far)| (far, host)))),
            Right::Write => (Direction::HostToDevice, list(pairs)),
        };
        let is_pinned = pinned == Some(self.id());
        let copies = Copies { direction, method: None, is_pinned, list };
        self.start(copies, keep).await
    }

    /// Copies ranges of `source`, another region of this copier, here; each is (offset there, offset
    /// here, length).
    pub(crate) async fn copy_from(
        &self,
        source: &Self,
        ranges: impl Iterator<Item = (u64, u64, u64)>,
        keep: Keep,
    ) -> Result<()> {
        let pairs = ranges.flat_map(|(from, to, len)| {
            let mut done = 0;
            let targets = move |from: Span| {
                let part = from.len() as u64;
                let mut at = 0;
                let to = self.spans.spans(to + done, part).map(move |target| {
                    let source = from.slice(at, target.len());
                    at += target.len();
                    (source, target)
                });
                done += part;
                to
            };
            source.spans.spans(from, len).flat_map(targets)
        });
        let (direction, list) = (Direction::DeviceToDevice, list(pairs));
        self.start(Copies { direction, method: None, is_pinned: true, list }, keep).await
    }

    async fn start(&self, copies: Copies, keep: Keep) -> Result<()> {
        self.copier.status()?;
        // SAFETY: the spans are of regions and host memory that `keep` keeps, and nobody refers to
        // device memory. Host bytes that another transfer copies at the same moment are as bytes that
        // a peer writes by itself: what it gets is a mix, and nobody else has references to a region.
        unsafe { self.copier.start(copies, keep) }.await.map(drop)
    }
}

impl fmt::Debug for DeviceMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceMemory({} bytes of device {})", self.len(), self.ordinal)
    }
}

fn list(pairs: impl Iterator<Item = (Span, Span)>) -> Vec<SpanCopy> {
    pairs.map(|(source, target)| SpanCopy { source, target }).collect()
}
