//! How snapshots are written: words of 64 bits, the lowest byte first, a magic number and a version before
//! them and a checksum behind.

use super::SnapshotError;

/// The words of a snapshot that are not read yet.
pub(crate) struct Words<'a>(&'a [[u8; 8]]);

impl<'a> Words<'a> {
    /// Takes bytes that begin and end as such a snapshot does; what is between is left.
    pub(crate) fn check(bytes: &'a [u8], magic: u64, version: u64) -> Result<Self, SnapshotError> {
        let (all, rest) = bytes.as_chunks::<8>();
        let mut words = Self(all);
        if words.next() != Ok(magic) {
            return Err(SnapshotError::NotASnapshot);
        }
        let its = words.next()?;
        if its != version {
            return Err(SnapshotError::Version(its));
        }
        let (last, before) = all.split_last().ok_or(SnapshotError::Length)?;
        if !rest.is_empty() || words.0.is_empty() {
            return Err(SnapshotError::Length);
        }
        if checksum(before) != u64::from_le_bytes(*last) {
            return Err(SnapshotError::Checksum);
        }
        words.0 = &words.0[..words.0.len() - 1];
        Ok(words)
    }

    pub(crate) fn next(&mut self) -> Result<u64, SnapshotError> {
        let (first, rest) = self.0.split_first().ok_or(SnapshotError::Length)?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*first))
    }

    /// Returns what is not read yet, as bytes.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.0.as_flattened()
    }
}

/// Adds the checksum to whole words.
pub(crate) fn seal(mut words: Vec<u8>) -> Vec<u8> {
    let sum = checksum(words.as_chunks().0);
    words.extend(sum.to_le_bytes());
    words
}

/// Each step can be undone if the word is known: whoever changes one word changes the sum.
fn checksum(words: &[[u8; 8]]) -> u64 {
    let mix = |sum: u64, word: &[u8; 8]| {
        (sum ^ u64::from_le_bytes(*word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31)
    };
    words.iter().fold(SEED, mix)
}

const SEED: u64 = 0x243f_6a88_85a3_08d3;
