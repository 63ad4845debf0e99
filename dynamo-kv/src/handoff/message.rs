//! What owner and puller say to each other, as notifications of their agents; little-endian, decoded
//! without trust.
//!
//! ```text
//! version u16 │ kind u8 │ stage 24 (0 to 2 only) │ attempt 16 │ rest
//! ```

use std::fmt::Display;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use dynamo_core::{Error, ErrorKind, Result};

use crate::random::random;

/// Names one hold of an owner, which knows its own by their tag: nobody else can make one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct StageId {
    number: u64,
    tag: [u8; 16],
}

/// Names one attempt to pull one hold; a random number, which only its puller and the owner know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Attempt(pub(super) [u8; 16]);

/// Any of them may be lost, come twice, late, or before an earlier one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    /// A puller wants the blocks, or has moved more of them. `from` is its agent's metadata.
    Claim { stage: StageId, attempt: Attempt, moved: u64, from: Bytes },
    /// It has read them.
    Done { stage: StageId, attempt: Attempt, from: Bytes },
    /// It has given up.
    Release { stage: StageId, attempt: Attempt },
    /// They are reserved for it, and in the one region of the owner's metadata.
    Granted { attempt: Attempt, region: Bytes },
    /// They are reserved for somebody else, for so long at least.
    Taken { attempt: Attempt, left: Duration },
    /// Nothing is held for it, and never will be.
    Over { attempt: Attempt },
    /// What it has read is its own: the hold has ended as pulled by it.
    Settled { attempt: Attempt },
}

impl StageId {
    /// Names number `number` of the owner that has `key`.
    pub(super) fn new(key: &[u8; 32], number: u64) -> Self {
        let mut tag = [0; 16];
        tag.copy_from_slice(&blake3::keyed_hash(key, &number.to_le_bytes()).as_bytes()[..16]);
        Self { number, tag }
    }

    #[cfg(test)]
    pub(super) const fn of_test(number: u64) -> Self {
        Self { number, tag: [0; 16] }
    }

    /// Tells whether the owner that has `key` made it.
    pub(super) fn is_of(&self, key: &[u8; 32]) -> bool {
        // Whoever guesses at a tag learns nothing from how long it takes: the hashes are compared.
        blake3::hash(&self.tag) == blake3::hash(&Self::new(key, self.number).tag)
    }

    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u64_le(self.number);
        out.put_slice(&self.tag);
    }

    pub(super) fn take(body: &mut &[u8]) -> Option<Self> {
        let number = body.try_get_u64_le().ok()?;
        let (tag, rest) = body.split_first_chunk()?;
        *body = rest;
        Some(Self { number, tag: *tag })
    }
}

impl Attempt {
    pub(super) fn random() -> Result<Self> {
        random().map(Self)
    }

    fn take(body: &mut &[u8]) -> Option<Self> {
        let (attempt, rest) = body.split_first_chunk()?;
        *body = rest;
        Some(Self(*attempt))
    }
}

impl Message {
    pub(super) fn encode(&self) -> Bytes {
        let (kind, stage, attempt) = self.head();
        let mut out = BytesMut::new();
        out.put_u16_le(VERSION);
        out.put_u8(kind);
        if let Some(stage) = stage {
            stage.put(&mut out);
        }
        out.put_slice(&attempt.0);
        match self {
            Self::Claim { moved, from, .. } => {
                out.put_u64_le(*moved);
                out.put_slice(from);
            }
            Self::Granted { region, .. } => out.put_slice(region),
            Self::Taken { left, .. } => {
                out.put_u32_le(u32::try_from(left.as_millis()).unwrap_or(u32::MAX));
            }
            Self::Done { from, .. } => out.put_slice(from),
            Self::Release { .. } | Self::Over { .. } | Self::Settled { .. } => {}
        }
        out.freeze()
    }

    /// Tells whether a puller says it, not an owner.
    pub(super) fn is_question(&self) -> bool {
        self.head().1.is_some()
    }

    pub(super) fn attempt(&self) -> &Attempt {
        self.head().2
    }

