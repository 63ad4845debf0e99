use std::ops::Range;

use super::LayoutError;

/// The part of a model that one rank of tensor parallelism (TP) has: a range of its KV heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TpShard {
    rank: usize,
    degree: usize,
}

impl TpShard {
    /// All heads.
    pub const WHOLE: Self = Self { rank: 0, degree: 1 };

    /// Describes rank `rank` of `degree`.
    pub const fn new(rank: usize, degree: usize) -> Result<Self, LayoutError> {
        if rank < degree {
            Ok(Self { rank, degree })
        } else {
            Err(LayoutError::Shard { rank, degree })
        }
    }

    /// Returns which rank it is.
    pub fn rank(self) -> usize {
        self.rank
    }

    /// Returns how many ranks there are.
    pub fn degree(self) -> usize {
        self.degree
    }

    /// Returns which of `heads` KV heads the rank has: as many as each other one; of fewer heads than
    /// ranks several have the same.
    ///
    /// Fails with [`LayoutError::Heads`] if neither number divides the other.
    pub fn heads(self, heads: usize) -> Result<Range<usize>, LayoutError> {
        let Self { rank, degree } = self;
        if heads.is_multiple_of(degree) {
            let each = heads / degree;
            Ok(rank * each..(rank + 1) * each)
        } else if degree.is_multiple_of(heads) {
            let head = rank / (degree / heads);
            Ok(head..head + 1)
        } else {
            Err(LayoutError::Heads { heads, degree })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_share_heads_evenly_and_too_many_ranks_repeat_them() {
        let heads = |rank, degree, heads| TpShard::new(rank, degree).unwrap().heads(heads);
        assert_eq!(heads(1, 2, 8), Ok(4..8));
        assert_eq!(heads(5, 8, 2), Ok(1..2));
        assert_eq!(heads(0, 3, 8), Err(LayoutError::Heads { heads: 8, degree: 3 }));
        assert_eq!(TpShard::new(2, 2), Err(LayoutError::Shard { rank: 2, degree: 2 }));
        assert_eq!(TpShard::new(0, 0), Err(LayoutError::Shard { rank: 0, degree: 0 }));
    }
}
