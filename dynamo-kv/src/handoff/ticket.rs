//! A ticket as bytes: versioned, checksummed, little-endian, decoded without trust.
//!
//! ```text
//! version u16 │ stage id 24 │ claim TTL u32 │ layout 31 │ tail tokens u32 │ identity count u32
//! identities 32 each │ transfer metadata of the owner, without regions, to the end
//! first 8 bytes of BLAKE3 of all before
//!
//! layout: layers u32 │ planes u8 │ tokens u32 │ heads u32 │ head dim u32 │ dtype u8
//!         axes 5 × u8, the outermost first │ rank u32 │ degree u32
//! ```

use std::fmt::Display;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use dynamo_core::protocol::{BlockSize, HandoffTicket};
use dynamo_core::{Error, ErrorKind, Result};

use super::message::StageId;
use crate::identity::BlockIdentity;
use crate::layout::{Axis, AxisOrder, DType, KvShape, RankLayout, TpShard};

/// What a hold promises to whoever redeems it.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) id: StageId,
    /// How long a reservation stands without progress.
    pub(super) claim_ttl: Duration,
    /// How the staged blocks lie.
    pub(super) layout: RankLayout,
    /// Tokens in the partly written block behind the full ones; 0 if there is none.
    pub(super) tail_tokens: usize,
    pub(super) identities: Vec<BlockIdentity>,
    /// Where the owner is: it grants nothing by itself.
    pub(super) owner: Bytes,
}

impl Ticket {
    /// Returns how many blocks are staged.
    pub(super) fn blocks(&self) -> usize {
        self.identities.len() + usize::from(self.tail_tokens > 0)
    }

    pub(super) fn encode(&self) -> HandoffTicket {
        let mut out = BytesMut::new();
        out.put_u16_le(VERSION);
        self.id.put(&mut out);
        out.put_u32_le(u32::try_from(self.claim_ttl.as_millis()).unwrap_or(u32::MAX));
        put_layout(&self.layout, &mut out);
        put_count(self.tail_tokens, &mut out);
        put_count(self.identities.len(), &mut out);
        self.identities.iter().for_each(|identity| out.put_slice(&identity.0));
        out.put_slice(&self.owner);
        let checksum = checksum(&out);
        out.put_slice(&checksum);
        HandoffTicket::new(out.freeze())
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
        Self::take(&mut body).ok_or_else(|| bad("is cut short, or of no layout that there is"))
    }

    fn take(body: &mut &[u8]) -> Option<Self> {
        let id = StageId::take(body)?;
        let claim_ttl = Duration::from_millis(body.try_get_u32_le().ok()?.into());
        let layout = take_layout(body)?;
        let tail_tokens = take_count(body)?;
        let identities_len = take_count(body)?.checked_mul(32)?;
        let (identities, owner) = body.split_at_checked(identities_len)?;
        let (identities, _) = identities.as_chunks::<32>();
        let identities = identities.iter().copied().map(BlockIdentity).collect();
        let owner = Bytes::copy_from_slice(owner);
        Some(Self { id, claim_ttl, layout, tail_tokens, identities, owner })
    }
}

fn put_layout(layout: &RankLayout, out: &mut BytesMut) {
    let (shape, shard) = (layout.shape(), layout.shard());
    put_count(shape.layers(), out);
    out.put_u8(if shape.planes() == 1 { 1 } else { 2 });
    put_count(shape.block_size().tokens(), out);
    put_count(shape.heads(), out);
    put_count(shape.head_dim(), out);
    let code = DTYPES.iter().position(|dtype| *dtype == shape.dtype());
    out.put_u8(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX));
    for axis in layout.order().axes() {
        let code = AXES.iter().position(|its| its == axis);
        out.put_u8(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX));
    }
    put_count(shard.rank(), out);
    put_count(shard.degree(), out);
    put_count(layout.first_layer(), out);
}

fn take_layout(body: &mut &[u8]) -> Option<RankLayout> {
    let layers = take_count(body)?;
    let planes = body.try_get_u8().ok()?;
    let size = BlockSize::new(body.try_get_u32_le().ok()?)?;
    let (heads, head_dim) = (take_count(body)?, take_count(body)?);
    let dtype = *DTYPES.get(usize::from(body.try_get_u8().ok()?))?;
    let shape = match planes {
        1 if heads == 1 => KvShape::latent(layers, head_dim, size, dtype).ok()?,
        2 => KvShape::new(layers, heads, head_dim, size, dtype).ok()?,
        _ => return None,
    };
    let mut axes = [Axis::Block; AXES.len()];
    for axis in &mut axes {
        *axis = *AXES.get(usize::from(body.try_get_u8().ok()?))?;
    }
    let order = AxisOrder::new(axes, 0).ok()?;
    let shard = TpShard::new(take_count(body)?, take_count(body)?).ok()?;
    let layout = RankLayout::new(shape, order, shard).ok()?;
    Some(layout.with_first_layer(take_count(body)?))
}

/// Counts of what is in memory are far below 2^32, save what nobody could have staged.
fn put_count(count: usize, out: &mut BytesMut) {
    out.put_u32_le(u32::try_from(count).unwrap_or(u32::MAX));
}

fn take_count(body: &mut &[u8]) -> Option<usize> {
    usize::try_from(body.try_get_u32_le().ok()?).ok()
}

pub(super) fn checksum(body: &[u8]) -> [u8; 8] {
    let mut checksum = [0; 8];
    checksum.copy_from_slice(&blake3::hash(body).as_bytes()[..8]);
    checksum
}

fn bad(what: impl Display) -> Error {
    Error::new(ErrorKind::Protocol, format!("hand-off ticket {what}"))
}

const VERSION: u16 = 3;

/// By their codes.
const DTYPES: [DType; 4] = [DType::F32, DType::F16, DType::Bf16, DType::Byte];
const AXES: [Axis; 5] = [Axis::Block, Axis::Layer, Axis::Plane, Axis::Token, Axis::Head];
