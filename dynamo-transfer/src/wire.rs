//! What the formats of this crate are made of: little-endian, read without trust.

use bytes::{BufMut, Bytes, BytesMut};

use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Right, Token};
use crate::vocabulary::{NAME_BYTES_MAX, NOTIFICATION_BYTES_MAX};

/// Names a format, at the beginning of what is written in it.
pub(crate) struct Format {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u16,
}

/// Who connects, and to whom: the beginning of every connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) target_name: String,
    pub(crate) target_incarnation: u64,
    pub(crate) name: String,
    pub(crate) incarnation: u64,
}

/// Bytes that are read from the front.
#[derive(Clone)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl Format {
    pub(crate) fn put(&self, out: &mut impl BufMut) {
        out.put_slice(&self.magic);
        out.put_u16_le(self.version);
    }

    pub(crate) fn take(&self, body: &mut Reader<'_>) -> Result<()> {
        let Self { magic, version } = self;
        if body.array()? != *magic {
            return Err(protocol(format!("no magic of {}", magic.escape_ascii())));
        }
        match body.u16()? {
            found if found == *version => Ok(()),
            found => Err(protocol(format!("format of version {found}, this is {version}"))),
        }
    }
}

impl Hello {
    pub(crate) fn put(&self, format: &Format, out: &mut impl BufMut) {
        format.put(out);
        put_text(out, &self.target_name);
        out.put_u64_le(self.target_incarnation);
        put_text(out, &self.name);
        out.put_u64_le(self.incarnation);
    }

    pub(crate) fn take(format: &Format, body: &mut Reader<'_>) -> Result<Self> {
        format.take(body)?;
        Ok(Self {
            target_name: body.text()?,
            target_incarnation: body.u64()?,
            name: body.text()?,
            incarnation: body.u64()?,
        })
    }
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Returns how many bytes are left.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn u8(&mut self) -> Result<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn u128(&mut self) -> Result<u128> {
        self.array().map(u128::from_le_bytes)
    }

    pub(crate) fn flag(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(protocol(format!("flag of {other}"))),
        }
    }

    pub(crate) fn right(&mut self) -> Result<Right> {
        Ok(if self.flag()? { Right::Write } else { Right::Read })
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk().ok_or_else(short)?;
        self.0 = tail;
        Ok(*head)
    }

    /// Returns the next `len` bytes.
    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len).ok_or_else(short)?;
        self.0 = tail;
        Ok(head)
    }

    /// Returns all that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// Returns what [`put_bytes`] has written, at most `max` bytes.
    pub(crate) fn bytes(&mut self, max: usize) -> Result<&'a [u8]> {
        let len = usize::from(self.u16()?);
        if len > max {
            return Err(protocol(format!("field of {len} bytes, at most {max}")));
        }
        self.take(len)
    }

    /// Returns the name of an agent.
    pub(crate) fn text(&mut self) -> Result<String> {
        let bytes = self.bytes(NAME_BYTES_MAX)?.to_vec();
        String::from_utf8(bytes).map_err(|_| protocol("agent name is not UTF-8"))
    }

    pub(crate) fn token(&mut self) -> Result<Token> {
        Ok(Token {
            generation: self.u64()?,
            expires_ms: self.u64()?,
            proof: self.u128()?,
            is_writable: self.flag()?,
        })
    }

    /// Returns the notification that is left.
    pub(crate) fn notification(&mut self) -> Result<Bytes> {
        if self.len() > NOTIFICATION_BYTES_MAX {
            return Err(protocol(format!("notification of {} bytes", self.len())));
        }
        Ok(Bytes::copy_from_slice(self.rest()))
    }

    /// Returns what [`put_status`] has written: the outer error is the peer's fault, the inner one
    /// its answer. Behind a success, anything may be left.
    pub(crate) fn status(&mut self) -> Result<Result<()>> {
        let Some(kind) = kind(self.u8()?) else { return Ok(Ok(())) };
        let reason = self.rest();
        let reason = &reason[..reason.len().min(REASON_BYTES_MAX)];
        Ok(Err(Error::new(kind, String::from_utf8_lossy(reason))))
    }

    /// Fails if anything is left.
    pub(crate) fn end(&self) -> Result<()> {
        if self.is_empty() { Ok(()) } else { Err(protocol("bytes behind the end")) }
    }
}

