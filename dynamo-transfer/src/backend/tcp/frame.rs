//! Frames as bytes: length-prefixed, little-endian, decoded without trust.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::config::NAME_BYTES_MAX;
use crate::descriptor::Ranges;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Token;
use crate::transfer::NOTIFICATION_BYTES_MAX;

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
    pub(super) token: Token,
    pub(super) ranges: Ranges,
}

/// What an owner answers.
pub(super) type Status = Result<()>;

/// What is moved by one request: owners refuse more.
pub(super) const STRIPE_BYTES_MAX: u64 = 1 << 20;
pub(super) const STRIPE_CHUNKS_MAX: usize = 512;

/// What fits into a frame of each sort; larger ones are refused before anything is allocated.
pub(super) const HELLO_BYTES_MAX: usize = 64 + 2 * NAME_BYTES_MAX;
pub(super) const REQUEST_BYTES_MAX: usize = 1 + NOTIFICATION_BYTES_MAX;
pub(super) const STATUS_BYTES: usize = 8;
pub(super) const MESSAGE_BYTES_MAX: usize = 4 << 10;

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

/// A status is a code, three bytes of nothing, and the length of the message behind it.
pub(super) fn encode_status(status: &Status) -> Bytes {
    let mut out = BytesMut::new();
    let (code, message) = match status {
        Ok(()) => (0, ""),
        Err(error) => {
            let code = KINDS.iter().position(|kind| *kind == error.kind());
            (
                code.and_then(|index| u8::try_from(index + 1).ok()).unwrap_or(u8::MAX),
                error.message(),
            )
        }
    };
    let message = &message.as_bytes()[..message.len().min(MESSAGE_BYTES_MAX)];
    out.put_u8(code);
    out.put_bytes(0, 3);
    // Limited just above.
    out.put_u32_le(u32::try_from(message.len()).unwrap_or(u32::MAX));
    out.put_slice(message);
    out.freeze()
}

/// Returns the kind of error, if it is one, and the length of the message behind.
pub(super) fn decode_status(head: [u8; STATUS_BYTES]) -> Result<(Option<ErrorKind>, usize)> {
    let [code, _, _, _, a, b, c, d] = head;
    let len = u32::from_le_bytes([a, b, c, d]) as usize;
    if len > MESSAGE_BYTES_MAX {
        return Err(protocol(format!("status with a message of {len} bytes")));
    }
    let index = usize::from(code).checked_sub(1);
    let kind = index.map(|index| KINDS.get(index).copied().unwrap_or(ErrorKind::Internal));
    Ok((kind, len))
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
    body.put_u64_le(access.token.generation);
    body.put_u64_le(access.token.expires_ms);
    body.put_u128_le(access.token.proof);
    body.put_u8(u8::from(access.token.is_writable));
    let mut ranges = access.ranges.iter();
    let len = ranges.clone().next().map_or(0, |range| range.1);
    let is_uniform = ranges.all(|range| range.1 == len);
    body.put_u8(u8::from(is_uniform));
    if is_uniform {
        body.put_u64_le(len);
    }
    for (offset, len) in access.ranges.iter() {
        body.put_u64_le(offset);
        if !is_uniform {
            body.put_u64_le(len);
        }
    }
}

fn take_access(body: &mut &[u8]) -> Result<Access> {
    let region = body.try_get_u64_le().map_err(short)?;
    let generation = body.try_get_u64_le().map_err(short)?;
    let expires_ms = body.try_get_u64_le().map_err(short)?;
    let proof = body.try_get_u128_le().map_err(short)?;
    let is_writable = take_flag(body)?;
    let len = if take_flag(body)? { Some(body.try_get_u64_le().map_err(short)?) } else { None };
    let mut ranges = Vec::with_capacity((body.len() / 8).min(STRIPE_CHUNKS_MAX));
    while !body.is_empty() {
        if ranges.len() == STRIPE_CHUNKS_MAX {
            return Err(protocol(format!("request of more than {STRIPE_CHUNKS_MAX} ranges")));
        }
        let offset = body.try_get_u64_le().map_err(short)?;
        ranges.push((offset, len.map_or_else(|| body.try_get_u64_le().map_err(short), Ok)?));
    }
    let ranges = Ranges::unchecked(ranges);
    if ranges.total() > STRIPE_BYTES_MAX {
        return Err(protocol(format!("request of {} bytes", ranges.total())));
    }
    Ok(Access { region, token: Token { generation, is_writable, expires_ms, proof }, ranges })
}

