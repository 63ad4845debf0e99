//! XXH3-64 where a prompt spends its time: of a block of 16 or 32 tokens, and of two numbers.
//!
//! Formulas and constants are those of the algorithm's specification. Tokens and numbers stay in
//! registers, and what the seed does to the secret is computed once per prompt.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::token::TokenId;

/// Hashes blocks of tokens, each token as four little-endian bytes.
#[derive(Debug)]
pub(super) struct TokenHasher {
    seed: u64,
    /// The start of the secret, less and plus the seed.
    secret: [u128; 8],
    /// For blocks of other sizes.
    bytes: Vec<u8>,
}

impl TokenHasher {
    pub(super) fn new(seed: u64) -> Self {
        let seeded = |(low, high): (u64, u64)| {
            u128::from(low.wrapping_add(seed)) | u128::from(high.wrapping_sub(seed)) << 64
        };
        Self { seed, secret: SECRET.map(seeded), bytes: Vec::new() }
    }

    #[inline]
    pub(super) fn hash(&mut self, block: &[TokenId]) -> u64 {
        let (quads, rest) = block.as_chunks::<4>();
        if let (Ok(quads), []) = (<&[_; 4]>::try_from(quads), rest) {
            return self.of_quads(quads);
        }
        if let (Ok(quads), []) = (<&[_; 8]>::try_from(quads), rest) {
            return self.of_quads(quads);
        }
        self.of_any(block)
    }

    #[cold]
    fn of_any(&mut self, block: &[TokenId]) -> u64 {
        self.bytes.resize(size_of_val(block), 0);
        let (words, _) = self.bytes.as_chunks_mut();
        words.iter_mut().zip(block).for_each(|(word, token)| *word = token.to_le_bytes());
        xxh3_64_with_seed(&self.bytes, self.seed)
    }

    /// The branch for 17 to 128 bytes, for those that are `COUNT` times 16: from both ends inwards.
    #[inline]
    fn of_quads<const COUNT: usize>(&self, quads: &[[TokenId; 4]; COUNT]) -> u64 {
        let mut mixed = (COUNT as u64 * 16).wrapping_mul(PRIME);
        for round in 0..COUNT.div_ceil(2) {
            let (front, back) = (quads[round], quads[COUNT - 1 - round]);
            mixed = mixed.wrapping_add(fold(front, self.secret[2 * round]));
            mixed = mixed.wrapping_add(fold(back, self.secret[2 * round + 1]));
        }
        avalanche(mixed)
    }
}

/// Hashes the sixteen bytes of two little-endian numbers with seed 0: the branch for 9 to 16 bytes.
#[inline]
pub(super) fn of_two(first: u64, second: u64) -> u64 {
    let (first, second) = (first ^ SECRET_FIRST, second ^ SECRET_SECOND);
    let mixed = first.swap_bytes().wrapping_add(second).wrapping_add(16);
    avalanche(mixed.wrapping_add(folded_product(first, second)))
}

/// In one number, not in two: several of those the compiler would put into a vector, from which each has
/// to be taken out again to be multiplied.
#[inline]
fn fold(quad: [TokenId; 4], secret: u128) -> u64 {
    let [a, b, c, d] = quad.map(u128::from);
    let (low, high) = halves((a | b << 32 | c << 64 | d << 96) ^ secret);
    folded_product(low, high)
}

#[inline]
fn folded_product(one: u64, other: u64) -> u64 {
    let (low, high) = halves(u128::from(one) * u128::from(other));
    low ^ high
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the two halves")]
fn halves(number: u128) -> (u64, u64) {
    (number as u64, (number >> 64) as u64)
}

#[inline]
fn avalanche(mixed: u64) -> u64 {
    let mixed = (mixed ^ (mixed >> 37)).wrapping_mul(0x1656_6791_9e37_79f9);
    mixed ^ (mixed >> 32)
}

const PRIME: u64 = 0x9e37_79b1_85eb_ca87;
/// Bytes 24 to 31 of the secret, xor the eight behind them; and from 40 on, likewise.
const SECRET_FIRST: u64 = SECRET[1].1 ^ SECRET[2].0;
const SECRET_SECOND: u64 = SECRET[2].1 ^ SECRET[3].0;
/// The first 128 bytes of the secret, as little-endian numbers.
const SECRET: [(u64, u64); 8] = [
    (0xbe4b_a423_396c_feb8, 0x1cad_21f7_2c81_017c),
    (0xdb97_9083_e96d_d4de, 0x1f67_b3b7_a4a4_4072),
    (0x78e5_c0cc_4ee6_79cb, 0x2172_ffcc_7dd0_5a82),
    (0x8e24_43f7_7446_08b8, 0x4c26_3a81_e690_35e0),
    (0xcb00_c391_bb52_283c, 0xa32e_531b_8b65_d088),
    (0x4ef9_0da2_9748_6471, 0xd8ac_dea9_46ef_1938),
    (0x3f34_9ce3_3f76_faa8, 0x1d4f_0bc7_c7bb_dcf9),
    (0x3159_b4cd_4be0_518a, 0x6473_78d9_c97e_9fc8),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn hashes_are_those_of_xxh3(
            tokens in prop::collection::vec(any::<u32>(), 0..140),
            size in prop_oneof![Just(16usize), Just(32), 1..80usize],
            seed in prop_oneof![Just(0), any::<u64>()],
            numbers: (u64, u64),
        ) {
            let mut hasher = TokenHasher::new(seed);
            for block in tokens.chunks(size) {
                let bytes: Vec<_> = block.iter().flat_map(|token| token.to_le_bytes()).collect();
                prop_assert_eq!(hasher.hash(block), xxh3_64_with_seed(&bytes, seed));
            }
            let bytes = [numbers.0.to_le_bytes(), numbers.1.to_le_bytes()].concat();
            prop_assert_eq!(of_two(numbers.0, numbers.1), xxh3_64_with_seed(&bytes, 0));
        }
    }
}
