//! Frames as bytes: length-prefixed, little-endian, decoded without trust.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::config::NAME_BYTES_MAX;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::RegionKey;
use crate::transfer::{CHUNKS_MAX, NOTIFICATION_BYTES_MAX};

/// What a client says.
#[derive(Clone, PartialEq)]
pub(super) enum Request {
    /// The first frame of a connection.
    Hello {
        target_name: String,
        target_incarnation: u64,
        name: String,
        incarnation: u64,
    },
    Read(Access),
    Write(Access),
    Notify(Bytes),
}

/// The part of a region that is to be read or written.
#[derive(Clone, PartialEq)]
pub(super) struct Access {
    pub(super) region: u64,
    pub(super) key: RegionKey,
    pub(super) ranges: Vec<(u64, u64)>,
}

/// What an owner answers.
pub(super) type Status = Result<()>;

/// What fits into a frame of each sort; larger ones are refused before anything is allocated.
pub(super) const HELLO_BYTES_MAX: usize = 64 + 2 * NAME_BYTES_MAX;
pub(super) const REQUEST_BYTES_MAX: usize = 64 + 16 * CHUNKS_MAX;
pub(super) const STATUS_BYTES_MAX: usize = 4 << 10;

impl Request {
    pub(super) fn encode(&self) -> Bytes {
        let mut body = BytesMut::new();
        match self {
            Self::Hello { target_name, target_incarnation, name, incarnation } => {
                body.put_u8(HELLO);
                body.put_slice(MAGIC);
                body.put_u16_le(VERSION);
                put_text(&mut body, target_name);
                body.put_u64_le(*target_incarnation);
                put_text(&mut body, name);
                body.put_u64_le(*incarnation);
            }
            Self::Read(access) => put_access(&mut body, READ, access),
            Self::Write(access) => put_access(&mut body, WRITE, access),
            Self::Notify(payload) => {
                body.put_u8(NOTIFY);
                body.put_slice(payload);
            }
        }
        framed(&body)
    }

    pub(super) fn decode(mut body: &[u8]) -> Result<Self> {
        let body = &mut body;
        let request = match body.try_get_u8().map_err(short)? {
            HELLO => {
                if take(body, MAGIC.len())? != MAGIC {
                    return Err(protocol("hello without magic"));
                }
                let version = body.try_get_u16_le().map_err(short)?;
                if version != VERSION {
                    return Err(protocol(format!("hello of version {version}, this is {VERSION}")));
                }
                Self::Hello {
                    target_name: take_text(body)?,
                    target_incarnation: body.try_get_u64_le().map_err(short)?,
                    name: take_text(body)?,
                    incarnation: body.try_get_u64_le().map_err(short)?,
                }
            }
            READ => Self::Read(take_access(body)?),
            WRITE => Self::Write(take_access(body)?),
            NOTIFY => {
                if body.len() > NOTIFICATION_BYTES_MAX {
                    return Err(protocol(format!("notification of {} bytes", body.len())));
                }
                Self::Notify(Bytes::copy_from_slice(take(body, body.len())?))
            }
            other => return Err(protocol(format!("request of type {other}"))),
        };
        if body.is_empty() { Ok(request) } else { Err(protocol("request with bytes behind it")) }
    }
}

pub(super) fn encode_status(status: &Status) -> Bytes {
    let mut body = BytesMut::new();
    match status {
        Ok(()) => body.put_u8(0),
        Err(error) => {
            let code = KINDS.iter().position(|kind| *kind == error.kind());
            let code = code.and_then(|index| u8::try_from(index + 1).ok());
            body.put_u8(code.unwrap_or(u8::MAX));
            let message = error.message().as_bytes();
            body.put_slice(&message[..message.len().min(STATUS_BYTES_MAX - 1)]);
        }
    }
    framed(&body)
}

pub(super) fn decode_status(body: &[u8]) -> Result<Status> {
    let (&code, message) = body.split_first().ok_or_else(|| protocol("status without a code"))?;
    let Some(index) = usize::from(code).checked_sub(1) else { return Ok(Ok(())) };
    let kind = KINDS.get(index).copied().unwrap_or(ErrorKind::Internal);
    Ok(Err(Error::new(kind, String::from_utf8_lossy(message))))
}

