//! Metadata as bytes: versioned, checksummed, little-endian, decoded without trust.
//!
//! ```text
//! magic "DTMD" │ version u16 │ name len u16, bytes │ incarnation u64
//! fabric flag u8, then u64 │ tcp flag u8 (0, 4, 6), address bytes, port u16
//! shm flag u8, then host u64, socket u64 │ ucx flag u8, then len u16 (not 0), bytes
//! region count u32 │ per region: id u64, generation u64, expires ms u64, proof u128, writable u8, len u64,
//! kind u8 (0 host, 1 pinned, 2 device, 3 file), number of the device u32 (else 0)
//! XXH3-64 of all before
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::xxh3_64;

use super::{PeerAddress, RemoteAgent, RemoteRegion, ShmAddress};
use crate::error::Result;
use crate::memory::{MemoryKind, Token};
use crate::wire::{Format, Reader, protocol, put_bytes, put_flag, put_text, put_token};

/// One region as metadata carries it.
pub(crate) struct GrantedRegion {
    pub(crate) id: u64,
    pub(crate) token: Token,
    pub(crate) len: u64,
    pub(crate) kind: MemoryKind,
}

pub(crate) fn encode(address: &PeerAddress, regions: &[GrantedRegion]) -> Bytes {
    let mut out = BytesMut::new();
    FORMAT.put(&mut out);
    put_text(&mut out, &address.name);
    out.put_u64_le(address.incarnation);
    put_flag(&mut out, address.fabric.is_some());
    if let Some(fabric) = address.fabric {
        out.put_u64_le(fabric);
    }
    match address.tcp {
        None => out.put_u8(0),
        Some(tcp) => {
            match tcp.ip() {
                IpAddr::V4(ip) => {
                    out.put_u8(4);
                    out.put_slice(&ip.octets());
                }
                IpAddr::V6(ip) => {
                    out.put_u8(6);
                    out.put_slice(&ip.octets());
                }
            }
            out.put_u16_le(tcp.port());
        }
    }
    put_flag(&mut out, address.shm.is_some());
    if let Some(shm) = address.shm {
        out.put_u64_le(shm.host);
        out.put_u64_le(shm.socket);
    }
    put_flag(&mut out, address.ucx.is_some());
    if let Some(ucx) = &address.ucx {
        put_bytes(&mut out, ucx);
    }
    out.put_u32_le(u32::try_from(regions.len()).unwrap_or(u32::MAX));
    for region in regions {
        out.put_u64_le(region.id);
        put_token(&mut out, &region.token);
        out.put_u64_le(region.len);
        let (kind, device) = encode_kind(region.kind);
        out.put_u8(kind);
        out.put_u32_le(device);
    }
    let checksum = xxh3_64(&out);
    out.put_u64_le(checksum);
    out.freeze()
}

pub(crate) fn decode(bytes: &[u8]) -> Result<RemoteAgent> {
    let Some((body, checksum)) = bytes.split_last_chunk() else {
        return Err(protocol("metadata is cut short"));
    };
    if xxh3_64(body) != u64::from_le_bytes(*checksum) {
        return Err(protocol("metadata fails its checksum"));
    }
    let body = &mut Reader::new(body);
    FORMAT.take(body)?;
    let (name, incarnation) = (body.text()?, body.u64()?);
    let fabric = if body.flag()? { Some(body.u64()?) } else { None };
    let tcp = decode_address(body)?;
    let shm = if body.flag()? {
        Some(ShmAddress { host: body.u64()?, socket: body.u64()? })
    } else {
        None
    };
    let ucx = if body.flag()? { Some(decode_ucx(body)?) } else { None };
    let peer = Arc::new(PeerAddress { name, incarnation, fabric, tcp, shm, ucx });
    let count = body.u32()? as usize;
    if body.len() != count.saturating_mul(REGION_BYTES) {
        return Err(protocol(format!("metadata of {count} regions has {} bytes", body.len())));
    }
    let region = |_| {
        let (id, token, len) = (body.u64()?, body.token()?, body.u64()?);
        let kind = decode_kind(body)?;
        Ok(RemoteRegion { peer: Arc::clone(&peer), id, token, len, kind })
    };
    let regions = (0..count).map(region).collect::<Result<_>>()?;
    Ok(RemoteAgent { address: peer, regions })
}

