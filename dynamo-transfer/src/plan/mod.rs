//! What to move, in which pieces, by which backend; pure.

mod route;

pub(crate) use route::{Route, route};

use crate::descriptor::Ranges;
use crate::error::{Error, ErrorKind, Result};

/// One contiguous copy between a local and a remote range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) local: u64,
    pub(crate) remote: u64,
    pub(crate) len: u64,
}

/// Pairs the ranges of both sides byte by byte, in order: neighbours that continue each other on
/// both sides become one chunk, none is longer than `chunk_max`, and there are `count_max` at most.
pub(crate) fn chunks(
    local: &Ranges,
    remote: &Ranges,
    chunk_max: u64,
    count_max: usize,
) -> Result<Vec<Chunk>> {
    if local.total() != remote.total() {
        let message =
            format!("{} local bytes against {} remote ones", local.total(), remote.total());
        return Err(Error::new(ErrorKind::InvalidArgument, message));
    }
    let mut chunks: Vec<Chunk> = Vec::new();
    let (mut locals, mut remotes) = (local.as_slice().iter(), remote.as_slice().iter());
    let (mut from, mut to) = ((0, 0), (0, 0));
    loop {
        if from.1 == 0 {
            let Some(&range) = locals.next() else { return Ok(chunks) };
            from = range;
        }
        if to.1 == 0 {
            let Some(&range) = remotes.next() else { return Ok(chunks) };
            to = range;
        }
        let mut len = from.1.min(to.1).min(chunk_max);
        let count = chunks.len();
        match chunks.last_mut() {
            Some(last)
                if last.local + last.len == from.0
                    && last.remote + last.len == to.0
                    && last.len < chunk_max =>
            {
                len = len.min(chunk_max - last.len);
                last.len += len;
            }
            _ if count == count_max => {
                let message = format!("more than {count_max} chunks in one transfer");
                return Err(Error::new(ErrorKind::InvalidArgument, message));
            }
            _ => chunks.push(Chunk { local: from.0, remote: to.0, len }),
        }
        from = (from.0 + len, from.1 - len);
        to = (to.0 + len, to.1 - len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranges(list: &[(u64, u64)]) -> Ranges {
        Ranges::new(list.iter().copied(), 10_000).unwrap()
    }

    fn bytes(list: &[(u64, u64)]) -> Vec<u64> {
        list.iter().flat_map(|&(offset, len)| offset..offset + len).collect()
    }

    #[test]
    fn neighbours_on_both_sides_become_one_chunk() {
        let both = ranges(&[(0, 10), (10, 10), (40, 5)]);
        let plan = chunks(&both, &ranges(&[(100, 25)]), 1000, 2).unwrap();
        let expected =
            [Chunk { local: 0, remote: 100, len: 20 }, Chunk { local: 40, remote: 120, len: 5 }];
        assert_eq!(plan, expected);
    }

    #[test]
    fn sides_of_different_size_and_too_many_chunks_are_refused() {
        let error = chunks(&ranges(&[(0, 3)]), &ranges(&[(0, 4)]), 8, 9).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        let plan = |count_max| chunks(&ranges(&[(0, 10)]), &ranges(&[(50, 10)]), 4, count_max);
        assert_eq!(plan(3).unwrap().len(), 3);
        assert_eq!(plan(2).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }

    proptest! {
        #[test]
        fn every_byte_is_moved_exactly_once_and_in_order(
            local in prop::collection::vec((0u64..500, 0u64..40), 0..12),
            cuts in prop::collection::vec(1u64..30, 0..40),
            chunk_max in 1u64..50,
        ) {
            let total: u64 = local.iter().map(|range| range.1).sum();
            let mut remote = Vec::new();
            let mut left = total;
            for (index, cut) in cuts.iter().enumerate() {
                let len = left.min(*cut);
                // Every other range continues the one before it.
                remote.push((1000 + (index as u64 / 2) * 100 + (index as u64 % 2) * cuts[index / 2 * 2], len));
                left -= len;
            }
            remote.push((9000, left));
            let plan = chunks(&ranges(&local), &ranges(&remote), chunk_max, usize::MAX).unwrap();
            let moved = |side: fn(&Chunk) -> u64| {
                bytes(&plan.iter().map(|chunk| (side(chunk), chunk.len)).collect::<Vec<_>>())
            };
            prop_assert_eq!(moved(|chunk| chunk.local), bytes(&local));
            prop_assert_eq!(moved(|chunk| chunk.remote), bytes(&remote));
            prop_assert!(plan.iter().all(|chunk| (1..=chunk_max).contains(&chunk.len)));
        }
    }
}
