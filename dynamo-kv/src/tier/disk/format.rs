//! The bytes of a manifest; `docs/disk-format.md` explains every field. Pure.

use bytes::{Buf, BufMut};
use dynamo_core::protocol::{LocalHash, SequenceHash};

use super::error::Foreign;
use crate::identity::{BlockIdentity, BlockKey};

/// What all slots have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) blocks: u32,
    pub(super) block_bytes: usize,
    pub(super) fingerprint: u64,
}

impl Geometry {
    /// Returns how far a slot is from the one before it.
    pub(super) fn stride(&self) -> u64 {
        (self.block_bytes as u64).next_multiple_of(PAGE_BYTES as u64)
    }

    /// Returns the size of the file of blocks.
    pub(super) fn blocks_len(&self) -> u64 {
        u64::from(self.blocks) * self.stride()
    }

    /// Returns the size of the manifest.
    pub(super) fn manifest_len(&self) -> u64 {
        record_offset(self.blocks)
    }

    /// Tells whether there are slots, and files can be as large.
    pub(super) fn is_addressable(&self) -> bool {
        let stride = (self.block_bytes as u64).checked_next_multiple_of(PAGE_BYTES as u64);
        let len = stride.and_then(|stride| stride.checked_mul(u64::from(self.blocks)));
        self.block_bytes > 0 && len.is_some_and(|len| i64::try_from(len).is_ok())
    }
}

/// Returns where the record of a slot is in a manifest.
pub(super) fn record_offset(slot: u32) -> u64 {
    let superblocks = SUPERBLOCK_OFFSETS.len() * PAGE_BYTES;
    superblocks as u64 + u64::from(slot) * RECORD_BYTES as u64
}

/// What a manifest begins with, twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Superblock {
    pub(super) geometry: Geometry,
    /// Records of another era count for nothing.
    pub(super) era: u64,
}

impl Superblock {
    pub(super) fn encode(&self) -> [u8; SUPERBLOCK_BYTES] {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        let mut rest = &mut bytes[..];
        rest.put_slice(&SUPERBLOCK_MAGIC);
        rest.put_u64_le(u64::from(VERSION));
        rest.put_u64_le(self.geometry.fingerprint);
        rest.put_u64_le(u64::from(self.geometry.blocks));
        rest.put_u64_le(self.geometry.block_bytes as u64);
        rest.put_u64_le(self.era);
        seal(&mut bytes);
        bytes
    }

    /// Returns the era of a manifest of `geometry`.
    pub(super) fn decode(
        bytes: &[u8; SUPERBLOCK_BYTES],
        geometry: &Geometry,
    ) -> Result<u64, Foreign> {
        let mut rest = &bytes[..];
        if array::<8>(&mut rest) != SUPERBLOCK_MAGIC {
            return Err(Foreign::Unknown);
        }
        // Whatever another version is like, it begins like this.
        let version = rest.get_u32_le();
        if version != VERSION {
            return Err(Foreign::Version(version));
        }
        if rest.get_u32_le() != 0 || !is_sealed(bytes) {
            return Err(Foreign::Unknown);
        }
        let fingerprint = rest.get_u64_le();
        if fingerprint != geometry.fingerprint {
            return Err(Foreign::Fingerprint(fingerprint));
        }
        let (blocks, block_bytes) = (rest.get_u64_le(), rest.get_u64_le());
        if (blocks, block_bytes) != (u64::from(geometry.blocks), geometry.block_bytes as u64) {
            return Err(Foreign::Geometry { blocks, block_bytes });
        }
        Ok(rest.get_u64_le())
    }
}

/// What is known of the block in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) key: BlockKey,
    /// Grows with every store.
    pub(super) generation: u64,
    /// BLAKE3 of the block's bytes, keyed with its identity.
    pub(super) digest: [u8; 32],
}

/// Why the bytes in the place of a record are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    /// Nothing was ever written there, or it was erased.
    Empty,
    /// They are damaged, of another version, or of another slot.
    Damaged,
    /// They are of another era, or of other blocks.
    Stale,
}

