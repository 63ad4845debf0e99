use std::ops::Range;

use super::order::Axis;
use super::{AxisOrder, BlockLayout, CacheLayout, KvShape, LayoutError, TpShard};

/// How the blocks of one worker lie, each in one piece: of which model, in which order of axes, and of
/// which rank of tensor parallelism.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankLayout {
    shape: KvShape,
    order: AxisOrder,
    shard: TpShard,
    heads: Range<usize>,
}

impl RankLayout {
    /// Lays out blocks of a model, of which `shape` counts all heads.
    ///
    /// Fails with [`LayoutError::Axes`] unless blocks are the outermost axis and in one region, and with
    /// [`LayoutError::Heads`] if the heads cannot be shared out.
    pub fn new(shape: KvShape, order: AxisOrder, shard: TpShard) -> Result<Self, LayoutError> {
        if !order.outer().is_empty() || order.inner().first() != Some(&Axis::Block) {
            return Err(LayoutError::Axes);
        }
        let heads = shard.heads(shape.heads())?;
        Ok(Self { shape, order, shard, heads })
    }

    /// Returns what a block of the model is.
    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Returns how the axes of a block lie.
    pub fn order(&self) -> AxisOrder {
        self.order
    }

    /// Returns which rank has them.
    pub fn shard(&self) -> TpShard {
        self.shard
    }

    /// Returns which of the model's KV heads are here.
    pub fn heads(&self) -> Range<usize> {
        self.heads.clone()
    }

    /// Returns the size of a block here in bytes.
    pub fn block_bytes(&self) -> usize {
        self.shape.block_bytes() / self.shape.heads() * self.heads.len()
    }

    /// Returns where the vectors of `count` blocks lie, one block behind the other.
    ///
    /// Fails with [`LayoutError::Zero`] and [`LayoutError::TooLarge`].
    pub fn blocks(&self, count: usize) -> Result<CacheLayout, LayoutError> {
        CacheLayout::of_shard(self.shape, count, self.order, self.shard)
    }
}

impl From<BlockLayout> for RankLayout {
    /// All heads, tokens before heads.
    fn from(layout: BlockLayout) -> Self {
        let shape = *layout.shape();
        let (order, shard, heads) = (AxisOrder::BLOCKS_NHD, TpShard::WHOLE, 0..shape.heads());
        Self { shape, order, shard, heads }
    }
}

#[cfg(test)]
mod tests {
    use dynamo_core::protocol::BlockSize;

    use super::*;
    use crate::layout::DType;

    #[test]
    fn a_rank_has_its_part_of_each_block_in_one_piece() {
        let shape = KvShape::new(3, 4, 8, BlockSize::DEFAULT, DType::F16).unwrap();
        for (rank, degree) in [(0, 1), (1, 2), (3, 4), (7, 8)] {
            let shard = TpShard::new(rank, degree).unwrap();
            let layout = RankLayout::new(shape, AxisOrder::BLOCKS_HND, shard).unwrap();
            assert_eq!(layout.blocks(2).unwrap().region_bytes(), 2 * layout.block_bytes());
        }
        let in_layers = RankLayout::new(shape, AxisOrder::LAYERS_HND, TpShard::WHOLE);
        assert_eq!(in_layers, Err(LayoutError::Axes));
        let thirds = TpShard::new(0, 3).unwrap();
        let thirds = RankLayout::new(shape, AxisOrder::BLOCKS_NHD, thirds);
        assert_eq!(thirds, Err(LayoutError::Heads { heads: 4, degree: 3 }));
        let block = BlockLayout::new(3, 4, 8, BlockSize::DEFAULT, DType::F16).unwrap();
        let whole = RankLayout::new(shape, AxisOrder::BLOCKS_NHD, TpShard::WHOLE);
        assert_eq!(whole, Ok(RankLayout::from(block)));
    }
}