fn framed(body: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(4 + body.len());
    // Bodies are limited far below 4 GiB when they are made.
    frame.put_u32_le(u32::try_from(body.len()).unwrap_or(u32::MAX));
    frame.put_slice(body);
    frame.freeze()
}

fn put_access(body: &mut BytesMut, op: u8, access: &Access) {
    body.put_u8(op);
    body.put_u64_le(access.region);
    body.put_u64_le(access.key.generation);
    body.put_u128_le(access.key.token);
    for &(offset, len) in &access.ranges {
        body.put_u64_le(offset);
        body.put_u64_le(len);
    }
}

fn take_access(body: &mut &[u8]) -> Result<Access> {
    let region = body.try_get_u64_le().map_err(short)?;
    let generation = body.try_get_u64_le().map_err(short)?;
    let token = body.try_get_u128_le().map_err(short)?;
    let mut ranges = Vec::with_capacity(body.len() / 16);
    while !body.is_empty() {
        let offset = body.try_get_u64_le().map_err(short)?;
        ranges.push((offset, body.try_get_u64_le().map_err(short)?));
    }
    Ok(Access { region, key: RegionKey { generation, token }, ranges })
}

fn put_text(body: &mut BytesMut, text: &str) {
    // Agent names are limited to 255 bytes when the agent starts.
    body.put_u8(u8::try_from(text.len()).unwrap_or(u8::MAX));
    body.put_slice(text.as_bytes());
}

fn take_text(body: &mut &[u8]) -> Result<String> {
    let len = body.try_get_u8().map_err(short)?;
    let bytes = take(body, usize::from(len))?;
    String::from_utf8(bytes.to_vec()).map_err(|_| protocol("agent name is not UTF-8"))
}

fn take<'a>(body: &mut &'a [u8], len: usize) -> Result<&'a [u8]> {
    let (head, tail) = body.split_at_checked(len).ok_or_else(|| protocol("frame is cut short"))?;
    *body = tail;
    Ok(head)
}

fn short(_: bytes::TryGetError) -> Error {
    protocol("frame is cut short")
}

fn protocol(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Protocol, message)
}

const MAGIC: &[u8] = b"DTCP";
const VERSION: u16 = 1;
const HELLO: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 3;
const NOTIFY: u8 = 4;

/// Error kinds by code, from 1 on; the order is part of the protocol.
const KINDS: [ErrorKind; 9] = [
    ErrorKind::InvalidArgument,
    ErrorKind::OutOfBounds,
    ErrorKind::StaleRegion,
    ErrorKind::PermissionDenied,
    ErrorKind::Overloaded,
    ErrorKind::Protocol,
    ErrorKind::Closed,
    ErrorKind::DeadlineExceeded,
    ErrorKind::Internal,
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_and_statuses_survive_the_way() {
        let key = RegionKey { generation: 2, token: 3 };
        let access = Access { region: 1, key, ranges: vec![(4, 5), (6, 7)] };
        let hello = Request::Hello {
            target_name: "a".into(),
            target_incarnation: 1,
            name: "b".into(),
            incarnation: 2,
        };
        let notify = Request::Notify(Bytes::from_static(b"done"));
        for request in [hello, Request::Read(access.clone()), Request::Write(access), notify] {
            let frame = request.encode();
            assert_eq!(
                frame.len() - 4,
                u32::from_le_bytes(frame[..4].try_into().unwrap()) as usize
            );
            assert!(Request::decode(&frame[4..]).unwrap() == request);
            assert!(Request::decode(&frame[4..frame.len() - 1]).is_err() || frame[4] == NOTIFY);
        }
        for kind in KINDS {
            let frame = encode_status(&Err(Error::new(kind, "text")));
            let error = decode_status(&frame[4..]).unwrap().unwrap_err();
            assert_eq!((error.kind(), error.message()), (kind, "text"));
        }
        assert!(decode_status(&encode_status(&Ok(()))[4..]).unwrap().is_ok());
        let long = Error::new(ErrorKind::Internal, "ä".repeat(STATUS_BYTES_MAX));
        assert!(encode_status(&Err(long)).len() <= 4 + STATUS_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Request::decode(&bytes);
            let _ = decode_status(&bytes);
        }
    }
}
