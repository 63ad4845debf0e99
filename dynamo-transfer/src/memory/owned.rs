use std::any::Any;
use std::sync::Arc;

use super::access::Memory;
use super::buffer::{HostBuffer, SharedPart};
use super::lease::Backed;
use super::span::Span;
use crate::backend::cuda::{DeviceId, PinnedBuffer};

/// The segments of a region, beside where their bytes are.
pub(crate) struct Owned<M, B> {
    pub(super) memory: M,
    /// Untouched until nobody uses `memory` any more: the addresses were taken from borrows that
    /// count as lasting so long.
    pub(super) segments: Vec<B>,
}

impl<M: Send + Sync, B: Send + Sync> Backed<M> for Owned<M, B> {
    fn memory(&self) -> &M {
        &self.memory
    }
}

impl<B: Send + Sync + 'static> Owned<Memory, B> {
    pub(super) fn read_only(segments: Vec<B>) -> Self
    where
        B: AsRef<[u8]>,
    {
        let spans = segments.iter().map(|segment| Span::of(segment.as_ref())).collect();
        let memory = Memory::new(spans, true);
        Self {
            memory: memory.with_parts(parts(&segments)).with_pinned(pinned(&segments)),
            segments,
        }
    }

    pub(crate) fn writable(mut segments: Vec<B>) -> Self
    where
        B: AsMut<[u8]>,
    {
        let (parts, pinned) = (parts(&segments), pinned(&segments));
        let spans = segments.iter_mut().map(|segment| Span::of_mut(segment.as_mut())).collect();
        Self { memory: Memory::new(spans, false).with_parts(parts).with_pinned(pinned), segments }
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

/// Returns the device that reaches all segments by itself, as far as their type tells.
fn pinned<B: 'static>(segments: &[B]) -> Option<DeviceId> {
    let pinned = |segment: &B| {
        let segment = segment as &dyn Any;
        let buffer = segment.downcast_ref::<PinnedBuffer>();
        let pinned = buffer.map(|buffer| buffer.memory().device_id());
        pinned.or_else(|| segment.downcast_ref::<HostBuffer>()?.pinned())
    };
    let first = segments.first().and_then(pinned)?;
    segments.iter().all(|segment| pinned(segment) == Some(first)).then_some(first)
}
