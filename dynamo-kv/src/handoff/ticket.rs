//! A ticket as bytes: versioned, checksummed, little-endian, decoded without trust.
//!
//! ```text
//! version u16 │ stage id 16 │ layout u64 │ tail tokens u32 │ identity count u32
//! identities 32 each │ transfer metadata, to the end
//! first 8 bytes of BLAKE3 of all before
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};
use dynamo_core::protocol::HandoffTicket;
use dynamo_core::{Error, ErrorKind, Result};

use crate::identity::BlockIdentity;

/// Names one hold; unguessable, so that nobody else can end it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct StageId([u8; 16]);

impl StageId {
    pub(super) fn random() -> Result<Self> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|error| {
            Error::internal("the system gives no random numbers").with_source(error)
        })?;
        Ok(Self(id))
    }

    pub(super) fn encode(self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

/// What a hold promises to whoever redeems it.
pub(super) struct Ticket {
    pub(super) id: StageId,
    pub(super) layout: u64,
    /// Tokens in the partly written block behind the full ones; 0 if there is none.
    pub(super) tail_tokens: usize,
    pub(super) identities: Vec<BlockIdentity>,
    /// The owner's transfer metadata; its one region is the blocks, one after another.
    pub(super) metadata: Bytes,
}

impl Ticket {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u16_le(VERSION);
        out.put_slice(&self.id.0);
        out.put_u64_le(self.layout);
        // A tail is shorter than a block, and a block's tokens are counted in a u32.
        out.put_u32_le(u32::try_from(self.tail_tokens).unwrap_or(u32::MAX));
        out.put_u32_le(u32::try_from(self.identities.len()).unwrap_or(u32::MAX));
        self.identities.iter().for_each(|identity| out.put_slice(&identity.0));
        out.put_slice(&self.metadata);
        let checksum = checksum(&out);
        out.put_slice(&checksum);
        out.freeze()
    }

    pub(super) fn decode(ticket: &HandoffTicket) -> Result<Self> {
        let Some((mut body, stated)) = ticket.as_bytes().split_last_chunk() else {
            return Err(bad("is cut short"));
        };
        if checksum(body) != *stated {
            return Err(bad("fails its checksum"));
        }
        let version = body.try_get_u16_le().map_err(|_| bad("is cut short"))?;
        if version != VERSION {
            return Err(bad(format!("is of version {version}, this is {VERSION}")));
        }
        let mut id = [0; 16];
        body.try_copy_to_slice(&mut id).map_err(|_| bad("is cut short"))?;
        let layout = body.try_get_u64_le().map_err(|_| bad("is cut short"))?;
        let tail_tokens = body.try_get_u32_le().map_err(|_| bad("is cut short"))? as usize;
        let count = body.try_get_u32_le().map_err(|_| bad("is cut short"))? as usize;
        let (identities, metadata) = count
            .checked_mul(32)
            .and_then(|len| body.split_at_checked(len))
            .ok_or_else(|| bad(format!("of {count} blocks is cut short")))?;
        let (identities, _) = identities.as_chunks::<32>();
        Ok(Self {
            id: StageId(id),
            layout,
            tail_tokens,
            identities: identities.iter().copied().map(BlockIdentity).collect(),
            metadata: Bytes::copy_from_slice(metadata),
        })
    }
}

pub(super) fn checksum(body: &[u8]) -> [u8; 8] {
    let mut checksum = [0; 8];
    checksum.copy_from_slice(&blake3::hash(body).as_bytes()[..8]);
    checksum
}

fn bad(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Protocol, format!("hand-off ticket {what}"))
}

const VERSION: u16 = 1;
