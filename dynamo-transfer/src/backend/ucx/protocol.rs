//! What travels in active messages: fixed headers and small bodies, decoded without trust.
//!
//! ```text
//! initiator                         owner
//!   Hello ───────────────────────▶   makes an endpoint to the address in it
//!         ◀─────────────── Welcome   a status: is the owner the one that is meant?
//!   Request (read) ──────────────▶   leases the region: token, rights, generation, bounds
//!         ◀────────────── ReadData   in fragments; or Done with a refusal
//!   Request (write) ─────────────▶   leases
//!         ◀──────────────── Accept   or Done with a refusal
//!   WriteData ───────────────────▶   copies into place
//!         ◀────────────────── Done   when all is there
//!   Request (write, data) ───────▶   leases, copies what came with it into place
//!         ◀────────────────── Done
//!   Request (rail) ──────────────▶   leases and maps
//!         ◀───────────────── Grant   where the memory is and its remote keys
//!   Release ─────────────────────▶   unmaps, ends the lease
//!   Notify ──────────────────────▶   queues it, then Done
//!   Cancel ──────────────────────▶   forgets the operation
//! ```

use bytes::BufMut;

use crate::descriptor::Ranges;
use crate::error::Result;
use crate::memory::{Right, Token};
use crate::wire::{self, Format, Reader, put_bytes, put_right, put_status, put_token};

pub(super) use super::header::{HEADER_BYTES, Header, Kind};
pub(super) use crate::wire::protocol;

/// Who connects, to whom, and where its worker is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) hello: wire::Hello,
    pub(super) address: Vec<u8>,
}

impl Hello {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.hello.put(&FORMAT, &mut out);
        put_bytes(&mut out, &self.address);
        out
    }

    pub(super) fn decode(body: &[u8]) -> Result<Self> {
        let mut body = Reader::new(body);
        let hello = wire::Hello::take(&FORMAT, &mut body)?;
        let address = body.bytes(ADDRESS_BYTES_MAX)?.to_vec();
        body.end().map(|()| Self { hello, address })
    }
}

/// The part of a region that is to be read or written.
#[derive(Clone, PartialEq)]
pub(super) struct Request {
    pub(super) right: Right,
    pub(super) way: Way,
    pub(super) region: u64,
    pub(super) token: Token,
    pub(super) ranges: Ranges,
}

impl Request {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(REQUEST_BYTES + self.way.len() + 16 * self.ranges.count());
        put_right(&mut out, self.right);
        out.put_u8(match &self.way {
            Way::Messages => MESSAGES,
            Way::Checked => CHECKED,
            Way::Rail(rail) => *rail as u8,
            Way::Here(_) => HERE,
        });
        out.put_u64_le(self.region);
        put_token(&mut out, &self.token);
        if let Way::Here(data) = &self.way {
            put_bytes(&mut out, data);
        }
        for (offset, len) in self.ranges.iter() {
            out.put_u64_le(offset);
            out.put_u64_le(len);
        }
        out
    }

    pub(super) fn decode(body: &[u8]) -> Result<Self> {
        let mut body = Reader::new(body);
        let right = body.right()?;
        let way = body.u8()?;
        let (region, token) = (body.u64()?, body.token()?);
        let way = match (way, right) {
            (MESSAGES, _) => Way::Messages,
            (CHECKED, _) => Way::Checked,
            (CMA, _) => Way::Rail(RailKind::Cma),
            (RDMA, _) => Way::Rail(RailKind::Rdma),
            (HERE, Right::Write) => Way::Here(body.bytes(HERE_BYTES_MAX)?.to_vec()),
            (other, _) => return Err(protocol(format!("way {other}"))),
        };
        if body.len() > 16 * STRIPE_CHUNKS_MAX {
            return Err(protocol(format!("request of {} ranges", body.len() / 16)));
        }
        let mut ranges = Vec::with_capacity(body.len() / 16);
        while !body.is_empty() {
            ranges.push((body.u64()?, body.u64()?));
        }
        let ranges = Ranges::unchecked(ranges);
        Ok(Self { right, way, region, token, ranges })
    }
}

