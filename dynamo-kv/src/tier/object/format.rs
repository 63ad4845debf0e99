//! Names and bytes of objects; `docs/object-format.md` explains every field. Pure.

use bytes::{BufMut, Bytes, BytesMut};
use object_store::path::Path;

use crate::identity::BlockIdentity;

/// What all objects of a tier have in common.
#[derive(Debug)]
pub(super) struct Format {
    root: Path,
    fingerprint: u64,
    block_bytes: usize,
}

impl Format {
    pub(super) fn new(prefix: &Path, fingerprint: u64, block_bytes: usize) -> Self {
        let root = prefix.clone().join(format!("v{VERSION}")).join(format!("{fingerprint:016x}"));
        Self { root, fingerprint, block_bytes }
    }

    pub(super) fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Returns the size of every object.
    pub(super) fn object_bytes(&self) -> u64 {
        (HEADER_BYTES + self.block_bytes) as u64
    }

    /// Returns what all objects lie under.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the name of a block's object.
    pub(super) fn path(&self, identity: &BlockIdentity) -> Path {
        let name = blake3::Hash::from_bytes(identity.0).to_hex();
        self.root.clone().join(&name[..2]).join(name.as_str())
    }

    /// Returns which block's object has this name.
    pub(super) fn identity(&self, path: &Path) -> Option<BlockIdentity> {
        let name = blake3::Hash::from_hex(path.filename()?).ok()?;
        let identity = BlockIdentity(*name.as_bytes());
        (self.path(&identity) == *path).then_some(identity)
    }

    /// Returns what stands in front of a block.
    pub(super) fn header(&self, identity: &BlockIdentity, digest: &[u8; 32]) -> Bytes {
        let mut header = BytesMut::with_capacity(HEADER_BYTES);
        header.put_slice(&MAGIC);
        header.put_u64_le(u64::from(VERSION));
        header.put_u64_le(self.fingerprint);
        header.put_u64_le(self.block_bytes as u64);
        header.put_slice(&identity.0);
        header.put_slice(digest);
        header.freeze()
    }

    /// Returns the digest of the block behind `header`, if that is the header of such a block.
    pub(super) fn digest(
        &self,
        identity: &BlockIdentity,
        header: &[u8; HEADER_BYTES],
    ) -> Option<[u8; 32]> {
        let (_, digest) = header.split_last_chunk()?;
        // All that is not the digest is known beforehand.
        (self.header(identity, digest) == header[..]).then_some(*digest)
    }
}

/// What stands in front of each block.
pub(super) const HEADER_BYTES: usize = 96;

const MAGIC: [u8; 8] = *b"DYNKVOBJ";
const VERSION: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn format() -> Format {
        Format::new(&Path::from("models/m"), 0xd15c, 5000)
    }

    #[test]
    fn names_and_bytes_are_those_of_the_page_on_the_format() {
        let (format, identity) = (format(), BlockIdentity([0xab; 32]));
        let name = format!("models/m/v1/000000000000d15c/ab/{}", "ab".repeat(32));
        assert_eq!(format.path(&identity).as_ref(), name);
        assert_eq!(format.identity(&Path::from(name)), Some(identity));
        let header = format.header(&identity, &[9; 32]);
        assert_eq!(header[..16], *b"DYNKVOBJ\x01\0\0\0\0\0\0\0");
        assert_eq!(header[16..32], [0xd15c_u64.to_le_bytes(), 5000_u64.to_le_bytes()].concat());
        assert_eq!((&header[32..64], &header[64..]), (&[0xab; 32][..], &[9; 32][..]));
        assert_eq!(format.object_bytes(), 5096);
    }

    #[test]
    fn a_header_with_any_bit_flipped_is_none_or_states_another_digest() {
        let (format, identity) = (format(), BlockIdentity([0xab; 32]));
        let header: [u8; HEADER_BYTES] = format.header(&identity, &[9; 32])[..].try_into().unwrap();
        assert_eq!(format.digest(&identity, &header), Some([9; 32]));
        assert_eq!(format.digest(&BlockIdentity([0xac; 32]), &header), None);
        for bit in 0..HEADER_BYTES * 8 {
            let mut flipped = header;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(format.digest(&identity, &flipped), Some([9; 32]), "{bit}");
        }
    }

    #[test]
    fn other_names_are_no_blocks() {
        let format = format();
        let ab = "ab".repeat(32);
        for name in [
            "models/m/v1/000000000000d15c/ab/abab".to_owned(),
            format!("models/m/v1/000000000000d15c/ac/{ab}"),
            format!("models/m/v2/000000000000d15c/ab/{ab}"),
            format!("models/m/v1/000000000000d15d/ab/{ab}"),
        ] {
            assert_eq!(format.identity(&Path::from(name.as_str())), None, "{name}");
        }
    }
}
