//! Shape → byte ranges; pure.

mod cache;
mod order;
mod rank;
mod shape;
mod shard;
mod transform;

use std::ops::Range;

use dynamo_core::protocol::BlockSize;

pub use cache::{CacheLayout, Index, Place};
pub use order::{Axis, AxisOrder};
pub use rank::RankLayout;
pub use shape::KvShape;
pub use shard::TpShard;
pub use transform::{Piece, Transform};

/// The type of one element of K or V.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// 32-bit float.
    F32,
    /// 16-bit float (IEEE 754).
    F16,
    /// 16-bit float (bfloat16).
    Bf16,
    /// 8-bit float or integer.
    Byte,
}

impl DType {
    /// Returns the size of one element in bytes.
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Byte => 1,
        }
    }
}

/// Where the K and V of each layer stand inside one block.
///
/// A block is `[layers, planes, tokens, heads, head_dim]`, row-major and contiguous; plane 0 is K, 1 is
/// V, and of latent attention there is one only ([`KvShape::latent`]). `heads` counts KV heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockLayout {
    shape: KvShape,
}

/// A shape or a layout that there cannot be, or a block that a layout does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// An axis has no elements.
    #[error("block layout has zero {0}")]
    Zero(&'static str),
    /// The block would not fit into the address space.
    #[error("block layout is larger than the address space")]
    TooLarge,
    /// No rank of that many.
    #[error("rank {rank} of {degree}")]
    Shard {
        /// The rank.
        rank: usize,
        /// How many ranks there are.
        degree: usize,
    },
    /// The KV heads cannot be shared out evenly.
    #[error("{heads} KV heads cannot be shared out to {degree} ranks")]
    Heads {
        /// KV heads of the model.
        heads: usize,
        /// How many ranks there are.
        degree: usize,
    },
    /// An axis is missing, or there twice.
    #[error("a layout has each axis once")]
    Axes,
    /// Two caches are not of one model, block size and type.
    #[error("blocks of two shapes are not interchangeable")]
    Shapes,
    /// A block is not in the cache.
    #[error("block {block} of {blocks}")]
    Block {
        /// The block.
        block: usize,
        /// How many there are.
        blocks: usize,
    },
}

impl BlockLayout {
    /// Creates the layout of blocks of `block_size` tokens over `layers` layers of `heads` KV heads
    /// of `head_dim` elements.
    pub fn new(
        layers: usize,
        heads: usize,
        head_dim: usize,
        block_size: BlockSize,
        dtype: DType,
    ) -> Result<Self, LayoutError> {
        KvShape::new(layers, heads, head_dim, block_size, dtype).map(Self::of)
    }

    /// Creates the layout of blocks of a shape.
    pub const fn of(shape: KvShape) -> Self {
        Self { shape }
    }

    /// Returns what a block is.
    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Returns the size of a block in bytes.
    pub fn block_bytes(&self) -> usize {
        self.shape.block_bytes()
    }

    /// Returns how many tokens a block holds.
    pub fn block_size(&self) -> BlockSize {
        self.shape.block_size()
    }

    /// Returns the byte range of a layer's K: `[tokens, heads, head_dim]`.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn keys(&self, layer: usize) -> Range<usize> {
        self.plane(layer, 0)
    }

    /// Returns the byte range of a layer's V: `[tokens, heads, head_dim]`.
    ///
    /// # Panics
    /// If there is no such layer, or it has no V.
    pub fn values(&self, layer: usize) -> Range<usize> {
        self.plane(layer, 1)
    }

    /// Returns the byte range of one plane of a layer: `[tokens, heads, head_dim]`.
    ///
    /// # Panics
    /// If there is no such layer or plane.
    pub fn plane(&self, layer: usize, plane: usize) -> Range<usize> {
        let (layers, planes) = (self.shape.layers(), self.shape.planes());
        assert!(layer < layers, "layer {layer} of {layers}");
        assert!(plane < planes, "plane {plane} of {planes}");
        let plane_bytes = self.shape.plane_bytes();
        let start = (layer * planes + plane) * plane_bytes;
        start..start + plane_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_tile_the_block_in_order() {
        let layout = BlockLayout::new(3, 2, 8, BlockSize::DEFAULT, DType::F16).unwrap();
        let mut end = 0;
        for layer in 0..3 {
            for plane in [layout.keys(layer), layout.values(layer)] {
                assert_eq!(plane.start, end);
                assert_eq!(plane.len(), 16 * 2 * 8 * 2);
                end = plane.end;
            }
        }
        assert_eq!(end, layout.block_bytes());
    }

    #[test]
    fn latent_attention_has_one_plane_per_layer() {
        let shape = KvShape::latent(2, 576, BlockSize::DEFAULT, DType::Bf16).unwrap();
        let layout = BlockLayout::of(shape);
        let plane_bytes = 16 * 576 * 2;
        assert_eq!(layout.plane(1, 0), plane_bytes..2 * plane_bytes);
        assert_eq!(layout.block_bytes(), 2 * plane_bytes);
    }

    #[test]
    #[should_panic = "plane 1 of 1"]
    fn latent_attention_has_no_v() {
        let shape = KvShape::latent(2, 576, BlockSize::DEFAULT, DType::Bf16).unwrap();
        let _ = BlockLayout::of(shape).values(0);
    }

    #[test]
    fn impossible_shapes_are_refused() {
        let new = |layers, heads| {
            BlockLayout::new(layers, heads, usize::MAX / 64, BlockSize::DEFAULT, DType::F32)
        };
        assert_eq!(new(0, 1), Err(LayoutError::Zero("layers")));
        assert_eq!(new(1, 1), Err(LayoutError::TooLarge));
    }
}
