//! An open region as bytes: little-endian, decoded without trust.

use bytes::{BufMut, Bytes, BytesMut};

use super::page::SLOTS;
use crate::error::Result;
use crate::wire::{Reader, protocol};

/// An open region, as its owner describes it: the concatenation of its pieces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Opened {
    pub(super) slot: u32,
    /// Lengths of the files that come with the message, if the region is in files.
    pub(super) files: Vec<u64>,
    /// Where each piece is, and its length: the index of a file, at its beginning, or an address.
    pub(super) pieces: Vec<(u64, u64)>,
}

impl Opened {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u32_le(self.slot);
        // Limited by whoever opens.
        out.put_u16_le(u16::try_from(self.files.len()).unwrap_or(u16::MAX));
        self.files.iter().for_each(|len| out.put_u64_le(*len));
        for (place, len) in &self.pieces {
            out.put_u64_le(*place);
            out.put_u64_le(*len);
        }
        out.freeze()
    }

    pub(super) fn decode(body: &[u8]) -> Result<Self> {
        let mut body = Reader::new(body);
        let slot = body.u32()?;
        if slot >= SLOTS {
            return Err(protocol(format!("slot {slot} of {SLOTS}")));
        }
        let files_count = usize::from(body.u16()?);
        if files_count > FILES_MAX {
            return Err(protocol(format!("region in {files_count} files")));
        }
        let files = (0..files_count).map(|_| body.u64()).collect::<Result<Vec<_>>>()?;
        if !body.len().is_multiple_of(16) || body.len() / 16 > PIECES_MAX {
            return Err(protocol(format!("pieces of {} bytes", body.len())));
        }
        let (mut pieces, mut total) = (Vec::with_capacity(body.len() / 16), 0u64);
        while !body.is_empty() {
            let (place, len) = (body.u64()?, body.u64()?);
            total = total.checked_add(len).ok_or_else(|| protocol("region beyond 2^64 bytes"))?;
            let lies_inside = if files.is_empty() {
                place.checked_add(len).is_some() && usize::try_from(len).is_ok()
            } else {
                let file = usize::try_from(place).ok().and_then(|index| files.get(index));
                file.is_some_and(|file| len <= *file)
            };
            if !lies_inside {
                return Err(protocol(format!("piece of {len} bytes at {place:x}")));
            }
            pieces.push((place, len));
        }
        Ok(Self { slot, files, pieces })
    }
}

/// Files that come with one message: the kernel takes 253.
pub(super) const FILES_MAX: usize = 64;

/// Pieces of one region; those of more go another way.
pub(super) const PIECES_MAX: usize = 1 << 16;

pub(super) const OPENED_BYTES_MAX: usize = 4 + 2 + 8 * FILES_MAX + 16 * PIECES_MAX;

/// An open region that is taken lies in its files, or in what can be addressed, and is written as
/// the same bytes.
#[cfg(any(test, feature = "test-util"))]
pub(super) fn fuzz(data: &[u8]) {
    let Ok(opened) = Opened::decode(data) else { return };
    assert_eq!(opened.encode()[..], *data);
    let files = &opened.files;
    let fits = |&(place, len): &(u64, u64)| match usize::try_from(place) {
        Ok(index) if !files.is_empty() => files.get(index).is_some_and(|file| len <= *file),
        _ => files.is_empty() && u128::from(place) + u128::from(len) <= u128::from(u64::MAX),
    };
    assert!(opened.slot < SLOTS && opened.pieces.iter().all(fits));
    let total: u128 = opened.pieces.iter().map(|piece| u128::from(piece.1)).sum();
    assert!(u64::try_from(total).is_ok());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use proptest::prelude::*;

    #[test]
    fn an_open_region_is_what_its_files_hold() {
        let decode = |files: &[u64], pieces: &[(u64, u64)]| {
            let opened = Opened { slot: 7, files: files.to_vec(), pieces: pieces.to_vec() };
            Opened::decode(&opened.encode()).map(|decoded| assert_eq!(decoded, opened))
        };
        decode(&[10, 20], &[(0, 10), (1, 20), (1, 0), (0, 3)]).unwrap();
        decode(&[], &[(4096, 10), (u64::MAX, 0)]).unwrap();
        for bad in [(0, 11), (2, 1), (u64::MAX, 0)] {
            assert_eq!(decode(&[10, 20], &[bad]).unwrap_err().kind(), ErrorKind::Protocol);
        }
        let far = Opened { slot: SLOTS, ..Opened::default() };
        assert!(Opened::decode(&far.encode()).is_err());
        assert!(decode(&[], &[(u64::MAX, 1)]).is_err());
        assert!(decode(&[], &[(0, u64::MAX), (0, 1)]).is_err());
        assert!(decode(&[1; FILES_MAX + 1], &[]).is_err());
        assert!(decode(&[], &vec![(0, 1); PIECES_MAX + 1]).is_err());
        let most = Opened { slot: 0, files: vec![1; FILES_MAX], pieces: vec![(0, 1); PIECES_MAX] };
        assert_eq!(most.encode().len(), OPENED_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn whatever_is_taken_of_any_bytes_is_written_the_same_again(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            files in 0u8..3,
        ) {
            fuzz(&bytes);
            fuzz(&[&[7, 0, 0, 0, files, 0], &bytes[..]].concat());
        }
    }
}