/// Puts the length of a body before it.
pub(crate) fn framed(body: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(4 + body.len());
    // Bodies are limited far below 4 GiB when they are made.
    frame.put_u32_le(u32::try_from(body.len()).unwrap_or(u32::MAX));
    frame.put_slice(body);
    frame.freeze()
}

/// Writes bytes behind their length. Names, addresses and keys are short: their limits are checked
/// where they come from.
pub(crate) fn put_bytes(out: &mut impl BufMut, bytes: &[u8]) {
    out.put_u16_le(u16::try_from(bytes.len()).unwrap_or(u16::MAX));
    out.put_slice(bytes);
}

pub(crate) fn put_text(out: &mut impl BufMut, text: &str) {
    put_bytes(out, text.as_bytes());
}

pub(crate) fn put_flag(out: &mut impl BufMut, flag: bool) {
    out.put_u8(u8::from(flag));
}

pub(crate) fn put_right(out: &mut impl BufMut, right: Right) {
    put_flag(out, right == Right::Write);
}

pub(crate) fn put_token(out: &mut impl BufMut, token: &Token) {
    out.put_u64_le(token.generation);
    out.put_u64_le(token.expires_ms);
    out.put_u128_le(token.proof);
    put_flag(out, token.is_writable);
}

/// Writes a code, and behind it the reason if it is a refusal.
pub(crate) fn put_status(out: &mut impl BufMut, status: &Result<()>) {
    let (code, reason) = status.as_ref().err().map_or((0, &[][..]), refusal);
    out.put_u8(code);
    out.put_slice(reason);
}

/// Returns the code of an error, from 1 on, and as much of its message as travels.
pub(crate) fn refusal(error: &Error) -> (u8, &[u8]) {
    let code = KINDS.iter().position(|kind| *kind == error.kind());
    let code = code.and_then(|index| u8::try_from(index + 1).ok()).unwrap_or(u8::MAX);
    let reason = error.message().as_bytes();
    (code, &reason[..reason.len().min(REASON_BYTES_MAX)])
}

/// Returns what a code of a peer stands for on this side; nothing for success.
pub(crate) fn kind(code: u8) -> Option<ErrorKind> {
    let index = usize::from(code).checked_sub(1)?;
    Some(match KINDS.get(index).copied().unwrap_or(ErrorKind::Internal) {
        // The peer has ended, or has given up: this agent has not.
        ErrorKind::Closed | ErrorKind::Cancelled => ErrorKind::Disconnected,
        kind => kind,
    })
}

pub(crate) fn protocol(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Protocol, message)
}

fn short() -> Error {
    protocol("bytes are cut short")
}

/// What fits into a hello and a few bytes behind it; longer ones are refused before anything is
/// allocated.
pub(crate) const HELLO_BYTES_MAX: usize = 64 + 2 * NAME_BYTES_MAX;

/// Longer reasons are cut.
pub(crate) const REASON_BYTES_MAX: usize = 4 << 10;

/// Error kinds by code, from 1 on; the order is part of every format.
const KINDS: [ErrorKind; 17] = [
    ErrorKind::InvalidArgument,
    ErrorKind::OutOfBounds,
    ErrorKind::StaleRegion,
    ErrorKind::PermissionDenied,
    ErrorKind::BackendUnavailable,
    ErrorKind::Unreachable,
    ErrorKind::Disconnected,
    ErrorKind::DeadlineExceeded,
    ErrorKind::Overloaded,
    ErrorKind::Protocol,
    ErrorKind::NotFound,
    ErrorKind::StorageFull,
    ErrorKind::Io,
    ErrorKind::Closed,
    ErrorKind::Internal,
    ErrorKind::Corrupted,
    ErrorKind::Cancelled,
];

#[cfg(test)]
mod tests;