/// How the data of a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Way {
    /// In messages of its own.
    Messages,
    /// So too, each with a checksum.
    Checked,
    /// By access to what is granted.
    Rail(RailKind),
    /// With the request: a write of few bytes.
    Here(Vec<u8>),
}

impl Way {
    /// Returns the number of bytes that it adds to a request.
    fn len(&self) -> usize {
        if let Self::Here(data) = self { 2 + data.len() } else { 0 }
    }
}

/// A way to access memory of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum RailKind {
    Cma = CMA,
    Rdma = RDMA,
}

/// Where an owner's workers for one-sided access are found; empty where it has none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Rails {
    /// Tells hosts apart.
    pub(super) host: Vec<u8>,
    pub(super) cma: Vec<u8>,
    pub(super) rdma: Vec<u8>,
}

/// What an owner answers to a hello.
pub(super) struct Welcome {
    pub(super) status: Result<()>,
    /// How its memory is accessed without it.
    pub(super) rails: Rails,
}

impl Welcome {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let Rails { host, cma, rdma } = &self.rails;
        [host, cma, rdma].into_iter().for_each(|bytes| put_bytes(&mut out, bytes));
        put_status(&mut out, &self.status);
        out
    }

    pub(super) fn decode(body: &[u8]) -> Result<Self> {
        let mut body = Reader::new(body);
        let mut field = |max| body.bytes(max).map(<[u8]>::to_vec);
        let host = field(HOST_BYTES_MAX)?;
        let (cma, rdma) = (field(ADDRESS_BYTES_MAX)?, field(ADDRESS_BYTES_MAX)?);
        let status = body.status()?;
        body.end().map(|()| Self { status, rails: Rails { host, cma, rdma } })
    }
}

/// Where a piece of a region is in its owner's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RemotePiece {
    /// Where the piece begins in the stream of the operation.
    pub(super) position: u64,
    pub(super) address: u64,
    pub(super) len: u64,
    /// Which of the remote keys opens it.
    pub(super) key: u32,
}

/// Encodes what one-sided access to the ranges of an operation needs.
pub(super) fn encode_grants(keys: &[Vec<u8>], grants: &[RemotePiece]) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u32_le(u32::try_from(keys.len()).unwrap_or(u32::MAX));
    keys.iter().for_each(|key| put_bytes(&mut out, key));
    for grant in grants {
        out.put_u64_le(grant.position);
        out.put_u64_le(grant.address);
        out.put_u64_le(grant.len);
        out.put_u32_le(grant.key);
    }
    out
}

/// Decodes it; the pieces are in order, without gaps, and `total` bytes in sum.
pub(super) fn decode_grants(body: &[u8], total: u64) -> Result<(Vec<Vec<u8>>, Vec<RemotePiece>)> {
    let mut body = Reader::new(body);
    let count = body.u32()?;
    let mut keys = Vec::new();
    for _ in 0..count {
        keys.push(body.bytes(KEY_BYTES_MAX)?.to_vec());
    }
    let mut grants = Vec::with_capacity(body.len() / GRANT_BYTES);
    let mut end = 0u64;
    while !body.is_empty() {
        let (position, address) = (body.u64()?, body.u64()?);
        let grant = RemotePiece { position, address, len: body.u64()?, key: body.u32()? };
        if grant.position != end || grant.len == 0 || grant.key >= count {
            return Err(protocol("grants do not follow each other"));
        }
        end = end.checked_add(grant.len).ok_or_else(|| protocol("grants overflow"))?;
        grants.push(grant);
    }
    if end == total { Ok((keys, grants)) } else { Err(protocol("grants of another size")) }
}

pub(super) fn encode_status(status: &Result<()>) -> Vec<u8> {
    let mut out = Vec::new();
    put_status(&mut out, status);
    out
}

