//! What an owner grants: memory mapped for the time of one operation.

use std::rc::Rc;

use super::memory::Mapped;
use super::port::Port;
use super::protocol::{GRANTS_MAX, RailKind, RemotePiece, SEGMENTS_MAX, encode_grants};
use super::stream::Stream;
use crate::error::Result;

/// Memory that an initiator accesses by itself: unmapped first, then let go.
pub(super) struct Granted {
    mapped: Vec<Mapped>,
    stream: Rc<Stream>,
    rail: RailKind,
}

impl Granted {
    /// Tells whether unmapping keeps the peer out: network cards check keys. The kernel copies for
    /// whoever knows the address, also for a process that was stopped for an hour.
    pub(super) fn is_revocable(&self) -> bool {
        self.rail == RailKind::Rdma
    }

    /// Keeps the memory from everybody: a peer that was not heard of may still be at it.
    pub(super) fn abandon(self) {
        drop(self.mapped);
        tracing::warn!("memory stays in quarantine: a peer is still accessing it");
        #[expect(clippy::mem_forget, reason = "what a peer may touch is never freed")]
        std::mem::forget(self.stream);
    }
}

/// Maps what an operation asks for; returns it and what the initiator needs, or nothing if it is
/// in too many pieces: messages do better then.
pub(super) fn grant(
    (rail, port): (RailKind, &Port),
    stream: &Rc<Stream>,
) -> Result<Option<(Granted, Vec<u8>)>> {
    let segments = stream.segments();
    if segments.len() > SEGMENTS_MAX {
        return Ok(None);
    }
    let mapped: Result<Vec<_>> = segments.into_iter().map(|s| Mapped::new(port, s)).collect();
    let mapped = mapped?;
    let keys: Result<Vec<_>> = mapped.iter().map(Mapped::key).collect();
    let mut grants = Vec::new();
    let (mut position, mut is_covered) = (0, true);
    for span in stream.spans(0, stream.total()) {
        let start = span.as_ptr().addr();
        let within = |mapped: &Mapped| {
            let of = mapped.span.as_ptr().addr();
            of <= start && start + span.len() <= of + mapped.span.len()
        };
        let key = mapped.iter().position(within).and_then(|key| u32::try_from(key).ok());
        is_covered &= key.is_some();
        let (address, len, key) = (start as u64, span.len() as u64, key.unwrap_or(0));
        grants.push(RemotePiece { position, address, len, key });
        position += len;
    }
    if !is_covered || grants.len() > GRANTS_MAX {
        return Ok(None);
    }
    let body = encode_grants(&keys?, &grants);
    Ok(Some((Granted { mapped, stream: Rc::clone(stream), rail }, body)))
}
