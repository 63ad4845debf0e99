/// Parts one behind the other, as bytes of the whole are found in them.
#[derive(Debug)]
pub(crate) struct Concat {
    /// Where each part ends within the whole.
    ends: Vec<u64>,
}

/// What a range of the whole covers: of which part, where in it, and how many bytes.
#[derive(Debug, Clone)]
pub(crate) struct Pieces<'a> {
    ends: &'a [u64],
    index: usize,
    offset: u64,
    left: u64,
}

impl Concat {
    /// Lines up parts of these lengths, which are fewer bytes than 2^64 together.
    pub(crate) fn new(lens: impl Iterator<Item = u64>) -> Self {
        let mut end = 0u64;
        let ends = lens.map(|len| {
            end = end.saturating_add(len);
            end
        });
        Self { ends: ends.collect() }
    }

    pub(crate) fn len(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Returns where `len` bytes from `offset` on are; less if the whole ends before.
    pub(crate) fn pieces(&self, offset: u64, len: u64) -> Pieces<'_> {
        let index = self.ends.partition_point(|&end| end <= offset);
        Pieces { ends: &self.ends, index, offset, left: len }
    }
}

impl Iterator for Pieces<'_> {
    type Item = (usize, u64, u64);

    fn next(&mut self) -> Option<Self::Item> {
        while self.left > 0 {
            let (index, offset) = (self.index, self.offset);
            let end = *self.ends.get(index)?;
            let begin = index.checked_sub(1).map_or(0, |before| self.ends[before]);
            let len = self.left.min(end - offset);
            (self.index, self.offset, self.left) = (index + 1, offset + len, self.left - len);
            if len > 0 {
                return Some((index, offset - begin, len));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_range_of_the_whole_is_found_in_its_parts_and_no_part_without_bytes() {
        let lens = [0, 3, 0, 0, 1, 5, 0];
        let all: Vec<(usize, u64)> =
            (0..).zip(lens).flat_map(|(index, len)| (0..len).map(move |at| (index, at))).collect();
        let concat = Concat::new(lens.into_iter());
        assert_eq!(concat.len(), 9);
        for (offset, len) in
            (0..12usize).flat_map(|offset| (0..12usize).map(move |len| (offset, len)))
        {
            let pieces: Vec<_> = concat.pieces(offset as u64, len as u64).collect();
            assert!(pieces.iter().all(|piece| piece.2 > 0));
            let bytes = pieces
                .into_iter()
                .flat_map(|(index, at, len)| (at..at + len).map(move |at| (index, at)));
            let expected = all.iter().skip(offset).take(len).copied();
            assert!(bytes.eq(expected), "{len} bytes at {offset}");
        }
        assert!(concat.pieces(u64::MAX, u64::MAX).next().is_none());
        assert_eq!(Concat::new(std::iter::empty()).len(), 0);
    }
}