/// Decodes a status: the outer error is the peer's fault, the inner one its answer.
pub(super) fn decode_status(body: &[u8]) -> Result<Result<()>> {
    let mut body = Reader::new(body);
    let status = body.status()?;
    body.end().map(|()| status)
}

const MESSAGES: u8 = 0;
const CMA: u8 = 1;
const RDMA: u8 = 2;
const HERE: u8 = 3;
const CHECKED: u8 = 4;
const HOST_BYTES_MAX: usize = 64;
const FORMAT: Format = Format { magic: *b"DUCX", version: 4 };
const REQUEST_BYTES: usize = 2 + 8 + 8 + 1 + 8 + 16;
/// Data that goes with its request: to copy it twice more takes less time than to ask first.
pub(super) const HERE_BYTES_MAX: usize = 32 << 10;
/// What one request asks for.
pub(super) const STRIPE_BYTES_MAX: u64 = 32 << 20;
pub(super) const STRIPE_CHUNKS_MAX: usize = 16 << 10;
const GRANT_BYTES: usize = 8 + 8 + 8 + 4;
/// One transport of one network device takes about 50 bytes.
pub(super) const ADDRESS_BYTES_MAX: usize = 16 << 10;
const KEY_BYTES_MAX: usize = 4 << 10;
/// Segments of a region that one-sided access of an operation may touch, each with a key.
pub(super) const SEGMENTS_MAX: usize = 64;
/// Pieces of memory that are granted at once.
pub(super) const GRANTS_MAX: usize = 16 << 10;
/// What fits into a message that is no fragment of data: the largest is a grant.
pub(super) const CONTROL_BYTES_MAX: usize =
    4 + SEGMENTS_MAX * (2 + KEY_BYTES_MAX) + GRANTS_MAX * GRANT_BYTES;
const _: () =
    assert!(CONTROL_BYTES_MAX >= REQUEST_BYTES + 2 + HERE_BYTES_MAX + 16 * STRIPE_CHUNKS_MAX);

/// What is taken of a peer is written as what says the same; the first byte says what it is.
#[cfg(any(test, feature = "test-util"))]
pub(crate) fn fuzz(data: &[u8]) {
    let Some((&kind, body)) = data.split_first() else { return };
    let is_same = match kind {
        0 => Header::decode(body).is_none_or(|header| header.encode() == body),
        1 => Hello::decode(body).ok().is_none_or(|hello| hello.encode() == body),
        // Ranges without bytes are left out.
        2 => Request::decode(body).ok().is_none_or(|request| {
            Request::decode(&request.encode()).is_ok_and(|again| again == request)
        }),
        // What is no UTF-8 in the reason of a refusal is replaced.
        3 => Welcome::decode(body).ok().is_none_or(|Welcome { status, rails }| {
            let again = Welcome { status: again(&status), rails: rails.clone() }.encode();
            Welcome::decode(&again).is_ok_and(|again| again.rails == rails)
        }),
        4 => return fuzz_grants(body),
        _ => decode_status(body).ok().is_none_or(|status| {
            let kind = |status: Result<()>| status.err().map(|error| error.kind());
            kind(again(&status)) == kind(status)
        }),
    };
    assert!(is_same);
}

#[cfg(any(test, feature = "test-util"))]
fn again(status: &Result<()>) -> Result<()> {
    decode_status(&encode_status(status)).unwrap_or_else(Err)
}

/// The first eight bytes are those of the operation.
#[cfg(any(test, feature = "test-util"))]
fn fuzz_grants(body: &[u8]) {
    let Some((total, body)) = body.split_first_chunk() else { return };
    let total = u64::from_le_bytes(*total);
    if let Ok((keys, grants)) = decode_grants(body, total) {
        assert!(grants.iter().all(|grant| (grant.key as usize) < keys.len()));
        assert_eq!(encode_grants(&keys, &grants), body);
    }
}

#[cfg(test)]
mod tests;
