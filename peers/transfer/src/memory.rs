//! The memory that is moved: as large and of the same kind of pages for everyone.

use anyhow::Result;
use memmap2::{Advice, MmapMut};

use crate::protocol::{Pattern, Side};

/// What the largest pattern lies in.
pub const REGION_BYTES: usize = 512 << 20;

/// Allocates a region full of random bytes. NumPy asks for huge pages by itself, so all do.
pub fn region(seed: u64) -> Result<MmapMut> {
    let mut memory = MmapMut::map_anon(REGION_BYTES)?;
    memory.advise(Advice::HugePage)?;
    fill(&mut memory, seed);
    Ok(memory)
}

/// Fills `bytes` with random ones (SplitMix64).
pub fn fill(bytes: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for word in bytes.chunks_exact_mut(8) {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
    }
}

/// Returns the checksum of the ranges, one after the other.
pub fn digest(bytes: &[u8], ranges: impl Iterator<Item = (u64, u64)>) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for (offset, len) in ranges {
        hasher.update(&bytes[offset as usize..(offset + len) as usize]);
    }
    hasher.finalize()
}

/// Copies what a read of the pattern moves.
pub fn copy(pattern: Pattern, owner: &[u8], initiator: &mut [u8]) {
    for (from, to) in pattern.ranges(Side::Owner).zip(pattern.ranges(Side::Initiator)) {
        let from = &owner[from.0 as usize..(from.0 + from.1) as usize];
        initiator[to.0 as usize..(to.0 + to.1) as usize].copy_from_slice(from);
    }
}
