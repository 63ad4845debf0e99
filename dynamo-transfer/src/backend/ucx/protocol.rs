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
//!   Request (rail) ──────────────▶   leases and maps
//!         ◀───────────────── Grant   where the memory is and its remote keys
//!   Release ─────────────────────▶   unmaps, ends the lease
//!   Notify ──────────────────────▶   queues it, then Done
//!   Cancel ──────────────────────▶   forgets the operation
//! ```
//!
//! A header is kind u8, seven zeros, link u64, operation u64, position u64, little-endian. The
//! initiator draws the link's number at random and counts its operations; data is a stream of
//! the ranges' bytes one after the other, so a fragment needs only its position in it.

use bytes::{Buf, BufMut};

use crate::config::NAME_BYTES_MAX;
use crate::descriptor::Ranges;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Right, Token};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
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

const KINDS: [Kind; 11] = [
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
        Self { kind, link, op, position: 0 }
    }

    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut out = &mut bytes[..];
        out.put_u64_le(self.kind as u64);
        out.put_u64_le(self.link);
        out.put_u64_le(self.op);
        out.put_u64_le(self.position);
        bytes
    }

    /// Returns nothing if the bytes are no header.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut bytes: &[u8] = <&[u8; HEADER_BYTES]>::try_from(bytes).ok()?;
        let kind = usize::try_from(bytes.get_u64_le()).ok()?;
        Some(Self {
            kind: *KINDS.get(kind)?,
            link: bytes.get_u64_le(),
            op: bytes.get_u64_le(),
            position: bytes.get_u64_le(),
        })
    }
}

/// Who connects, to whom, and where its worker is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) target_name: String,
    pub(super) target_incarnation: u64,
    pub(super) name: String,
    pub(super) incarnation: u64,
    pub(super) address: Vec<u8>,
}

impl Hello {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_slice(MAGIC);
        out.put_u16_le(VERSION);
        put_bytes(&mut out, self.target_name.as_bytes());
        out.put_u64_le(self.target_incarnation);
        put_bytes(&mut out, self.name.as_bytes());
        out.put_u64_le(self.incarnation);
        put_bytes(&mut out, &self.address);
        out
    }

    pub(super) fn decode(mut body: &[u8]) -> Result<Self> {
        let body = &mut body;
        if take(body, MAGIC.len())? != MAGIC {
            return Err(protocol("hello without magic"));
        }
        let version = body.try_get_u16_le().map_err(short)?;
        if version != VERSION {
            return Err(protocol(format!("hello of version {version}, this is {VERSION}")));
        }
        let hello = Self {
            target_name: take_name(body)?,
            target_incarnation: body.try_get_u64_le().map_err(short)?,
            name: take_name(body)?,
            incarnation: body.try_get_u64_le().map_err(short)?,
            address: take_bytes(body, ADDRESS_BYTES_MAX)?.to_vec(),
        };
        ended(body)?;
        Ok(hello)
    }
}

/// The part of a region that is to be read or written.
#[derive(Clone, PartialEq)]
pub(super) struct Request {
    pub(super) right: Right,
    /// Asks for remote keys for that rail, in place of messages with the data.
    pub(super) rail: Option<RailKind>,
    pub(super) region: u64,
    pub(super) token: Token,
    pub(super) ranges: Ranges,
}

