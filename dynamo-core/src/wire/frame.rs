//! Frames as bytes: an 8-byte header, then the payload; little-endian, decoded without trust.
//!
//! ```text
//! payload length u24 │ kind: low 4 bits, flags: high 4 bits │ stream u32 │ payload
//! ```

use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};

use super::codec::Codec;
use crate::error::{Error, ErrorKind, Result};

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The first frame of each side: who speaks, which version, which limits.
    Hello = 0,
    /// Opens a stream: a [`Head`](super::head::Head), then the body of the request.
    Open = 1,
    /// The engine has given its stream; without it a request may have started or not.
    Accept = 2,
    /// Part of a message; [`MORE`] if the message goes on in the next one, [`BATCH`] if there are
    /// several.
    Data = 3,
    /// The stream is complete; its item count as u64.
    End = 4,
    /// The stream is over: from the server an error, from the client a kill.
    Reset = 5,
    /// The client asks for an early, orderly end.
    Stop = 6,
    /// More credit in bytes as u32; stream 0 is the connection.
    Window = 7,
    /// Is answered by a pong with the same 8 bytes.
    Ping = 8,
    /// Answers a ping.
    Pong = 9,
    /// The server takes no more streams; the last one it took as u32.
    GoAway = 10,
    /// The streams that the server takes at once, as u32.
    Credits = 11,
}

/// The message, or the body of the request, goes on in the next data frame of the stream.
pub const MORE: u8 = 1;

/// The data frame holds whole messages, each behind its length.
pub const BATCH: u8 = 2;

/// The size of a header.
pub const HEADER_BYTES: usize = 8;

/// The largest payload; longer messages go in several frames, so that none holds up the others.
pub const PAYLOAD_BYTES_MAX: usize = 16 << 10;

/// What a frame says before its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the frame is for.
    pub kind: Kind,
    /// [`MORE`], [`BATCH`] or nothing.
    pub flags: u8,
    /// The stream it belongs to; 0 for the connection.
    pub stream: u32,
    /// The size of the payload in bytes.
    pub len: usize,
}

impl Header {
    /// Decodes the header at the start of `bytes`; `None` if there is too little of it.
    ///
    /// Fails with [`Protocol`](ErrorKind::Protocol) on a kind or a size that there is not.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>> {
        let Some(&[a, b, c, kind, s0, s1, s2, s3]) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let len = u32::from_le_bytes([a, b, c, 0]) as usize;
        if len > PAYLOAD_BYTES_MAX {
            return Err(protocol(format!("frame of {len} bytes, at most {PAYLOAD_BYTES_MAX}")));
        }
        let flags = kind >> 4;
        let kind = Kind::decode(kind & 0xf)?;
        let may_continue = matches!(kind, Kind::Open | Kind::Data);
        let is_known = match flags {
            0 => true,
            MORE => may_continue,
            BATCH => kind == Kind::Data,
            _ => false,
        };
        if !is_known {
            return Err(protocol(format!("{kind:?} frame with flags {flags:#x}")));
        }
        Ok(Some(Self { kind, flags, stream: u32::from_le_bytes([s0, s1, s2, s3]), len }))
    }
}

impl Kind {
    fn decode(kind: u8) -> Result<Self> {
        const KINDS: [Kind; 12] = [
            Kind::Hello,
            Kind::Open,
            Kind::Accept,
            Kind::Data,
            Kind::End,
            Kind::Reset,
            Kind::Stop,
            Kind::Window,
            Kind::Ping,
            Kind::Pong,
            Kind::GoAway,
            Kind::Credits,
        ];
        let known = KINDS.get(usize::from(kind)).copied();
        known.ok_or_else(|| protocol(format!("frame of kind {kind}")))
    }
}

/// Appends a frame.
///
/// # Panics
/// If `payload` is longer than [`PAYLOAD_BYTES_MAX`].
pub fn put(out: &mut BytesMut, kind: Kind, flags: u8, stream: u32, payload: &[u8]) {
    put_header(out, kind, flags, stream, payload.len());
    out.put_slice(payload);
}

/// Appends the header of a frame whose payload of `len` bytes follows.
///
/// # Panics
/// If `len` is more than [`PAYLOAD_BYTES_MAX`].
pub(super) fn put_header(out: &mut BytesMut, kind: Kind, flags: u8, stream: u32, len: usize) {
    assert!(len <= PAYLOAD_BYTES_MAX, "a payload fits into its frame");
    out.reserve(HEADER_BYTES + len);
    // The upper byte is zero: the size is limited.
    let [a, b, c, _] = u32::try_from(len).unwrap_or(0).to_le_bytes();
    out.put_slice(&[a, b, c, kind as u8 | flags << 4]);
    out.put_u32_le(stream);
}

/// Returns how many bytes a message takes in a batch; `None` if it is too large for one.
pub(super) fn batched_len(message: &[u8]) -> Option<usize> {
    match message.len() {
        len @ ..0x80 => Some(1 + len),
        len @ 0x80..=BATCHED_BYTES_MAX => Some(2 + len),
        _ => None,
    }
}

/// Appends a message to a batch: its length as a varint (LEB128) of one or two bytes, and itself.
pub(super) fn put_batched(out: &mut BytesMut, message: &[u8]) {
    // Below 2^14: whoever asks for the length first knows.
    let [low, high] = u16::try_from(message.len()).unwrap_or(0).to_le_bytes();
    match message.len() {
        ..0x80 => out.put_u8(low),
        _ => out.put_slice(&[low | 0x80, high << 1 | low >> 7]),
    }
    out.put_slice(message);
}

