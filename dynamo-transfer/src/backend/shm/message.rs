//! Control messages as bytes: length-prefixed, little-endian, decoded without trust.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::Proof;
use super::page::SLOTS;
use crate::config::NAME_BYTES_MAX;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Token;
use crate::transfer::NOTIFICATION_BYTES_MAX;

/// What a peer asks of an owner. All but `Close` are answered, one after the other.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Request {
    /// The first message of a connection.
    Hello {
        target_name: String,
        target_incarnation: u64,
        name: String,
        incarnation: u64,
        /// Regions will be opened: the answer comes with the page.
        opens: bool,
    },
    Open {
        region: u64,
        token: Token,
        is_write: bool,
        /// The peer may reach memory that it cannot map.
        takes_addresses: bool,
    },
    /// The peer has done with what it opened.
    Close {
        slot: u32,
    },
    Notify(Bytes),
}

/// An open region, as its owner describes it: the concatenation of its pieces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Opened {
    pub(super) slot: u32,
    /// Lengths of the files that come with the message, if the region is in files.
    pub(super) files: Vec<u64>,
    /// Where each piece is, and its length: the index of a file, at its beginning, or an address.
    pub(super) pieces: Vec<(u64, u64)>,
}

/// What fits into a message of each sort; larger ones are refused before anything is allocated.
pub(super) const HELLO_BYTES_MAX: usize = 64 + 2 * NAME_BYTES_MAX;
pub(super) const REQUEST_BYTES_MAX: usize = 1 + NOTIFICATION_BYTES_MAX;
pub(super) const ANSWER_BYTES_MAX: usize = 64 + 8 * FILES_MAX + 16 * PIECES_MAX;
const TEXT_BYTES_MAX: usize = 4 << 10;

/// Files that come with one message: the kernel takes 253.
pub(super) const FILES_MAX: usize = 64;

/// Pieces of one region; those of more go another way.
pub(super) const PIECES_MAX: usize = 1 << 16;