impl Request {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(REQUEST_BYTES + 16 * self.ranges.count());
        out.put_u8(u8::from(self.right == Right::Write));
        out.put_u8(self.rail.map_or(0, |rail| rail as u8));
        out.put_u64_le(self.region);
        out.put_u64_le(self.token.generation);
        out.put_u8(u8::from(self.token.is_writable));
        out.put_u64_le(self.token.expires_ms);
        out.put_u128_le(self.token.proof);
        for (offset, len) in self.ranges.iter() {
            out.put_u64_le(offset);
            out.put_u64_le(len);
        }
        out
    }

    pub(super) fn decode(mut body: &[u8]) -> Result<Self> {
        let body = &mut body;
        let right = if take_flag(body)? { Right::Write } else { Right::Read };
        let rail = match body.try_get_u8().map_err(short)? {
            0 => None,
            CMA => Some(RailKind::Cma),
            RDMA => Some(RailKind::Rdma),
            other => return Err(protocol(format!("rail {other}"))),
        };
        let region = body.try_get_u64_le().map_err(short)?;
        let generation = body.try_get_u64_le().map_err(short)?;
        let is_writable = take_flag(body)?;
        let expires_ms = body.try_get_u64_le().map_err(short)?;
        let proof = body.try_get_u128_le().map_err(short)?;
        let token = Token { generation, is_writable, expires_ms, proof };
        if body.len() > 16 * STRIPE_CHUNKS_MAX {
            return Err(protocol(format!("request of {} ranges", body.len() / 16)));
        }
        let mut ranges = Vec::with_capacity(body.len() / 16);
        while !body.is_empty() {
            let offset = body.try_get_u64_le().map_err(short)?;
            ranges.push((offset, body.try_get_u64_le().map_err(short)?));
        }
        let ranges = Ranges::unchecked(ranges);
        Ok(Self { right, rail, region, token, ranges })
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
        out.put_slice(&encode_status(&self.status));
        out
    }

    pub(super) fn decode(mut body: &[u8]) -> Result<Self> {
        let body = &mut body;
        let rails = Rails {
            host: take_bytes(body, HOST_BYTES_MAX)?.to_vec(),
            cma: take_bytes(body, ADDRESS_BYTES_MAX)?.to_vec(),
            rdma: take_bytes(body, ADDRESS_BYTES_MAX)?.to_vec(),
        };
        Ok(Self { status: decode_status(body)?, rails })
    }
}

/// Where a piece of a region is in its owner's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Grant {
    /// Where the piece begins in the stream of the operation.
    pub(super) position: u64,
    pub(super) address: u64,
    pub(super) len: u64,
    /// Which of the remote keys opens it.
    pub(super) key: u32,
}

/// Encodes what one-sided access to the ranges of an operation needs.
pub(super) fn encode_grants(keys: &[Vec<u8>], grants: &[Grant]) -> Vec<u8> {
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
pub(super) fn decode_grants(mut body: &[u8], total: u64) -> Result<(Vec<Vec<u8>>, Vec<Grant>)> {
    let body = &mut body;
    let count = body.try_get_u32_le().map_err(short)?;
    let mut keys = Vec::new();
    for _ in 0..count {
        keys.push(take_bytes(body, KEY_BYTES_MAX)?.to_vec());
    }
    let mut grants = Vec::with_capacity(body.len() / GRANT_BYTES);
    let mut end = 0u64;
    while !body.is_empty() {
        let grant = Grant {
            position: body.try_get_u64_le().map_err(short)?,
            address: body.try_get_u64_le().map_err(short)?,
            len: body.try_get_u64_le().map_err(short)?,
            key: body.try_get_u32_le().map_err(short)?,
        };
        if grant.position != end || grant.len == 0 || grant.key >= count {
            return Err(protocol("grants do not follow each other"));
        }
        end = end.checked_add(grant.len).ok_or_else(|| protocol("grants overflow"))?;
        grants.push(grant);
    }
    if end == total { Ok((keys, grants)) } else { Err(protocol("grants of another size")) }
}

pub(super) fn encode_status(status: &Result<()>) -> Vec<u8> {
    let Err(error) = status else { return vec![0] };
    let code = ERRORS.iter().position(|kind| *kind == error.kind());
    let code = code.and_then(|index| u8::try_from(index + 1).ok());
    let message = error.message().as_bytes();
    let mut out = vec![code.unwrap_or(u8::MAX)];
    out.put_slice(&message[..message.len().min(STATUS_BYTES_MAX)]);
    out
}

/// Decodes a status: the outer error is the peer's fault, the inner one its answer.
pub(super) fn decode_status(body: &[u8]) -> Result<Result<()>> {
    let (&code, message) = body.split_first().ok_or_else(|| protocol("status without a code"))?;
    let Some(index) = usize::from(code).checked_sub(1) else { return Ok(Ok(())) };
    let kind = ERRORS.get(index).copied().unwrap_or(ErrorKind::Internal);
    let message = &message[..message.len().min(STATUS_BYTES_MAX)];
    Ok(Err(Error::new(kind, String::from_utf8_lossy(message))))
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    // Names, addresses and keys are short: their limits are checked where they come from.
    out.put_u16_le(u16::try_from(bytes.len()).unwrap_or(u16::MAX));
    out.put_slice(bytes);
}

fn take_bytes<'a>(body: &mut &'a [u8], max: usize) -> Result<&'a [u8]> {
    let len = usize::from(body.try_get_u16_le().map_err(short)?);
    if len > max {
        return Err(protocol(format!("field of {len} bytes, at most {max}")));
    }
    take(body, len)
}