impl Record {
    pub(super) fn encode(&self, slot: u32, era: u64, geometry: &Geometry) -> [u8; RECORD_BYTES] {
        let Self { key, generation, digest } = self;
        let mut bytes = [0; RECORD_BYTES];
        let mut rest = &mut bytes[..];
        rest.put_slice(&RECORD_MAGIC);
        rest.put_u32_le(VERSION);
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let parent_sequence = flag(key.parent_sequence.is_some(), HAS_PARENT_SEQUENCE);
        rest.put_u32_le(flag(key.parent.is_some(), HAS_PARENT) | parent_sequence);
        rest.put_u64_le(geometry.fingerprint);
        rest.put_u64_le(era);
        rest.put_u64_le(u64::from(slot));
        rest.put_u64_le(*generation);
        rest.put_u64_le(geometry.block_bytes as u64);
        rest.put_slice(&key.identity.0);
        rest.put_slice(&key.parent.map_or([0; 32], |parent| parent.0));
        rest.put_u64_le(key.sequence.0);
        rest.put_u64_le(key.parent_sequence.map_or(0, |parent| parent.0));
        rest.put_u64_le(key.local.0);
        rest.put_u64_le(u64::from(key.position));
        rest.put_u64_le(key.chain);
        rest.put_slice(digest);
        seal(&mut bytes);
        bytes
    }

    pub(super) fn decode(
        bytes: &[u8; RECORD_BYTES],
        slot: u32,
        era: u64,
        geometry: &Geometry,
    ) -> Result<Self, Flaw> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Err(Flaw::Empty);
        }
        let mut rest = &bytes[..];
        let is_record = array::<8>(&mut rest) == RECORD_MAGIC;
        if !is_record || rest.get_u32_le() != VERSION || !is_sealed(bytes) {
            return Err(Flaw::Damaged);
        }
        let flags = rest.get_u32_le();
        if (rest.get_u64_le(), rest.get_u64_le()) != (geometry.fingerprint, era) {
            return Err(Flaw::Stale);
        }
        if rest.get_u64_le() != u64::from(slot) {
            return Err(Flaw::Damaged);
        }
        let generation = rest.get_u64_le();
        if rest.get_u64_le() != geometry.block_bytes as u64 {
            return Err(Flaw::Stale);
        }
        let (identity, parent) = (array(&mut rest), array(&mut rest));
        let (sequence, parent_sequence) = (rest.get_u64_le(), rest.get_u64_le());
        let key = BlockKey {
            identity: BlockIdentity(identity),
            parent: (flags & HAS_PARENT != 0).then_some(BlockIdentity(parent)),
            sequence: SequenceHash(sequence),
            parent_sequence: (flags & HAS_PARENT_SEQUENCE != 0)
                .then_some(SequenceHash(parent_sequence)),
            local: LocalHash(rest.get_u64_le()),
            position: u32::try_from(rest.get_u64_le()).map_err(|_| Flaw::Damaged)?,
            chain: rest.get_u64_le(),
        };
        Ok(Self { key, generation, digest: array(&mut rest) })
    }
}

fn array<const LEN: usize>(rest: &mut &[u8]) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    rest.copy_to_slice(&mut bytes);
    bytes
}

/// Puts the checksum of all other bytes at the end.
fn seal(bytes: &mut [u8]) {
    let (body, checksum) = bytes.split_at_mut(bytes.len() - CHECKSUM_BYTES);
    checksum.copy_from_slice(&checksum_of(body));
}

fn is_sealed(bytes: &[u8]) -> bool {
    let (body, checksum) = bytes.split_at(bytes.len() - CHECKSUM_BYTES);
    checksum == checksum_of(body)
}

fn checksum_of(body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    *blake3::Hasher::new_derive_key(CHECKSUM_CONTEXT).update(body).finalize().as_bytes()
}

/// What slots are multiples of, and where records begin: a page, which suits direct IO.
pub(super) const PAGE_BYTES: usize = 4096;

/// A sector, so that it is not torn.
pub(super) const SUPERBLOCK_BYTES: usize = 512;

/// Where it is, twice: each alone in a page, so that none is lost with the other.
pub(super) const SUPERBLOCK_OFFSETS: [u64; 2] = [0, PAGE_BYTES as u64];

/// Divides a sector, so that none is torn.
pub(super) const RECORD_BYTES: usize = 256;

