//! What opens a request, as bytes: which endpoint of which instance, and the context's part that
//! travels.
//!
//! ```text
//! head length u16 │ instance u64 │ incarnation u64 │ priority u8 │ flags u8
//! deadline u64: microseconds left + 1, or 0 for none
//! with flag TRACE (2): trace id u128 │ span id u64 │ trace flags u8
//! with flag RANK (4): rank u32
//! endpoint text │ request id text │ pair count u16 │ per pair: key text, value text
//! text: length u16, UTF-8
//! ```

use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};

use super::frame::{PAYLOAD_BYTES_MAX, ended, protocol, short};
use crate::error::{Error, Result};
use crate::protocol::TraceContext;

/// What stands before the body of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The instance that is meant; another one refuses.
    pub instance: u64,
    /// The incarnation that is meant; another one refuses.
    pub incarnation: u64,
    /// The endpoint, as `namespace/component/endpoint`.
    pub endpoint: String,
    /// The id of the request.
    pub request: String,
    /// How urgent it is, 0 to 7.
    pub priority: u8,
    /// Nothing is asked but whether the instance is there.
    pub is_probe: bool,
    /// Where the request stands in a trace.
    pub trace: Option<TraceContext>,
    /// Which data-parallel rank of the instance is meant, if one is.
    pub rank: Option<u32>,
    /// How much time is left: relative, because clocks differ.
    pub remaining: Option<Duration>,
    /// What travels with the request.
    pub metadata: Vec<(String, String)>,
}

impl Head {
    /// Encodes the head.
    ///
    /// Fails with [`InvalidArgument`](crate::ErrorKind::InvalidArgument) if the metadata make it
    /// larger than a frame.
    pub fn encode(&self) -> Result<BytesMut> {
        let mut out = BytesMut::with_capacity(96);
        out.put_u16_le(0);
        out.put_u64_le(self.instance);
        out.put_u64_le(self.incarnation);
        out.put_u8(self.priority);
        let probe = if self.is_probe { PROBE } else { 0 };
        let trace = if self.trace.is_some() { TRACE } else { 0 };
        let rank = if self.rank.is_some() { RANK } else { 0 };
        out.put_u8(probe | trace | rank);
        let micros = |left: Duration| u64::try_from(left.as_micros()).unwrap_or(u64::MAX - 1);
        out.put_u64_le(self.remaining.map_or(0, |left| micros(left).saturating_add(1)));
        if let Some(trace) = &self.trace {
            out.put_u128_le(trace.trace_id());
            out.put_u64_le(trace.span_id());
            out.put_u8(trace.flags());
        }
        if let Some(rank) = self.rank {
            out.put_u32_le(rank);
        }
        put_text(&mut out, &self.endpoint)?;
        put_text(&mut out, &self.request)?;
        let pairs = u16::try_from(self.metadata.len()).map_err(|_| too_large())?;
        out.put_u16_le(pairs);
        for (key, value) in &self.metadata {
            put_text(&mut out, key)?;
            put_text(&mut out, value)?;
        }
        let len = u16::try_from(out.len() - 2).map_err(|_| too_large())?;
        if out.len() > PAYLOAD_BYTES_MAX {
            return Err(too_large());
        }
        out[..2].copy_from_slice(&len.to_le_bytes());
        Ok(out)
    }

    /// Decodes the head at the start of `payload`; returns it and the bytes behind it.
    ///
    /// Fails with [`Protocol`](crate::ErrorKind::Protocol) on bad bytes.
    pub fn decode(mut payload: &[u8]) -> Result<(Self, &[u8])> {
        let len = payload.try_get_u16_le().map_err(|_| short())?;
        let (mut body, rest) = payload.split_at_checked(usize::from(len)).ok_or_else(short)?;
        let body = &mut body;
        let instance = body.try_get_u64_le().map_err(|_| short())?;
        let incarnation = body.try_get_u64_le().map_err(|_| short())?;
        let priority = body.try_get_u8().map_err(|_| short())?;
        let flags = body.try_get_u8().map_err(|_| short())?;
        if flags & !(PROBE | TRACE | RANK) != 0 {
            return Err(protocol(format!("head with flags {flags:#x}")));
        }
        let deadline = body.try_get_u64_le().map_err(|_| short())?;
        let trace = if flags & TRACE == 0 { None } else { Some(take_trace(body)?) };
        let rank = if flags & RANK == 0 { None } else { Some(take_rank(body)?) };
        let endpoint = take_text(body)?;
        let request = take_text(body)?;
        let pairs = body.try_get_u16_le().map_err(|_| short())?;
        let metadata =
            (0..pairs).map(|_| Ok((take_text(body)?, take_text(body)?))).collect::<Result<_>>()?;
        ended(body)?;
        let remaining = deadline.checked_sub(1).map(Duration::from_micros);
        let head = Self {
            instance,
            incarnation,
            endpoint,
            request,
            priority,
            is_probe: flags & PROBE != 0,
            trace,
            rank,
            remaining,
            metadata,
        };
        Ok((head, rest))
    }
}

