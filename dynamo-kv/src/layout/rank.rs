use std::ops::Range;

use dynamo_core::protocol::BlockSize;

use super::order::Axis;
use super::{AxisOrder, BlockLayout, CacheLayout, KvShape, LayoutError, TpShard};

/// How the blocks of one worker lie, each in one piece: which layers of a model, in which order of axes,
/// and of which rank of tensor parallelism.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankLayout {
    shape: KvShape,
    order: AxisOrder,
    shard: TpShard,
    heads: Range<usize>,
    first_layer: usize,
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
        Ok(Self { shape, order, shard, heads, first_layer: 0 })
    }

    /// Says which layer of the model is the first one here, from 0: what tells stages of pipeline
    /// parallelism apart, and groups of layers of one shape.
    #[must_use]
    pub fn with_first_layer(mut self, layer: usize) -> Self {
        self.first_layer = layer;
        self
    }

    /// Returns which layer of the model is the first one here.
    pub fn first_layer(&self) -> usize {
        self.first_layer
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

    /// Returns how many tokens a block holds.
    pub fn block_size(&self) -> BlockSize {
        self.shape.block_size()
    }

    /// Returns a number that two layouts share only if a block of one is, byte for byte, that of the
    /// other: the same layers and heads of models of one shape, in the same order.
    ///
    /// Which model it is, blocks say by their identity.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = blake3::Hasher::new_derive_key("dynamo-kv 2026-11 layout of a rank");
        let order = self.order.axes().iter().map(|axis| *axis as usize);
        let part = [self.first_layer, self.heads.start, self.heads.end];
        for number in self.shape.axes().into_iter().chain(order).chain(part) {
            hasher.update(&(number as u64).to_le_bytes());
        }
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        u64::from_le_bytes(bytes)
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
        Self { shape, order, shard, heads, first_layer: 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::layout::DType;

    #[test]
    fn a_fingerprint_tells_apart_what_is_not_interchangeable() {
        let shape = |layers, heads, dtype| {
            KvShape::new(layers, heads, 8, BlockSize::DEFAULT, dtype).unwrap()
        };
        let of = |shape, order, rank, degree| {
            RankLayout::new(shape, order, TpShard::new(rank, degree).unwrap()).unwrap()
        };
        let (base, nhd) = (shape(2, 4, DType::F16), AxisOrder::BLOCKS_NHD);
        let layouts = [
            of(base, nhd, 0, 1),
            of(base, nhd, 0, 2),
            of(base, nhd, 1, 2),
            of(base, AxisOrder::BLOCKS_HND, 0, 1),
            of(base, nhd, 0, 1).with_first_layer(2),
            of(shape(4, 2, DType::F16), nhd, 0, 1),
            of(shape(2, 4, DType::Bf16), nhd, 0, 1),
            of(shape(2, 2, DType::F32), nhd, 0, 1),
        ];
        let prints: BTreeSet<_> = layouts.iter().map(RankLayout::fingerprint).collect();
        assert_eq!(prints.len(), layouts.len());
        // Of two ranks for each head, both have the same.
        let both = [0, 1].map(|rank| of(base, nhd, rank, 8).fingerprint());
        assert_eq!(both[0], both[1]);
    }

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
