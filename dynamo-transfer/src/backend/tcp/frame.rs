//! Frames as bytes: length-prefixed, little-endian, decoded without trust.

use bytes::{BufMut, Bytes, BytesMut};

use crate::descriptor::Ranges;
use crate::error::{Error, ErrorKind, RemoteMemory, Result};
use crate::memory::Token;
use crate::vocabulary::NOTIFICATION_BYTES_MAX;
use crate::wire::{
    Format, Hello, REASON_BYTES_MAX, Reader, framed, kind, protocol, put_flag, put_token, refusal,
};

/// What a client says.
#[derive(Clone, PartialEq)]
pub(super) enum Request {
    /// The first frame of a connection.
    Hello(Hello),
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
    /// A checksum comes behind the bytes.
    pub(super) is_checked: bool,
}

/// What an owner answers.
pub(super) type Status = Result<()>;

/// What is moved by one request: owners refuse more.
pub(super) const STRIPE_BYTES_MAX: u64 = 1 << 20;
pub(super) const STRIPE_CHUNKS_MAX: usize = 512;

/// What fits into a request; larger ones are refused before anything is allocated.
pub(super) const REQUEST_BYTES_MAX: usize = 1 + NOTIFICATION_BYTES_MAX;
pub(super) const STATUS_BYTES: usize = 8;