fn take_trace(body: &mut &[u8]) -> Result<TraceContext> {
    let trace_id = body.try_get_u128_le().map_err(|_| short())?;
    let span_id = body.try_get_u64_le().map_err(|_| short())?;
    let flags = body.try_get_u8().map_err(|_| short())?;
    TraceContext::new(trace_id, span_id, flags).ok_or_else(|| protocol("a trace without id"))
}

fn take_rank(body: &mut &[u8]) -> Result<u32> {
    body.try_get_u32_le().map_err(|_| short())
}

fn put_text(out: &mut BytesMut, text: &str) -> Result<()> {
    out.put_u16_le(u16::try_from(text.len()).map_err(|_| too_large())?);
    out.put_slice(text.as_bytes());
    Ok(())
}

fn take_text(body: &mut &[u8]) -> Result<String> {
    let len = body.try_get_u16_le().map_err(|_| short())?;
    let bytes = body.split_off(..usize::from(len)).ok_or_else(short)?;
    String::from_utf8(bytes.to_vec()).map_err(|_| protocol("text is not UTF-8"))
}

/// Flags of a head.
const PROBE: u8 = 1;
const TRACE: u8 = 2;
const RANK: u8 = 4;

fn too_large() -> Error {
    Error::invalid(format!("request head of more than {PAYLOAD_BYTES_MAX} bytes"))
}

#[cfg(test)]
impl Head {
    /// One of a request that asks for nothing special.
    pub(crate) fn example() -> Self {
        Self {
            instance: 1,
            incarnation: 0,
            endpoint: "n/c/e".into(),
            request: "r".into(),
            priority: 4,
            is_probe: false,
            trace: None,
            rank: None,
            remaining: None,
            metadata: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head() -> Head {
        Head {
            incarnation: 2,
            priority: 3,
            remaining: Some(Duration::from_micros(4)),
            metadata: vec![("k".into(), "v".into())],
            ..Head::example()
        }
    }

    #[test]
    fn the_format_does_not_change_unseen() {
        let golden = [
            &[44, 0][..],
            &[1, 0, 0, 0, 0, 0, 0, 0],
            &[2, 0, 0, 0, 0, 0, 0, 0],
            &[3],
            &[0],
            &[5, 0, 0, 0, 0, 0, 0, 0],
            b"\x05\x00n/c/e",
            b"\x01\x00r",
            b"\x01\x00\x01\x00k\x01\x00v",
        ]
        .concat();
        assert_eq!(&head().encode().unwrap()[..], golden);
        let trace = TraceContext::new(6, 7, 1);
        let traced = Head { trace, is_probe: true, ..head() }.encode().unwrap();
        assert_eq!(traced[19], 3);
        assert_eq!(traced[28..53], [&[6][..], &[0; 15], &[7], &[0; 7], &[1]].concat());
        assert_eq!(traced[53..], golden[28..]);
        let ranked = Head { trace, rank: Some(0x0102_0304), ..head() }.encode().unwrap();
        assert_eq!(ranked[19], 6);
        assert_eq!(ranked[28..53], traced[28..53]);
        assert_eq!(ranked[53..57], [4, 3, 2, 1]);
        assert_eq!(ranked[57..], golden[28..]);
        assert_eq!(Head { rank: Some(0), ..head() }.encode().unwrap()[28..32], [0; 4]);
    }

    #[test]
    fn a_head_survives_the_way_and_every_cut_is_refused() {
        for remaining in [None, Some(Duration::ZERO), Some(Duration::from_secs(9))] {
            let trace = remaining.and_then(|_| TraceContext::new(1 << 100, 1 << 60, 0));
            let rank = remaining.map(|left| u32::try_from(left.as_secs()).unwrap());
            let head = Head { remaining, trace, rank, is_probe: trace.is_none(), ..head() };
            let mut bytes = head.encode().unwrap();
            let len = bytes.len();
            bytes.extend_from_slice(b"body");
            assert_eq!(Head::decode(&bytes).unwrap(), (head, &b"body"[..]));
            for at in 0..len {
                assert!(Head::decode(&bytes[..at]).is_err(), "cut at {at}");
            }
        }
    }

    #[test]
    fn metadata_that_do_not_fit_are_refused() {
        for value in ["x".repeat(1 << 14), "x".repeat(1 << 17)] {
            let head = Head { metadata: vec![("k".into(), value)], ..head() };
            assert_eq!(head.encode().unwrap_err().kind(), crate::error::ErrorKind::InvalidArgument);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Head::decode(&bytes);
        }
    }
}
