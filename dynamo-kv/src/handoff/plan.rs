use crate::layout::{LayoutError, Piece, Place, RankLayout, Transform};

/// Plans which bytes of staged blocks go where: from block `first` of `staged` on, to blocks of ours from
/// 0 on. Of the heads that both sides have, each byte once.
pub(super) fn pieces(
    theirs: &RankLayout,
    ours: &RankLayout,
    staged: usize,
    first: usize,
) -> Result<Vec<Piece>, LayoutError> {
    let missing = staged - first;
    if theirs.order() == ours.order() && theirs.heads() == ours.heads() {
        // No vector has to be looked at: all of it lies alike.
        let bytes = ours.block_bytes();
        let at = |block| Place { region: 0, offset: block * bytes };
        return Ok(vec![Piece { from: at(first), to: at(0), len: missing * bytes }]);
    }
    let transform = Transform::new(&theirs.blocks(staged)?, &ours.blocks(missing)?)?;
    let blocks: Vec<_> = (first..staged).zip(0..).collect();
    transform.pieces(&blocks)
}

/// Tells whether the heads of `theirs` make up ours, each in one of them, and none of them is of no use.
pub(super) fn make_up<'a>(
    theirs: impl IntoIterator<Item = &'a RankLayout>,
    ours: &RankLayout,
) -> bool {
    let ours = ours.heads();
    let common = theirs.into_iter().map(|layout| {
        let heads = layout.heads();
        heads.start.max(ours.start)..heads.end.min(ours.end)
    });
    let mut common: Vec<_> = common.collect();
    common.sort_by_key(|heads| heads.start);
    let mut next = ours.start;
    for heads in common {
        if heads.start != next || heads.is_empty() {
            return false;
        }
        next = heads.end;
    }
    next == ours.end
}

#[cfg(test)]
mod tests {
    use dynamo_core::protocol::BlockSize;

    use super::*;
    use crate::layout::{AxisOrder, DType, KvShape, TpShard};

    fn layout(rank: usize, degree: usize, order: AxisOrder) -> RankLayout {
        let shape = KvShape::new(2, 4, 8, BlockSize::DEFAULT, DType::F16).unwrap();
        RankLayout::new(shape, order, TpShard::new(rank, degree).unwrap()).unwrap()
    }

    fn nhd(rank: usize, degree: usize) -> RankLayout {
        layout(rank, degree, AxisOrder::BLOCKS_NHD)
    }

    #[test]
    fn shards_make_up_a_layout_if_each_head_is_there_once() {
        let halves = [nhd(1, 2), nhd(0, 2)];
        assert!(make_up(&halves, &nhd(0, 1)));
        assert!(make_up(&[nhd(0, 1)], &nhd(1, 2)));
        assert!(make_up(&[nhd(1, 4), nhd(0, 4)], &nhd(0, 2)));
        assert!(!make_up(&halves[..1], &nhd(0, 1)), "a half is missing");
        assert!(!make_up(&[nhd(0, 2), nhd(0, 2)], &nhd(0, 1)), "one of them is there twice");
        assert!(!make_up(&halves, &nhd(0, 2)), "one of them is of no use");
        assert!(!make_up(&[], &nhd(0, 2)));
    }

    #[test]
    fn what_lies_alike_is_one_piece_and_what_does_not_is_moved_by_vectors() {
        let (whole, half) = (nhd(0, 1), nhd(1, 2));
        let moved = |theirs, ours| pieces(theirs, ours, 3, 1).unwrap();
        let at = |block| Place { region: 0, offset: block * whole.block_bytes() };
        let all = Piece { from: at(1), to: at(0), len: 2 * whole.block_bytes() };
        assert_eq!(moved(&whole, &whole), [all]);
        for (theirs, ours) in [(&half, &whole), (&whole, &half)] {
            let bytes: usize = moved(theirs, ours).iter().map(|piece| piece.len).sum();
            assert_eq!(bytes, 2 * half.block_bytes());
        }
        let hnd = layout(0, 1, AxisOrder::BLOCKS_HND);
        let bytes: usize = moved(&hnd, &whole).iter().map(|piece| piece.len).sum();
        assert_eq!(bytes, 2 * whole.block_bytes());
    }
}