impl Request {
    pub(super) fn encode(&self) -> Bytes {
        let mut body = BytesMut::new();
        match self {
            Self::Hello(hello) => {
                body.put_u8(HELLO);
                hello.put(&FORMAT, &mut body);
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

    pub(super) fn decode(body: &[u8]) -> Result<Self> {
        let mut body = Reader::new(body);
        let request = match body.u8()? {
            HELLO => Self::Hello(Hello::take(&FORMAT, &mut body)?),
            READ => Self::Read(take_access(&mut body)?),
            WRITE => Self::Write(take_access(&mut body)?),
            NOTIFY => Self::Notify(body.notification()?),
            other => return Err(protocol(format!("request of type {other}"))),
        };
        body.end().map(|()| request)
    }
}

/// A status is a code, whether some of a refused write has been written, two bytes of nothing, and the
/// length of the reason behind it.
pub(super) fn encode_status(status: &Status) -> Bytes {
    let mut out = BytesMut::new();
    let refused = status.as_ref().err();
    let (code, reason) = refused.map_or((0, &[][..]), refusal);
    out.put_u8(code);
    put_flag(&mut out, refused.is_some_and(|e| e.remote_memory() != RemoteMemory::Untouched));
    out.put_bytes(0, 2);
    out.put_slice(&framed(reason));
    out.freeze()
}

/// A status without the reason that comes behind it.
pub(super) struct Head {
    refused: Option<(ErrorKind, RemoteMemory)>,
    pub(super) reason_bytes: usize,
}

impl Head {
    pub(super) fn decode(head: [u8; STATUS_BYTES]) -> Result<Self> {
        let [code, is_written, _, _, a, b, c, d] = head;
        let reason_bytes = u32::from_le_bytes([a, b, c, d]) as usize;
        if reason_bytes > REASON_BYTES_MAX {
            return Err(protocol(format!("status with a reason of {reason_bytes} bytes")));
        }
        let left = if Reader::new(&[is_written]).flag()? {
            RemoteMemory::Partial
        } else {
            RemoteMemory::Untouched
        };
        Ok(Self { refused: kind(code).map(|kind| (kind, left)), reason_bytes })
    }

    pub(super) fn status(&self, reason: &[u8]) -> Status {
        let Some((kind, left)) = self.refused else { return Ok(()) };
        Err(Error::new(kind, String::from_utf8_lossy(reason)).with_remote_memory(left))
    }
}

fn put_access(body: &mut BytesMut, op: u8, access: &Access) {
    body.put_u8(op);
    body.put_u64_le(access.region);
    put_token(body, &access.token);
    put_flag(body, access.is_checked);
    let mut ranges = access.ranges.iter();
    let len = ranges.clone().next().map_or(0, |range| range.1);
    let is_uniform = ranges.all(|range| range.1 == len);
    put_flag(body, is_uniform);
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

fn take_access(body: &mut Reader<'_>) -> Result<Access> {
    let (region, token, is_checked) = (body.u64()?, body.token()?, body.flag()?);
    let len = if body.flag()? { Some(body.u64()?) } else { None };
    let mut ranges = Vec::with_capacity((body.len() / 8).min(STRIPE_CHUNKS_MAX));
    while !body.is_empty() {
        if ranges.len() == STRIPE_CHUNKS_MAX {
            return Err(protocol(format!("request of more than {STRIPE_CHUNKS_MAX} ranges")));
        }
        let offset = body.u64()?;
        ranges.push((offset, len.map_or_else(|| body.u64(), Ok)?));
    }
    let ranges = Ranges::unchecked(ranges);
    if ranges.total() > STRIPE_BYTES_MAX {
        return Err(protocol(format!("request of {} bytes", ranges.total())));
    }
    Ok(Access { region, token, ranges, is_checked })
}

const FORMAT: Format = Format { magic: *b"DTCP", version: 5 };
const HELLO: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 3;
const NOTIFY: u8 = 4;

/// A request that is taken is written as one that says the same.
#[cfg(any(test, feature = "test-util"))]
pub(crate) fn fuzz_request(data: &[u8]) {
    if let Ok(request) = Request::decode(data) {
        let again = Request::decode(&request.encode()[4..]);
        assert!(again.is_ok_and(|again| again == request));
    }
}

/// A status that is taken is written as one that says the same, its reason behind it.
#[cfg(any(test, feature = "test-util"))]
pub(crate) fn fuzz_status(data: &[u8]) {
    let Some((head, rest)) = data.split_first_chunk() else { return };
    let Ok(read) = Head::decode(*head) else { return };
    // As whoever reads it takes it: a success has no reason to give.
    let status = read.status(&rest[..rest.len().min(read.reason_bytes)]);
    let again = encode_status(&status);
    let (head, rest) = again.split_first_chunk().expect("a status has a head");
    let read = Head::decode(*head).expect("one that was written");
    assert_eq!(rest.len(), read.reason_bytes);
    let said = |status: Status| status.err().map(|e| (e.kind(), e.remote_memory()));
    assert_eq!(said(read.status(rest)), said(status));
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
            Access { region: 1, token, ranges, is_checked: true }
        };
        let (mixed, uniform) = (access(&[(4, 5), (6, 7)]), access(&[(4, 5), (60, 5)]));
        let (target_name, name) = ("a".into(), "b".into());
        let hello = Hello { target_name, target_incarnation: 1, name, incarnation: 2 };
        let hello = Request::Hello(hello);
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
        for left in [RemoteMemory::Untouched, RemoteMemory::Partial] {
            let refused = Error::new(ErrorKind::Io, "text").with_remote_memory(left);
            let frame = encode_status(&Err(refused));
            let (head, reason) = frame.split_first_chunk().unwrap();
            let head = Head::decode(*head).unwrap();
            assert_eq!(head.reason_bytes, 4);
            let error = head.status(reason).unwrap_err();
            let told = (error.kind(), error.message(), error.remote_memory());
            assert_eq!(told, (ErrorKind::Io, "text", left));
        }
        let ok = Head::decode(encode_status(&Ok(()))[..].try_into().unwrap()).unwrap();
        assert!(ok.reason_bytes == 0 && ok.status(&[]).is_ok());
        assert!(Head::decode([0, 2, 0, 0, 0, 0, 0, 0]).is_err());
        let long = Error::new(ErrorKind::Internal, "ä".repeat(REASON_BYTES_MAX));
        assert_eq!(encode_status(&Err(long)).len(), STATUS_BYTES + REASON_BYTES_MAX);
    }

    #[test]
    fn what_is_more_than_a_stripe_is_refused() {
        let token = Token { generation: 2, is_writable: false, expires_ms: 0, proof: 3 };
        let refusal = |ranges: Vec<(u64, u64)>| {
            let access =
                Access { region: 1, token, ranges: Ranges::unchecked(ranges), is_checked: false };
            Request::decode(&Request::Read(access).encode()[4..]).err().map(|error| error.kind())
        };
        assert_eq!(refusal(vec![(0, STRIPE_BYTES_MAX)]), None);
        assert_eq!(refusal(vec![(0, STRIPE_BYTES_MAX), (0, 1)]), Some(ErrorKind::Protocol));
        assert_eq!(refusal(vec![(0, 1); STRIPE_CHUNKS_MAX]), None);
        assert_eq!(refusal(vec![(0, 1); STRIPE_CHUNKS_MAX + 1]), Some(ErrorKind::Protocol));
    }

    #[test]
    fn the_examples_for_fuzzing_are_requests() {
        let crates = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let inputs = std::fs::read_dir(crates.join("fuzz/corpus/transfer_request")).unwrap();
        let requests = inputs.map(|input| {
            let path = input.unwrap().path();
            Request::decode(&std::fs::read(&path).unwrap()).unwrap_or_else(|error| {
                panic!("{}: {error}", path.display());
            })
        });
        let is_checked = |request| match request {
            Request::Read(access) | Request::Write(access) => Some(access.is_checked),
            Request::Hello(_) | Request::Notify(_) => None,
        };
        let checked: Vec<_> = requests.filter_map(is_checked).collect();
        assert!(checked.contains(&true) && checked.contains(&false), "{checked:?}");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            fuzz_request(&bytes);
            fuzz_status(&bytes);
        }
    }
}