fn take_name(body: &mut &[u8]) -> Result<String> {
    let bytes = take_bytes(body, NAME_BYTES_MAX)?;
    String::from_utf8(bytes.to_vec()).map_err(|_| protocol("agent name is not UTF-8"))
}

fn take_flag(body: &mut &[u8]) -> Result<bool> {
    match body.try_get_u8().map_err(short)? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(protocol(format!("flag of {other}"))),
    }
}

fn take<'a>(body: &mut &'a [u8], len: usize) -> Result<&'a [u8]> {
    let (head, tail) =
        body.split_at_checked(len).ok_or_else(|| protocol("message is cut short"))?;
    *body = tail;
    Ok(head)
}

fn ended(body: &[u8]) -> Result<()> {
    if body.is_empty() { Ok(()) } else { Err(protocol("message with bytes behind it")) }
}

fn short(_: bytes::TryGetError) -> Error {
    protocol("message is cut short")
}

pub(super) fn protocol(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Protocol, message)
}

const CMA: u8 = 1;
const RDMA: u8 = 2;
const HOST_BYTES_MAX: usize = 64;
const MAGIC: &[u8] = b"DUCX";
const VERSION: u16 = 1;
const REQUEST_BYTES: usize = 2 + 8 + 8 + 1 + 8 + 16;
/// What one request asks for.
pub(super) const STRIPE_BYTES_MAX: u64 = 32 << 20;
pub(super) const STRIPE_CHUNKS_MAX: usize = 16 << 10;
const GRANT_BYTES: usize = 8 + 8 + 8 + 4;
const STATUS_BYTES_MAX: usize = 4 << 10;
/// One transport of one network device takes about 50 bytes.
pub(super) const ADDRESS_BYTES_MAX: usize = 16 << 10;
const KEY_BYTES_MAX: usize = 4 << 10;
/// Segments of a region that one-sided access of an operation may touch, each with a key.
pub(super) const SEGMENTS_MAX: usize = 64;
/// Pieces of memory that are granted at once.
pub(super) const GRANTS_MAX: usize = 16 << 10;
/// What fits into a message that carries no data of regions: the largest is a grant.
pub(super) const CONTROL_BYTES_MAX: usize =
    4 + SEGMENTS_MAX * (2 + KEY_BYTES_MAX) + GRANTS_MAX * GRANT_BYTES;
const _: () = assert!(CONTROL_BYTES_MAX >= REQUEST_BYTES + 16 * STRIPE_CHUNKS_MAX);

/// Error kinds by code, from 1 on; the order is part of the protocol.
const ERRORS: [ErrorKind; 9] = [
    ErrorKind::InvalidArgument,
    ErrorKind::OutOfBounds,
    ErrorKind::StaleRegion,
    ErrorKind::PermissionDenied,
    ErrorKind::Overloaded,
    ErrorKind::Protocol,
    ErrorKind::Closed,
    ErrorKind::DeadlineExceeded,
    ErrorKind::Disconnected,
];

#[cfg(test)]
mod tests;