/// Takes the length of the next message off a batch.
///
/// Fails with [`Protocol`](ErrorKind::Protocol) on what [`put_batched`] does not write: each batch
/// has one form.
pub(super) fn take_batched(batch: &mut &[u8]) -> Result<usize> {
    let low = batch.try_get_u8().map_err(|_| short())?;
    let mut len = usize::from(low & 0x7f);
    if low & 0x80 != 0 {
        let high = batch.try_get_u8().map_err(|_| short())?;
        if high == 0 {
            return Err(protocol(format!("length {len} in a batch in two bytes, not one")));
        }
        len |= usize::from(high) << 7;
    }
    if len > BATCHED_BYTES_MAX {
        let message = format!("message of {len} bytes in a batch, at most {BATCHED_BYTES_MAX}");
        return Err(protocol(message));
    }
    if len > batch.len() {
        return Err(short());
    }
    Ok(len)
}

/// What each side says first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The bytes that the other side may have on their way per stream.
    pub stream_window: u32,
    /// The bytes that the other side may have on their way in all.
    pub connection_window: u32,
    /// The streams that the server takes at once; 0 from a client.
    pub streams_max: u32,
    /// How messages are encoded: the client's word counts.
    pub codec: Codec,
}

/// The size of a whole hello.
pub(crate) const HELLO_BYTES: usize = HEADER_BYTES + 19;

impl Hello {
    /// Encodes the payload.
    pub fn encode(&self) -> BytesMut {
        let mut out = BytesMut::with_capacity(HELLO_BYTES - HEADER_BYTES);
        out.put_slice(MAGIC);
        out.put_u16_le(VERSION);
        out.put_u32_le(self.stream_window);
        out.put_u32_le(self.connection_window);
        out.put_u32_le(self.streams_max);
        out.put_u8(self.codec.id());
        out
    }

    /// Decodes a payload; fails with [`Protocol`](ErrorKind::Protocol) on another protocol or
    /// version.
    pub fn decode(mut body: &[u8]) -> Result<Self> {
        let body = &mut body;
        let magic = body.split_off(..MAGIC.len()).ok_or_else(short)?;
        if magic != MAGIC {
            return Err(protocol("hello without magic"));
        }
        let version = body.try_get_u16_le().map_err(|_| short())?;
        if version != VERSION {
            return Err(protocol(format!("hello of version {version}, this is {VERSION}")));
        }
        let hello = Self {
            stream_window: body.try_get_u32_le().map_err(|_| short())?,
            connection_window: body.try_get_u32_le().map_err(|_| short())?,
            streams_max: body.try_get_u32_le().map_err(|_| short())?,
            codec: Codec::from_id(body.try_get_u8().map_err(|_| short())?)?,
        };
        ended(body)?;
        Ok(hello)
    }
}

/// Encodes an error as the payload of a reset.
pub(super) fn encode_error(error: &Error) -> BytesMut {
    let mut out = BytesMut::new();
    out.put_u8(u8::try_from(error.kind().index()).unwrap_or(u8::MAX));
    let retry_after = error.retry_after();
    let flags = [(error.is_retryable(), UNPROCESSED), (retry_after.is_some(), RETRY_AFTER)];
    out.put_u8(flags.iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| flag).sum());
    if let Some(retry_after) = retry_after {
        out.put_u32_le(u32::try_from(retry_after.as_millis()).unwrap_or(u32::MAX));
    }
    let message = error.message().as_bytes();
    out.put_slice(&message[..message.len().min(MESSAGE_BYTES_MAX)]);
    out
}

/// Decodes the payload of a reset.
pub(super) fn decode_error(body: &[u8]) -> Result<Error> {
    let Some((&[code, flags], mut message)) = body.split_first_chunk() else {
        return Err(short());
    };
    if flags & !(UNPROCESSED | RETRY_AFTER) != 0 {
        return Err(protocol(format!("reset with flags {flags:#x}")));
    }
    let kind = ErrorKind::ALL.get(usize::from(code)).copied().unwrap_or(ErrorKind::Internal);
    let retry_after = match flags & RETRY_AFTER {
        0 => None,
        _ => Some(Duration::from_millis(message.try_get_u32_le().map_err(|_| short())?.into())),
    };
    let mut error = Error::new(kind, String::from_utf8_lossy(message));
    if flags & UNPROCESSED != 0 {
        error = error.unprocessed();
    }
    if let Some(retry_after) = retry_after {
        error = error.with_retry_after(retry_after);
    }
    Ok(error)
}

pub(super) fn take_u32(mut body: &[u8]) -> Result<u32> {
    let value = body.try_get_u32_le().map_err(|_| short())?;
    ended(body)?;
    Ok(value)
}

pub(super) fn take_u64(mut body: &[u8]) -> Result<u64> {
    let value = body.try_get_u64_le().map_err(|_| short())?;
    ended(body)?;
    Ok(value)
}

pub(super) fn ended(body: &[u8]) -> Result<()> {
    if body.is_empty() { Ok(()) } else { Err(protocol("payload with bytes behind it")) }
}

pub(super) fn short() -> Error {
    protocol("payload is cut short")
}

pub(super) fn protocol(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Protocol, message)
}

/// The largest message in a batch: larger ones cross alone.
const BATCHED_BYTES_MAX: usize = 1 << 10;

const MAGIC: &[u8] = b"DYNW";
const VERSION: u16 = 1;

/// Enough for any message of ours; what is longer is cut.
const MESSAGE_BYTES_MAX: usize = 2 << 10;

/// Flags of a reset: the request provably did not start; a time in milliseconds follows.
const UNPROCESSED: u8 = 1;
const RETRY_AFTER: u8 = 2;

#[cfg(test)]
mod tests;
