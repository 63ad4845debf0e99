use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::error::{Error, ErrorKind, Result};

/// What one datagram says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Datagram {
    /// Asks for a link.
    Open {
        /// The link of whoever asks.
        from: u64,
    },
    /// Answers [`Open`](Self::Open).
    Opened {
        /// The link of whoever asked.
        to: u64,
        /// The link of whoever answers.
        from: u64,
    },
    /// Carries bytes.
    Data {
        /// The receiver's link.
        to: u64,
        /// Which datagram of the link this is, counted from 0.
        number: u64,
        /// How many datagrams the sender has taken in.
        taken: u64,
        /// The bytes.
        bytes: Bytes,
    },
    /// Says what has arrived.
    Ack {
        /// The receiver's link.
        to: u64,
        /// How many datagrams the sender has taken in.
        taken: u64,
    },
    /// Says that later datagrams have arrived, and the next one has not.
    Missing {
        /// The receiver's link.
        to: u64,
        /// How many datagrams the sender has taken in.
        taken: u64,
    },
    /// Says that there is no such link, or no more.
    Closed {
        /// The receiver's link.
        to: u64,
        /// The link that is not there; 0 if one was asked for and refused.
        from: u64,
    },
}

impl Datagram {
    /// Returns the receiver's link; `None` if it is yet to be made.
    pub fn to(&self) -> Option<u64> {
        match self {
            Self::Open { .. } => None,
            Self::Opened { to, .. }
            | Self::Data { to, .. }
            | Self::Ack { to, .. }
            | Self::Missing { to, .. }
            | Self::Closed { to, .. } => Some(*to),
        }
    }

    /// Encodes it.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER_BYTES);
        match self {
            Self::Open { from } => {
                out.put_u8(OPEN);
                out.put_slice(MAGIC);
                out.put_u16_le(VERSION);
                out.put_u64_le(*from);
            }
            Self::Opened { to, from } => put(&mut out, OPENED, &[*to, *from]),
            Self::Data { to, number, taken, bytes } => {
                return encode_data(*to, *number, *taken, bytes);
            }
            Self::Ack { to, taken } => put(&mut out, ACK, &[*to, *taken]),
            Self::Missing { to, taken } => put(&mut out, MISSING, &[*to, *taken]),
            Self::Closed { to, from } => put(&mut out, CLOSED, &[*to, *from]),
        }
        out.freeze()
    }

    /// Decodes one; fails with [`Protocol`](ErrorKind::Protocol) on anything else.
    pub fn decode(mut bytes: Bytes) -> Result<Self> {
        let bad = || Error::new(ErrorKind::Protocol, "no datagram of a link");
        let kind = bytes.try_get_u8().map_err(|_| bad())?;
        if kind == OPEN {
            let expected = MAGIC.len() + 2 + 8;
            if bytes.len() != expected || !bytes.starts_with(MAGIC) {
                return Err(bad());
            }
            bytes.advance(MAGIC.len());
            let version = bytes.get_u16_le();
            if version != VERSION {
                let message = format!("link of version {version}, known is {VERSION}");
                return Err(Error::new(ErrorKind::Protocol, message));
            }
            return Ok(Self::Open { from: bytes.get_u64_le() });
        }
        let mut word = || bytes.try_get_u64_le().map_err(|_| bad());
        let (to, second) = (word()?, word()?);
        let datagram = match kind {
            OPENED => Self::Opened { to, from: second },
            DATA => {
                let taken = word()?;
                return Ok(Self::Data { to, number: second, taken, bytes });
            }
            ACK => Self::Ack { to, taken: second },
            MISSING => Self::Missing { to, taken: second },
            CLOSED => Self::Closed { to, from: second },
            _ => return Err(bad()),
        };
        if bytes.is_empty() { Ok(datagram) } else { Err(bad()) }
    }
}

/// Encodes [`Datagram::Data`].
pub(super) fn encode_data(to: u64, number: u64, taken: u64, bytes: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER_BYTES + bytes.len());
    put(&mut out, DATA, &[to, number, taken]);
    out.put_slice(bytes);
    out.freeze()
}

fn put(out: &mut BytesMut, kind: u8, words: &[u64]) {
    out.put_u8(kind);
    words.iter().for_each(|word| out.put_u64_le(*word));
}

/// Length of what stands before the bytes, in bytes.
pub const HEADER_BYTES: usize = 25;

const OPEN: u8 = 0;
const OPENED: u8 = 1;
const DATA: u8 = 2;
const ACK: u8 = 3;
const MISSING: u8 = 4;
const CLOSED: u8 = 5;

const MAGIC: &[u8] = b"DYNL";
const VERSION: u16 = 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn datagrams_are_what_the_format_says() {
        let (to, from) = (0x0102, 0x0304);
        let golden: [(Datagram, &[u8]); 6] = [
            (Datagram::Open { from }, b"\0DYNL\x01\0\x04\x03\0\0\0\0\0\0"),
            (Datagram::Opened { to, from }, b"\x01\x02\x01\0\0\0\0\0\0\x04\x03\0\0\0\0\0\0"),
            (
                Datagram::Data { to, number: 5, taken: 6, bytes: Bytes::from_static(b"hi") },
                b"\x02\x02\x01\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0hi",
            ),
            (Datagram::Ack { to, taken: 7 }, b"\x03\x02\x01\0\0\0\0\0\0\x07\0\0\0\0\0\0\0"),
            (Datagram::Missing { to, taken: 8 }, b"\x04\x02\x01\0\0\0\0\0\0\x08\0\0\0\0\0\0\0"),
            (Datagram::Closed { to, from }, b"\x05\x02\x01\0\0\0\0\0\0\x04\x03\0\0\0\0\0\0"),
        ];
        for (datagram, bytes) in golden {
            assert_eq!(datagram.encode(), bytes, "{datagram:?}");
            let decoded = Datagram::decode(Bytes::from_static(bytes)).unwrap();
            assert_eq!(decoded, datagram);
            // All but data has one length.
            let data = matches!(datagram, Datagram::Data { .. });
            let shortest = if data { HEADER_BYTES } else { bytes.len() };
            for at in 0..shortest {
                assert!(Datagram::decode(Bytes::copy_from_slice(&bytes[..at])).is_err());
            }
            let longer = [bytes, &[0]].concat();
            assert_eq!(Datagram::decode(longer.into()).is_ok(), data);
        }
        let newer = Bytes::from_static(b"\0DYNL\x02\0\x04\x03\0\0\0\0\0\0");
        assert!(Datagram::decode(newer).unwrap_err().message().contains("version 2"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(datagram) = Datagram::decode(bytes.clone().into()) {
                prop_assert_eq!(datagram.encode(), bytes);
            }
        }
    }
}