fn take_flag(body: &mut &[u8]) -> Result<bool> {
    match body.try_get_u8().map_err(short)? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(protocol(format!("flag of {other}"))),
    }
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
const VERSION: u16 = 2;
const HELLO: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 3;
const NOTIFY: u8 = 4;

/// Error kinds by code, from 1 on; the order is part of the protocol.
const KINDS: [ErrorKind; 13] = [
    ErrorKind::InvalidArgument,
    ErrorKind::OutOfBounds,
    ErrorKind::StaleRegion,
    ErrorKind::PermissionDenied,
    ErrorKind::Overloaded,
    ErrorKind::Protocol,
    ErrorKind::Closed,
    ErrorKind::DeadlineExceeded,
    ErrorKind::Internal,
    ErrorKind::NotFound,
    ErrorKind::StorageFull,
    ErrorKind::Io,
    ErrorKind::BackendUnavailable,
];

/// A request that is taken is written as one that says the same.
#[cfg(any(test, feature = "test-util"))]
pub(crate) fn fuzz_request(data: &[u8]) {
    if let Ok(request) = Request::decode(data) {
        let again = Request::decode(&request.encode()[4..]);
        assert!(again.is_ok_and(|again| again == request));
    }
}

#[cfg(any(test, feature = "test-util"))]
pub(crate) fn fuzz_status(data: &[u8]) {
    if let Some(Ok((_, len))) = data.first_chunk().map(|head| decode_status(*head)) {
        assert!(len <= MESSAGE_BYTES_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_and_statuses_survive_the_way() {
        let token = Token { generation: 2, is_writable: true, expires_ms: 4, proof: 3 };
        let access = |ranges: &[(u64, u64)]| {
            let ranges = Ranges::unchecked(ranges.iter().copied());
            Access { region: 1, token, ranges }
        };
        let (mixed, uniform) = (access(&[(4, 5), (6, 7)]), access(&[(4, 5), (60, 5)]));
        let hello = Request::Hello {
            target_name: "a".into(),
            target_incarnation: 1,
            name: "b".into(),
            incarnation: 2,
        };
        let notify = Request::Notify(Bytes::from_static(b"done"));
        for request in [hello, Request::Read(mixed), Request::Write(uniform), notify] {
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
            let (head, message) = frame.split_first_chunk().unwrap();
            assert_eq!(decode_status(*head).unwrap(), (Some(kind), 4));
            assert_eq!(message, b"text");
        }
        let ok = encode_status(&Ok(()));
        assert_eq!(decode_status(ok[..].try_into().unwrap()).unwrap(), (None, 0));
        let long = Error::new(ErrorKind::Internal, "ä".repeat(MESSAGE_BYTES_MAX));
        assert_eq!(encode_status(&Err(long)).len(), STATUS_BYTES + MESSAGE_BYTES_MAX);
    }

    #[test]
    fn what_is_more_than_a_stripe_is_refused() {
        let token = Token { generation: 2, is_writable: false, expires_ms: 0, proof: 3 };
        let refusal = |ranges: Vec<(u64, u64)>| {
            let access = Access { region: 1, token, ranges: Ranges::unchecked(ranges) };
            Request::decode(&Request::Read(access).encode()[4..]).err().map(|error| error.kind())
        };
        assert_eq!(refusal(vec![(0, STRIPE_BYTES_MAX)]), None);
        assert_eq!(refusal(vec![(0, STRIPE_BYTES_MAX), (0, 1)]), Some(ErrorKind::Protocol));
        assert_eq!(refusal(vec![(0, 1); STRIPE_CHUNKS_MAX]), None);
        assert_eq!(refusal(vec![(0, 1); STRIPE_CHUNKS_MAX + 1]), Some(ErrorKind::Protocol));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            fuzz_request(&bytes);
            fuzz_status(&bytes);
        }
    }
}
