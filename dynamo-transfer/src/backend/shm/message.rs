//! Control messages as bytes: length-prefixed, little-endian, decoded without trust.

use bytes::{BufMut, Bytes, BytesMut};

use super::Proof;
use super::opened::OPENED_BYTES_MAX;
use crate::error::Result;
use crate::memory::{Right, Token};
use crate::vocabulary::NOTIFICATION_BYTES_MAX;
use crate::wire::{
    Format, Hello, Reader, framed, protocol, put_flag, put_right, put_status, put_token,
};

/// What a peer asks of an owner. All but `Close` are answered, one after the other.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Request {
    /// The first message of a connection.
    Hello {
        hello: Hello,
        /// Regions will be opened: the answer comes with the page.
        opens: bool,
    },
    Open {
        region: u64,
        token: Token,
        right: Right,
        /// The peer may reach memory that it cannot map.
        takes_addresses: bool,
    },
    /// The peer has done with what it opened.
    Close {
        slot: u32,
    },
    Notify(Bytes),
}

/// What fits into a message of each sort; larger ones are refused before anything is allocated.
pub(super) const REQUEST_BYTES_MAX: usize = 1 + NOTIFICATION_BYTES_MAX;
pub(super) const ANSWER_BYTES_MAX: usize = 1 + OPENED_BYTES_MAX;

impl Request {
    pub(super) fn encode(&self) -> Bytes {
        let mut body = BytesMut::new();
        match self {
            Self::Hello { hello, opens } => {
                body.put_u8(HELLO);
                hello.put(&FORMAT, &mut body);
                put_flag(&mut body, *opens);
            }
            Self::Open { region, token, right, takes_addresses } => {
                body.put_u8(OPEN);
                body.put_u64_le(*region);
                put_token(&mut body, token);
                put_right(&mut body, *right);
                put_flag(&mut body, *takes_addresses);
            }
            Self::Close { slot } => {
                body.put_u8(CLOSE);
                body.put_u32_le(*slot);
            }
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
            HELLO => Self::Hello { hello: Hello::take(&FORMAT, &mut body)?, opens: body.flag()? },
            OPEN => Self::Open {
                region: body.u64()?,
                token: body.token()?,
                right: body.right()?,
                takes_addresses: body.flag()?,
            },
            CLOSE => Self::Close { slot: body.u32()? },
            NOTIFY => Self::Notify(body.notification()?),
            other => return Err(protocol(format!("request of type {other}"))),
        };
        body.end().map(|()| request)
    }
}

/// An answer is a status, and behind it what was asked for.
pub(super) fn encode_answer(answer: Result<Bytes>) -> Bytes {
    let mut body = BytesMut::new();
    let (status, content) = match answer {
        Ok(content) => (Ok(()), content),
        Err(error) => (Err(error), Bytes::new()),
    };
    put_status(&mut body, &status);
    body.put_slice(&content);
    framed(&body)
}

/// Returns what was asked for, or the owner's refusal.
pub(super) fn decode_answer(body: &[u8]) -> Result<&[u8]> {
    let mut body = Reader::new(body);
    body.status()?.map(|()| body.rest())
}

/// The welcome says where the owner's memory has its proof.
pub(super) fn encode_welcome(proof: &Proof) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u64_le(proof.place);
    out.put_u128_le(proof.value);
    out.freeze()
}

pub(super) fn decode_welcome(body: &[u8]) -> Result<Proof> {
    let mut body = Reader::new(body);
    let proof = Proof { place: body.u64()?, value: body.u128()? };
    body.end().map(|()| proof)
}

const FORMAT: Format = Format { magic: *b"DTSM", version: 2 };
const HELLO: u8 = 1;
const OPEN: u8 = 2;
const CLOSE: u8 = 3;
const NOTIFY: u8 = 4;

/// A request that is taken is written as the same bytes.
#[cfg(any(test, feature = "test-util"))]
pub(crate) fn fuzz_request(data: &[u8]) {
    if let Ok(request) = Request::decode(data) {
        assert_eq!(request.encode()[4..], *data);
    }
}

/// An answer is read, and if it is a welcome, written as the same bytes.
#[cfg(any(test, feature = "test-util"))]
pub(crate) fn fuzz_answer(data: &[u8]) {
    let Ok(content) = decode_answer(data) else { return };
    if let Ok(proof) = decode_welcome(content) {
        assert_eq!(encode_welcome(&proof)[..], *content);
    }
    super::opened::fuzz(content);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};
    use proptest::prelude::*;

    fn body(frame: &Bytes) -> &[u8] {
        let (len, body) = frame.split_first_chunk().unwrap();
        assert_eq!(u32::from_le_bytes(*len) as usize, body.len());
        body
    }

    #[test]
    fn messages_survive_the_way_and_cut_ones_are_refused() {
        let token = Token { generation: 2, is_writable: true, expires_ms: 4, proof: 3 };
        let (target_name, name) = ("a".into(), "b".into());
        let hello = Hello { target_name, target_incarnation: 1, name, incarnation: 2 };
        let hello = Request::Hello { hello, opens: true };
        let open = Request::Open { region: 1, token, right: Right::Write, takes_addresses: false };
        let notify = Request::Notify(Bytes::from_static(b"done"));
        for request in [hello, open, Request::Close { slot: 9 }, notify] {
            let frame = request.encode();
            let body = body(&frame);
            assert_eq!(Request::decode(body).unwrap(), request);
            assert!(Request::decode(&body[..body.len() - 1]).is_err() || body[0] == NOTIFY);
        }
        let frame = encode_answer(Err(Error::new(ErrorKind::StaleRegion, "text")));
        let error = decode_answer(body(&frame)).unwrap_err();
        assert_eq!((error.kind(), error.message()), (ErrorKind::StaleRegion, "text"));
        let frame = encode_answer(Ok(Bytes::from_static(b"it")));
        assert_eq!(decode_answer(body(&frame)).unwrap(), b"it");
        let proof = Proof { place: 5, value: 6 };
        assert_eq!(decode_welcome(&encode_welcome(&proof)).unwrap(), proof);
    }

    proptest! {
        #[test]
        fn whatever_is_taken_of_any_bytes_is_written_the_same_again(
            kind in 0u8..=4,
            mut bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            bytes.insert(0, kind);
            fuzz_request(&bytes);
            fuzz_answer(&bytes);
        }
    }
}