impl Request {
    pub(super) fn encode(&self) -> Bytes {
        let mut body = BytesMut::new();
        match self {
            Self::Hello { target_name, target_incarnation, name, incarnation, opens } => {
                body.put_u8(HELLO);
                body.put_slice(MAGIC);
                body.put_u16_le(VERSION);
                put_text(&mut body, target_name);
                body.put_u64_le(*target_incarnation);
                put_text(&mut body, name);
                body.put_u64_le(*incarnation);
                body.put_u8(u8::from(*opens));
            }
            Self::Open { region, token, is_write, takes_addresses } => {
                body.put_u8(OPEN);
                body.put_u64_le(*region);
                body.put_u64_le(token.generation);
                body.put_u64_le(token.expires_ms);
                body.put_u128_le(token.proof);
                body.put_u8(u8::from(token.is_writable));
                body.put_u8(u8::from(*is_write));
                body.put_u8(u8::from(*takes_addresses));
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

    pub(super) fn decode(mut body: &[u8]) -> Result<Self> {
        let body = &mut body;
        let request = match body.try_get_u8().map_err(short)? {
            HELLO => take_hello(body)?,
            OPEN => {
                let region = body.try_get_u64_le().map_err(short)?;
                let generation = body.try_get_u64_le().map_err(short)?;
                let expires_ms = body.try_get_u64_le().map_err(short)?;
                let proof = body.try_get_u128_le().map_err(short)?;
                let is_writable = take_flag(body)?;
                let token = Token { generation, is_writable, expires_ms, proof };
                let (is_write, takes_addresses) = (take_flag(body)?, take_flag(body)?);
                Self::Open { region, token, is_write, takes_addresses }
            }
            CLOSE => Self::Close { slot: body.try_get_u32_le().map_err(short)? },
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

/// An answer is a code, and behind it a message or what was asked for.
pub(super) fn encode_answer(answer: &Result<Bytes>) -> Bytes {
    let mut body = BytesMut::new();
    match answer {
        Ok(content) => {
            body.put_u8(0);
            body.put_slice(content);
        }
        Err(error) => {
            let code = KINDS.iter().position(|kind| *kind == error.kind());
            let code = code.and_then(|index| u8::try_from(index + 1).ok());
            let text = error.message().as_bytes();
            body.put_u8(code.unwrap_or(u8::MAX));
            body.put_slice(&text[..text.len().min(TEXT_BYTES_MAX)]);
        }
    }
    framed(&body)
}

/// Returns what was asked for, or the owner's refusal.
pub(super) fn decode_answer(mut body: &[u8]) -> Result<&[u8]> {
    let code = body.try_get_u8().map_err(short)?;
    let Some(index) = usize::from(code).checked_sub(1) else { return Ok(body) };
    let text = String::from_utf8_lossy(&body[..body.len().min(TEXT_BYTES_MAX)]);
    Err(Error::new(KINDS.get(index).copied().unwrap_or(ErrorKind::Internal), text))
}

/// The welcome says where the owner's memory has its proof.
pub(super) fn encode_welcome(proof: &Proof) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u64_le(proof.place);
    out.put_u128_le(proof.value);
    out.freeze()
}

pub(super) fn decode_welcome(mut body: &[u8]) -> Result<Proof> {
    let place = body.try_get_u64_le().map_err(short)?;
    let value = body.try_get_u128_le().map_err(short)?;
    if body.is_empty() { Ok(Proof { place, value }) } else { Err(protocol("long welcome")) }
}

impl Opened {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u32_le(self.slot);
        // Limited by whoever opens.
        out.put_u16_le(u16::try_from(self.files.len()).unwrap_or(u16::MAX));
        self.files.iter().for_each(|len| out.put_u64_le(*len));
        for (place, len) in &self.pieces {
            out.put_u64_le(*place);
            out.put_u64_le(*len);
        }
        out.freeze()
    }

    pub(super) fn decode(mut body: &[u8]) -> Result<Self> {
        let body = &mut body;
        let slot = body.try_get_u32_le().map_err(short)?;
        if slot >= SLOTS {
            return Err(protocol(format!("slot {slot} of {SLOTS}")));
        }
        let files_count = usize::from(body.try_get_u16_le().map_err(short)?);
        if files_count > FILES_MAX {
            return Err(protocol(format!("region in {files_count} files")));
        }
        let files = (0..files_count).map(|_| body.try_get_u64_le().map_err(short));
        let files = files.collect::<Result<Vec<_>>>()?;
        if !body.len().is_multiple_of(16) || body.len() / 16 > PIECES_MAX {
            return Err(protocol(format!("pieces of {} bytes", body.len())));
        }
        let (mut pieces, mut total) = (Vec::with_capacity(body.len() / 16), 0u64);
        while !body.is_empty() {
            let place = body.try_get_u64_le().map_err(short)?;
            let len = body.try_get_u64_le().map_err(short)?;
            total = total.checked_add(len).ok_or_else(|| protocol("region beyond 2^64 bytes"))?;
            let lies_inside = if files.is_empty() {
                place.checked_add(len).is_some() && usize::try_from(len).is_ok()
            } else {
                let file = usize::try_from(place).ok().and_then(|index| files.get(index));
                file.is_some_and(|file| len <= *file)
            };
            if !lies_inside {
                return Err(protocol(format!("piece of {len} bytes at {place:x}")));
            }
            pieces.push((place, len));
        }
        Ok(Self { slot, files, pieces })
    }
}

fn take_hello(body: &mut &[u8]) -> Result<Request> {
    if take(body, MAGIC.len())? != MAGIC {
        return Err(protocol("hello without magic"));
    }
    let version = body.try_get_u16_le().map_err(short)?;
    if version != VERSION {
        return Err(protocol(format!("hello of version {version}, this is {VERSION}")));
    }
    Ok(Request::Hello {
        target_name: take_text(body)?,
        target_incarnation: body.try_get_u64_le().map_err(short)?,
        name: take_text(body)?,
        incarnation: body.try_get_u64_le().map_err(short)?,
        opens: take_flag(body)?,
    })
}

fn framed(body: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(4 + body.len());
    // Bodies are limited far below 4 GiB when they are made.
    frame.put_u32_le(u32::try_from(body.len()).unwrap_or(u32::MAX));
    frame.put_slice(body);
    frame.freeze()
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
    let (head, tail) =
        body.split_at_checked(len).ok_or_else(|| protocol("message is cut short"))?;
    *body = tail;
    Ok(head)
}

fn short(_: bytes::TryGetError) -> Error {
    protocol("message is cut short")
}

fn protocol(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Protocol, message)
}

const MAGIC: &[u8] = b"DTSM";
const VERSION: u16 = 1;
const HELLO: u8 = 1;
const OPEN: u8 = 2;
const CLOSE: u8 = 3;
const NOTIFY: u8 = 4;

/// Error kinds by code, from 1 on; the order is part of the protocol.
const KINDS: [ErrorKind; 9] = [
    ErrorKind::InvalidArgument,
    ErrorKind::OutOfBounds,
    ErrorKind::StaleRegion,
    ErrorKind::PermissionDenied,
    ErrorKind::BackendUnavailable,
    ErrorKind::Overloaded,
    ErrorKind::Protocol,
    ErrorKind::Closed,
    ErrorKind::Internal,
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn body(frame: &Bytes) -> &[u8] {
        let (len, body) = frame.split_first_chunk().unwrap();
        assert_eq!(u32::from_le_bytes(*len) as usize, body.len());
        body
    }

    #[test]
    fn messages_survive_the_way_and_cut_ones_are_refused() {
        let token = Token { generation: 2, is_writable: true, expires_ms: 4, proof: 3 };
        let hello = Request::Hello {
            target_name: "a".into(),
            target_incarnation: 1,
            name: "b".into(),
            incarnation: 2,
            opens: true,
        };
        let open = Request::Open { region: 1, token, is_write: true, takes_addresses: false };
        let notify = Request::Notify(Bytes::from_static(b"done"));
        for request in [hello, open, Request::Close { slot: 9 }, notify] {
            let frame = request.encode();
            let body = body(&frame);
            assert_eq!(Request::decode(body).unwrap(), request);
            assert!(Request::decode(&body[..body.len() - 1]).is_err() || body[0] == NOTIFY);
        }
        for kind in KINDS {
            let frame = encode_answer(&Err(Error::new(kind, "text")));
            let error = decode_answer(body(&frame)).unwrap_err();
            assert_eq!((error.kind(), error.message()), (kind, "text"));
        }
        let frame = encode_answer(&Ok(Bytes::from_static(b"it")));
        assert_eq!(decode_answer(body(&frame)).unwrap(), b"it");
        let proof = Proof { place: 5, value: 6 };
        assert_eq!(decode_welcome(&encode_welcome(&proof)).unwrap(), proof);
    }

    #[test]
    fn an_open_region_is_what_its_files_hold() {
        let decode = |files: &[u64], pieces: &[(u64, u64)]| {
            let opened = Opened { slot: 7, files: files.to_vec(), pieces: pieces.to_vec() };
            Opened::decode(&opened.encode()).map(|decoded| assert_eq!(decoded, opened))
        };
        decode(&[10, 20], &[(0, 10), (1, 20), (1, 0), (0, 3)]).unwrap();
        decode(&[], &[(4096, 10), (u64::MAX, 0)]).unwrap();
        for bad in [(0, 11), (2, 1), (u64::MAX, 0)] {
            assert_eq!(decode(&[10, 20], &[bad]).unwrap_err().kind(), ErrorKind::Protocol);
        }
        let far = Opened { slot: SLOTS, ..Opened::default() };
        assert!(Opened::decode(&far.encode()).is_err());
        assert!(decode(&[], &[(u64::MAX, 1)]).is_err());
        assert!(decode(&[], &[(0, u64::MAX), (0, 1)]).is_err());
        assert!(decode(&[1; FILES_MAX + 1], &[]).is_err());
        assert!(decode(&[], &vec![(0, 1); PIECES_MAX + 1]).is_err());
        let most = Opened { slot: 0, files: vec![1; FILES_MAX], pieces: vec![(0, 1); PIECES_MAX] };
        assert!(encode_answer(&Ok(most.encode())).len() - 4 <= ANSWER_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Request::decode(&bytes);
            let _ = Opened::decode(&bytes);
            let _ = decode_welcome(&bytes);
            let _ = decode_answer(&bytes);
        }

        #[test]
        fn whatever_is_taken_of_any_bytes_is_written_the_same_again(
            kind in 1u8..=4,
            mut bytes in prop::collection::vec(any::<u8>(), 0..120),
        ) {
            bytes.insert(0, kind);
            if let Ok(request) = Request::decode(&bytes) {
                prop_assert_eq!(&request.encode()[4..], &bytes[..]);
            }
        }
    }
}
