//! Arithmetic of words, masks and lengths.

/// Returns the lower half.
#[expect(clippy::cast_possible_truncation, reason = "that is what it is for")]
pub(super) fn low_bits(word: u64) -> u32 {
    word as u32
}

/// Returns the length of a segment or of a sequence.
pub(super) fn to_u32(blocks: usize) -> u32 {
    u32::try_from(blocks).unwrap_or(u32::MAX)
}

/// Returns how many bits are set.
pub(super) fn count(bits: u64) -> usize {
    bits.count_ones() as usize
}

/// Returns how many bits there are up to the last one that is set.
pub(super) fn end_of(bits: u64) -> usize {
    (u64::BITS - bits.leading_zeros()) as usize
}

/// Returns the numbers of the bits that are set.
pub(super) fn ones(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = (bits != 0).then(|| bits.trailing_zeros() as usize);
        bits &= bits.wrapping_sub(1);
        bit
    })
}

/// Spreads a hash, over the upper bits most: those that come from elsewhere need not be even.
pub(super) fn spread(hash: u64) -> u64 {
    (hash ^ hash >> 32).wrapping_mul(SPREAD)
}

/// 2^64 divided by the golden ratio, odd: Knuth, The Art of Computer Programming, volume 3, 6.4.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
