//! What goes before a body.
//!
//! A header is kind u32, checksum u32, link u64, operation u64, position u64, little-endian. The
//! initiator draws the link's number at random and counts its operations; data is a stream of
//! the ranges' bytes one after the other, so a fragment needs only its position in it.

use bytes::BufMut;

use crate::wire::Reader;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// The CRC-32C of a fragment, where that was asked for.
    pub(super) checksum: u32,
    pub(super) link: u64,
    pub(super) op: u64,
    /// Where a fragment begins in the stream of an operation.
    pub(super) position: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Hello,
    Welcome,
    Request,
    Accept,
    Grant,
    Release,
    ReadData,
    WriteData,
    Done,
    Cancel,
    Notify,
}

pub(super) const KINDS: [Kind; 11] = [
    Kind::Hello,
    Kind::Welcome,
    Kind::Request,
    Kind::Accept,
    Kind::Grant,
    Kind::Release,
    Kind::ReadData,
    Kind::WriteData,
    Kind::Done,
    Kind::Cancel,
    Kind::Notify,
];

pub(super) const HEADER_BYTES: usize = 32;

impl Header {
    pub(super) fn new(kind: Kind, link: u64, op: u64) -> Self {
        Self { kind, checksum: 0, link, op, position: 0 }
    }

    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut out = &mut bytes[..];
        out.put_u32_le(self.kind as u32);
        out.put_u32_le(self.checksum);
        out.put_u64_le(self.link);
        out.put_u64_le(self.op);
        out.put_u64_le(self.position);
        bytes
    }

    /// Returns nothing if the bytes are no header.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut body = Reader::new(bytes);
        let kind = *KINDS.get(body.u32().ok()? as usize)?;
        let checksum = body.u32().ok()?;
        let (link, op, position) = (body.u64().ok()?, body.u64().ok()?, body.u64().ok()?);
        body.end().ok().map(|()| Self { kind, checksum, link, op, position })
    }
}