const SUPERBLOCK_MAGIC: [u8; 8] = *b"DYNKVDSK";
const RECORD_MAGIC: [u8; 8] = *b"DYNKVBLK";
const VERSION: u32 = 1;
const HAS_PARENT: u32 = 1;
const HAS_PARENT_SEQUENCE: u32 = 2;
const CHECKSUM_BYTES: usize = 32;
const CHECKSUM_CONTEXT: &str = "dynamo-kv 2026-11 disk tier checksum";

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry { blocks: 8, block_bytes: 5000, fingerprint: 7 };

    fn record() -> Record {
        let key = BlockKey {
            identity: BlockIdentity([1; 32]),
            parent: Some(BlockIdentity([2; 32])),
            sequence: SequenceHash(3),
            parent_sequence: Some(SequenceHash(4)),
            local: LocalHash(5),
            position: 10,
            chain: 11,
        };
        Record { key, generation: 6, digest: [9; 32] }
    }

    #[test]
    fn a_record_is_read_as_it_was_written_with_and_without_a_parent() {
        let mut record = record();
        for _ in 0..2 {
            let bytes = record.encode(3, 11, &GEOMETRY);
            assert_eq!(Record::decode(&bytes, 3, 11, &GEOMETRY), Ok(record));
            (record.key.parent, record.key.parent_sequence) = (None, None);
        }
        assert_eq!(Record::decode(&[0; RECORD_BYTES], 3, 11, &GEOMETRY), Err(Flaw::Empty));
    }

    #[test]
    fn the_bytes_are_those_of_the_page_on_the_format() {
        let bytes = record().encode(3, 11, &GEOMETRY);
        assert_eq!(bytes[..16], *b"DYNKVBLK\x01\0\0\0\x03\0\0\0");
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!([16, 24, 32, 40, 48].map(number), [7, 11, 3, 6, 5000]);
        assert_eq!((&bytes[56..88], &bytes[88..120]), (&[1; 32][..], &[2; 32][..]));
        assert_eq!([120, 128, 136, 144, 152].map(number), [3, 4, 5, 10, 11]);
        assert_eq!((&bytes[160..192], &bytes[192..224]), (&[9; 32][..], &[0; 32][..]));
        let checksum = blake3::derive_key("dynamo-kv 2026-11 disk tier checksum", &bytes[..224]);
        assert_eq!(bytes[224..], checksum);

        let bytes = Superblock { geometry: GEOMETRY, era: 11 }.encode();
        assert_eq!(bytes[..16], *b"DYNKVDSK\x01\0\0\0\0\0\0\0");
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!([16, 24, 32, 40].map(number), [7, 8, 5000, 11]);
    }

    #[test]
    fn a_record_with_any_bit_flipped_or_cut_anywhere_is_none() {
        let bytes = record().encode(3, 11, &GEOMETRY);
        for bit in 0..RECORD_BYTES * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Record::decode(&flipped, 3, 11, &GEOMETRY), Err(Flaw::Damaged), "{bit}");
        }
        for cut in 1..RECORD_BYTES {
            let mut torn = bytes;
            torn[cut..].fill(0);
            assert_eq!(Record::decode(&torn, 3, 11, &GEOMETRY), Err(Flaw::Damaged), "{cut}");
        }
    }

    #[test]
    fn a_record_of_another_slot_era_fingerprint_or_size_is_none() {
        let bytes = record().encode(3, 11, &GEOMETRY);
        let of = |slot, era, geometry| Record::decode(&bytes, slot, era, &geometry);
        assert_eq!(of(4, 11, GEOMETRY), Err(Flaw::Damaged));
        assert_eq!(of(3, 12, GEOMETRY), Err(Flaw::Stale));
        assert_eq!(of(3, 11, Geometry { fingerprint: 8, ..GEOMETRY }), Err(Flaw::Stale));
        assert_eq!(of(3, 11, Geometry { block_bytes: 5001, ..GEOMETRY }), Err(Flaw::Stale));
    }

    #[test]
    fn a_superblock_says_how_it_differs_and_none_with_a_bit_flipped_is_taken() {
        let bytes = Superblock { geometry: GEOMETRY, era: 11 }.encode();
        assert_eq!(Superblock::decode(&bytes, &GEOMETRY), Ok(11));
        let of = |geometry| Superblock::decode(&bytes, &geometry).unwrap_err();
        assert_eq!(of(Geometry { fingerprint: 8, ..GEOMETRY }), Foreign::Fingerprint(7));
        let geometry = Foreign::Geometry { blocks: 8, block_bytes: 5000 };
        assert_eq!(of(Geometry { blocks: 9, ..GEOMETRY }), geometry);
        for bit in 0..SUPERBLOCK_BYTES * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            let foreign = Superblock::decode(&flipped, &GEOMETRY).unwrap_err();
            match bit {
                64..96 => assert!(matches!(foreign, Foreign::Version(_)), "{bit}"),
                _ => assert_eq!(foreign, Foreign::Unknown, "{bit}"),
            }
        }
    }
}