    pub(super) fn decode(mut body: &[u8]) -> Result<Self> {
        let version = body.try_get_u16_le().map_err(|_| bad("is cut short"))?;
        if version != VERSION {
            return Err(bad(format!("is of version {version}, this is {VERSION}")));
        }
        let kind = body.try_get_u8().map_err(|_| bad("is cut short"))?;
        let message = Self::take(kind, &mut body).ok_or_else(|| bad("is cut short"))??;
        match message {
            Self::Claim { .. } | Self::Done { .. } | Self::Granted { .. } => Ok(message),
            _ if body.is_empty() => Ok(message),
            _ => Err(bad(format!("has {} bytes too many", body.len()))),
        }
    }

    fn take(kind: u8, body: &mut &[u8]) -> Option<Result<Self>> {
        let stage = if kind <= 2 { StageId::take(body) } else { None };
        let attempt = Attempt::take(body)?;
        Some(Ok(match (kind, stage) {
            (0, Some(stage)) => {
                let moved = body.try_get_u64_le().ok()?;
                Self::Claim { stage, attempt, moved, from: Bytes::copy_from_slice(body) }
            }
            (1, Some(stage)) => Self::Done { stage, attempt, from: Bytes::copy_from_slice(body) },
            (2, Some(stage)) => Self::Release { stage, attempt },
            (3, _) => Self::Granted { attempt, region: Bytes::copy_from_slice(body) },
            (4, _) => {
                let left = Duration::from_millis(body.try_get_u32_le().ok()?.into());
                Self::Taken { attempt, left }
            }
            (5, _) => Self::Over { attempt },
            (6, _) => Self::Settled { attempt },
            _ => return Some(Err(bad(format!("of kind {kind}")))),
        }))
    }

    fn head(&self) -> (u8, Option<&StageId>, &Attempt) {
        match self {
            Self::Claim { stage, attempt, .. } => (0, Some(stage), attempt),
            Self::Done { stage, attempt, .. } => (1, Some(stage), attempt),
            Self::Release { stage, attempt } => (2, Some(stage), attempt),
            Self::Granted { attempt, .. } => (3, None, attempt),
            Self::Taken { attempt, .. } => (4, None, attempt),
            Self::Over { attempt } => (5, None, attempt),
            Self::Settled { attempt } => (6, None, attempt),
        }
    }
}

fn bad(what: impl Display) -> Error {
    Error::new(ErrorKind::Protocol, format!("hand-off message {what}"))
}

const VERSION: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_were_written_and_not_if_they_are_cut() {
        let (stage, attempt) = (StageId::new(&[1; 32], 7), Attempt([9; 16]));
        let bytes = Bytes::from_static(b"metadata");
        let messages = [
            Message::Claim { stage, attempt, moved: 3, from: bytes.clone() },
            Message::Done { stage, attempt, from: bytes.clone() },
            Message::Release { stage, attempt },
            Message::Granted { attempt, region: bytes },
            Message::Taken { attempt, left: Duration::from_millis(250) },
            Message::Over { attempt },
            Message::Settled { attempt },
        ];
        for message in messages {
            let encoded = message.encode();
            assert_eq!(Message::decode(&encoded).unwrap(), message);
            let metadata = if encoded.ends_with(b"metadata") { 8 } else { 0 };
            for len in 0..encoded.len() - metadata {
                let error = Message::decode(&encoded[..len]).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Protocol, "{message:?} cut at {len}");
            }
            let longer = [&encoded[..], b"x"].concat();
            assert_eq!(Message::decode(&longer).is_ok(), metadata > 0, "{message:?}");
        }
        let mut other = Message::Over { attempt }.encode().to_vec();
        other[2] = 7;
        assert!(Message::decode(&other).is_err());
        other[0] = 2;
        assert!(Message::decode(&other).unwrap_err().message().contains("version 2"));
    }

    #[test]
    fn an_owner_knows_its_own_stages() {
        let id = StageId::new(&[1; 32], 7);
        assert!(id.is_of(&[1; 32]));
        assert!(!id.is_of(&[2; 32]));
        assert!(!StageId { number: 8, ..id }.is_of(&[1; 32]));
    }
}