/// Encodes what was decoded.
#[cfg(any(test, feature = "test-util"))]
pub(crate) fn encode_again(agent: &RemoteAgent) -> Bytes {
    let grant = |region: &RemoteRegion| {
        let RemoteRegion { id, token, len, kind, .. } = *region;
        GrantedRegion { id, token, len, kind }
    };
    let grants: Vec<_> = agent.regions.iter().map(grant).collect();
    encode(&agent.address, &grants)
}

fn decode_address(body: &mut Reader<'_>) -> Result<Option<SocketAddr>> {
    let ip: IpAddr = match body.u8()? {
        0 => return Ok(None),
        4 => Ipv4Addr::from(body.array()?).into(),
        6 => Ipv6Addr::from(body.array::<16>()?).into(),
        other => return Err(protocol(format!("metadata has an address of family {other}"))),
    };
    Ok(Some(SocketAddr::new(ip, body.u16()?)))
}

fn decode_ucx(body: &mut Reader<'_>) -> Result<Bytes> {
    let address = body.bytes(usize::from(u16::MAX))?;
    if address.is_empty() {
        return Err(protocol("metadata has an empty UCX address"));
    }
    Ok(Bytes::copy_from_slice(address))
}

fn encode_kind(kind: MemoryKind) -> (u8, u32) {
    match kind {
        MemoryKind::Host => (0, 0),
        MemoryKind::Pinned => (1, 0),
        MemoryKind::Device(device) => (2, device),
        MemoryKind::File => (3, 0),
    }
}

fn decode_kind(body: &mut Reader<'_>) -> Result<MemoryKind> {
    match (body.u8()?, body.u32()?) {
        (0, 0) => Ok(MemoryKind::Host),
        (1, 0) => Ok(MemoryKind::Pinned),
        (2, device) => Ok(MemoryKind::Device(device)),
        (3, 0) => Ok(MemoryKind::File),
        (kind, device) => {
            Err(protocol(format!("metadata has memory of kind {kind}, device {device}")))
        }
    }
}

