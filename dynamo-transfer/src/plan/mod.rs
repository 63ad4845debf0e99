//! What to move, in which pieces, by which backend; pure.

mod cost;
mod route;

pub(crate) use cost::{Distance, Pace, modelled};
pub(crate) use route::{Place, Route};

use smallvec::SmallVec;

use crate::descriptor::Ranges;
use crate::error::{Error, ErrorKind, Result};

/// One contiguous copy between a local and a remote range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) local: u64,
    pub(crate) remote: u64,
    pub(crate) len: u64,
}

/// What is moved at once: a backend checks, retries and gives way between stripes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stripe {
    pub(crate) chunks: SmallVec<[Chunk; 1]>,
    pub(crate) bytes: u64,
}

/// Pairs the ranges of both sides byte by byte, in order, and hands them out in stripes.
#[derive(Debug)]
pub(crate) struct Plan {
    local: Side,
    remote: Side,
}

/// How far one side has been handed out.
#[derive(Debug)]
struct Side {
    ranges: Ranges,
    index: usize,
    /// Bytes of that range.
    done: u64,
}

impl Plan {
    /// Fails if the two sides differ in size.
    pub(crate) fn new(local: Ranges, remote: Ranges) -> Result<Self> {
        if local.total() != remote.total() {
            let message =
                format!("{} local bytes against {} remote ones", local.total(), remote.total());
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        let side = |ranges| Side { ranges, index: 0, done: 0 };
        Ok(Self { local: side(local), remote: side(remote) })
    }

    pub(crate) fn total(&self) -> u64 {
        self.local.ranges.total()
    }

    /// Tells whether all has been handed out.
    pub(crate) fn is_over(&self) -> bool {
        self.local.rest().is_none() || self.remote.rest().is_none()
    }

    /// Hands out the next stripe, of `bytes_max` and `chunks_max` at most: neighbours that continue
    /// each other on both sides are one chunk.
    pub(crate) fn next(&mut self, bytes_max: u64, chunks_max: usize) -> Option<Stripe> {
        let mut stripe = Stripe::default();
        while stripe.bytes < bytes_max {
            let (Some(local), Some(remote)) = (self.local.rest(), self.remote.rest()) else {
                break;
            };
            let len = local.1.min(remote.1).min(bytes_max - stripe.bytes);
            let count = stripe.chunks.len();
            match stripe.chunks.last_mut() {
                Some(last)
                    if last.local + last.len == local.0 && last.remote + last.len == remote.0 =>
                {
                    last.len += len;
                }
                _ if count == chunks_max => break,
                _ => stripe.chunks.push(Chunk { local: local.0, remote: remote.0, len }),
            }
            stripe.bytes += len;
            self.local.advance(len, local.1);
            self.remote.advance(len, remote.1);
        }
        (stripe.bytes > 0).then_some(stripe)
    }
}

impl Side {
    /// Returns what is left of the range that is next.
    fn rest(&self) -> Option<(u64, u64)> {
        let (offset, len) = self.ranges.get(self.index)?;
        Some((offset + self.done, len - self.done))
    }

    fn advance(&mut self, len: u64, rest: u64) {
        if len == rest {
            (self.index, self.done) = (self.index + 1, 0);
        } else {
            self.done += len;
        }
    }
}

impl Stripe {
    /// Returns the ranges of this side, as offsets and lengths.
    pub(crate) fn local(&self) -> impl Iterator<Item = (u64, u64)> + Clone {
        self.chunks.iter().map(|chunk| (chunk.local, chunk.len))
    }

    /// Returns the ranges of the peer's side, as offsets and lengths.
    pub(crate) fn remote(&self) -> impl Iterator<Item = (u64, u64)> + Clone {
        self.chunks.iter().map(|chunk| (chunk.remote, chunk.len))
    }
}

/// Leaves out the first `done` bytes of ranges.
pub(crate) fn behind(
    ranges: impl Iterator<Item = (u64, u64)> + Clone,
    mut done: u64,
) -> impl Iterator<Item = (u64, u64)> + Clone {
    ranges.filter_map(move |(offset, len)| {
        let skipped = done.min(len);
        done -= skipped;
        (len > skipped).then_some((offset + skipped, len - skipped))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranges(list: &[(u64, u64)]) -> Ranges {
        Ranges::list(list.iter().copied(), 10_000).unwrap()
    }

    fn bytes(list: impl Iterator<Item = (u64, u64)>) -> Vec<u64> {
        list.flat_map(|(offset, len)| offset..offset + len).collect()
    }

    fn stripes(mut plan: Plan, bytes_max: u64, chunks_max: usize) -> Vec<Stripe> {
        std::iter::from_fn(|| plan.next(bytes_max, chunks_max)).collect()
    }

    #[test]
    fn neighbours_on_both_sides_become_one_chunk() {
        let both = ranges(&[(0, 10), (10, 10), (40, 5)]);
        let plan = Plan::new(both, ranges(&[(100, 25)])).unwrap();
        let expected =
            [Chunk { local: 0, remote: 100, len: 20 }, Chunk { local: 40, remote: 120, len: 5 }];
        assert_eq!(
            stripes(plan, 1000, 9),
            [Stripe { chunks: expected.into_iter().collect(), bytes: 25 }]
        );
    }

    #[test]
    fn sides_of_different_size_are_refused_and_nothing_is_no_stripe() {
        let error = Plan::new(ranges(&[(0, 3)]), ranges(&[(0, 4)])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        let empty = Plan::new(ranges(&[(5, 0)]), ranges(&[])).unwrap();
        assert_eq!(stripes(empty, 8, 8), []);
    }

    proptest! {
        #[test]
        fn every_byte_is_moved_exactly_once_and_in_order(
            local in prop::collection::vec((0u64..500, 0u64..40), 0..12),
            cuts in prop::collection::vec(1u64..30, 0..40),
            bytes_max in 1u64..50,
            chunks_max in 1usize..5,
            skipped in 0usize..60,
        ) {
            let total: u64 = local.iter().map(|range| range.1).sum();
            let mut remote = Vec::new();
            let mut left = total;
            for (index, cut) in cuts.iter().enumerate() {
                let len = left.min(*cut);
                // Every other range continues the one before it.
                let start = cuts[index / 2 * 2];
                remote.push((1000 + (index as u64 / 2) * 100 + (index as u64 % 2) * start, len));
                left -= len;
            }
            remote.push((9000, left));
            let plan = Plan::new(ranges(&local), ranges(&remote)).unwrap();
            prop_assert_eq!(plan.total(), total);
            let stripes = stripes(plan, bytes_max, chunks_max);
            let moved = bytes(stripes.iter().flat_map(Stripe::local));
            prop_assert_eq!(&moved, &bytes(local.iter().copied()));
            prop_assert_eq!(bytes(stripes.iter().flat_map(Stripe::remote)), bytes(remote.iter().copied()));
            for stripe in &stripes {
                prop_assert!((1..=bytes_max).contains(&stripe.bytes));
                prop_assert!((1..=chunks_max).contains(&stripe.chunks.len()));
                prop_assert_eq!(stripe.bytes, stripe.local().map(|range| range.1).sum::<u64>());
            }
            let rest = bytes(behind(local.iter().copied(), skipped as u64));
            prop_assert_eq!(&rest[..], moved.get(skipped..).unwrap_or(&[]));
        }
    }
}