const FORMAT: Format = Format { magic: *b"DTMD", version: 2 };
const REGION_BYTES: usize = 8 + 8 + 8 + 16 + 8 + 1 + 1 + 4;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::error::ErrorKind;
    use proptest::prelude::*;

    const TOKEN: Token = Token { generation: 5, is_writable: true, expires_ms: 6, proof: 9 };

    fn sample() -> Bytes {
        let tcp = Some("[::1]:7000".parse().unwrap());
        let shm = Some(ShmAddress { host: 11, socket: 12 });
        let ucx = Some(Bytes::from_static(b"worker"));
        let (name, fabric) = ("a".into(), Some(3));
        let address = PeerAddress { name, incarnation: 7, fabric, tcp, shm, ucx };
        let grant = |kind| GrantedRegion { id: 1, token: TOKEN, len: 4096, kind };
        encode(&address, &KINDS.map(grant))
    }

    const KINDS: [MemoryKind; 4] =
        [MemoryKind::Host, MemoryKind::Pinned, MemoryKind::Device(7), MemoryKind::File];

    #[test]
    fn metadata_survives_the_way() {
        let agent = decode(&sample()).unwrap();
        assert_eq!((agent.name(), agent.incarnation()), ("a", 7));
        assert_eq!(agent.address.fabric, Some(3));
        assert_eq!(agent.address.tcp, Some("[::1]:7000".parse().unwrap()));
        assert_eq!(agent.address.shm, Some(ShmAddress { host: 11, socket: 12 }));
        assert_eq!(agent.address.ucx.as_deref(), Some(&b"worker"[..]));
        let region = &agent.regions()[0];
        assert_eq!((region.id, region.len(), region.is_writable()), (1, 4096, true));
        assert_eq!(region.token, TOKEN);
        assert_eq!(agent.regions().iter().map(RemoteRegion::kind).collect::<Vec<_>>(), KINDS);
    }

    #[test]
    fn memory_of_an_unknown_kind_is_refused() {
        let good = sample();
        for (kind, device, is_known) in [(3, 0, true), (2, 9, true), (4, 0, false), (3, 1, false)] {
            let mut bytes = good[..good.len() - 13].to_vec();
            bytes.put_u8(kind);
            bytes.put_u32_le(device);
            bytes.put_u64_le(xxh3_64(&bytes));
            let decoded = decode(&bytes).map_err(|error| error.kind());
            assert_eq!(decoded.is_ok(), is_known, "{kind} {device}");
            assert!(is_known || decoded.unwrap_err() == ErrorKind::Protocol);
        }
    }

    #[test]
    fn every_flip_and_every_truncation_is_refused() {
        let good = sample();
        for at in 0..good.len() {
            assert_eq!(decode(&good[..at]).unwrap_err().kind(), ErrorKind::Protocol);
            for bit in 0..8 {
                let mut bad = good.to_vec();
                bad[at] ^= 1 << bit;
                assert_eq!(decode(&bad).unwrap_err().kind(), ErrorKind::Protocol);
            }
        }
    }

    #[test]
    fn the_examples_for_fuzzing_are_metadata_and_an_empty_ucx_address_is_not() {
        let crates = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let summed = |bytes: &[u8]| [bytes, &xxh3_64(bytes).to_le_bytes()].concat();
        let (mut with_ucx, mut kinds) = (0, HashSet::new());
        for input in std::fs::read_dir(crates.join("fuzz/corpus/transfer_metadata")).unwrap() {
            let bytes = summed(&std::fs::read(input.unwrap().path()).unwrap());
            let agent = decode(&bytes).unwrap();
            with_ucx += usize::from(agent.address.ucx.is_some());
            kinds.extend(agent.regions.iter().map(|region| std::mem::discriminant(&region.kind)));
        }
        assert_eq!((with_ucx, kinds.len()), (1, KINDS.len()), "{kinds:?}");
        let mut none = b"DTMD\x02\x00".to_vec();
        // No name, incarnation 0, no fabric, no TCP, no shm; UCX of no bytes; no regions.
        none.extend([0; 2 + 8 + 3]);
        none.extend([1, 0, 0]);
        none.extend([0; 4]);
        let error = decode(&summed(&none)).unwrap_err();
        assert!(error.message().contains("UCX"), "{error}");
    }

    /// What is taken is written as it was, what is not is refused as what it is; tells which.
    fn is_taken(body: &[u8]) -> bool {
        let bytes = [body, &xxh3_64(body).to_le_bytes()].concat();
        match decode(&bytes) {
            Ok(agent) => assert_eq!(encode_again(&agent), bytes),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Protocol),
        }
        decode(&bytes).is_ok()
    }

    #[test]
    fn what_is_changed_behind_a_right_checksum_is_taken_as_it_is_or_refused() {
        let good = sample();
        let good = &good[..good.len() - 8];
        assert!((0..good.len()).all(|end| !is_taken(&good[..end])));
        let (mut body, mut taken) = (good.to_vec(), 0);
        for at in 0..body.len() {
            for byte in 0..=u8::MAX {
                body[at] = byte;
                taken += usize::from(is_taken(&body));
            }
            body[at] = good[at];
        }
        // Names, numbers, addresses and proofs are as good as others.
        assert!(taken > body.len() * 128, "{taken} of {} bytes' values", body.len());
    }

    proptest! {
        #[test]
        fn no_metadata_of_which_pieces_are_changed_panics(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            piece in any::<[prop::sample::Index; 2]>(),
        ) {
            let good = sample();
            let mut body = good[..good.len() - 8].to_vec();
            for (at, byte) in &changes {
                let at = at.index(body.len());
                body[at] = *byte;
            }
            is_taken(&body);
            let [from, len] = piece;
            let from = from.index(body.len());
            body.drain(from..from + len.index(body.len() - from));
            is_taken(&body);
        }
    }
}
