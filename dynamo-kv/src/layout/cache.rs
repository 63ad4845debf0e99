use std::ops::Range;

use super::order::{AXES, Axis, AxisOrder};
use super::{KvShape, LayoutError, TpShard};

/// Where the KV of numbered blocks lies in the memory of one worker: pure, and dense.
///
/// A worker's cache is one region of memory or several of the same size ([`AxisOrder`]); with tensor
/// parallelism it holds the heads of its rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheLayout {
    shape: KvShape,
    order: AxisOrder,
    /// Of the model's heads.
    heads: Range<usize>,
    blocks: usize,
    /// Bytes from one index of an axis to the next, or regions; by axis.
    strides: [usize; AXES],
    regions: usize,
    region_bytes: usize,
}

/// Where a vector of a cache begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Place {
    /// Which region.
    pub region: usize,
    /// Bytes from its beginning.
    pub offset: usize,
}

/// Which vector of a cache: indices by axis, heads counted over the whole model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Index {
    /// Which block.
    pub block: usize,
    /// Which layer.
    pub layer: usize,
    /// 0 for K, 1 for V.
    pub plane: usize,
    /// Which token of the block.
    pub token: usize,
    /// Which KV head of the model.
    pub head: usize,
}

impl CacheLayout {
    /// Lays out `blocks` blocks of all heads.
    pub fn new(shape: KvShape, blocks: usize, order: AxisOrder) -> Result<Self, LayoutError> {
        Self::of_shard(shape, blocks, order, TpShard::WHOLE)
    }

    /// Lays out `blocks` blocks of the heads that a rank of tensor parallelism has.
    ///
    /// Fails with [`LayoutError::Heads`] if the heads cannot be shared out, and with
    /// [`LayoutError::Zero`] and [`LayoutError::TooLarge`].
    pub fn of_shard(
        shape: KvShape,
        blocks: usize,
        order: AxisOrder,
        shard: TpShard,
    ) -> Result<Self, LayoutError> {
        if blocks == 0 {
            return Err(LayoutError::Zero("blocks"));
        }
        let heads = shard.heads(shape.heads())?;
        let (mut strides, mut regions, mut bytes) = ([0; AXES], 1usize, shape.vector_bytes());
        let length = |axis| length(&shape, blocks, &heads, axis);
        for &axis in order.inner().iter().rev() {
            strides[axis as usize] = bytes;
            bytes = bytes.checked_mul(length(axis)).ok_or(LayoutError::TooLarge)?;
        }
        for &axis in order.outer().iter().rev() {
            strides[axis as usize] = regions;
            regions = regions.checked_mul(length(axis)).ok_or(LayoutError::TooLarge)?;
        }
        isize::try_from(bytes).map_err(|_| LayoutError::TooLarge)?;
        Ok(Self { shape, order, heads, blocks, strides, regions, region_bytes: bytes })
    }

    /// Returns what a block of the model is.
    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Returns how the axes lie.
    pub fn order(&self) -> AxisOrder {
        self.order
    }

    /// Returns which of the model's KV heads are here.
    pub fn heads(&self) -> Range<usize> {
        self.heads.clone()
    }

    /// Returns how many blocks there are.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Returns how many regions there are.
    pub fn regions(&self) -> usize {
        self.regions
    }

    /// Returns the size of each region in bytes.
    pub fn region_bytes(&self) -> usize {
        self.region_bytes
    }

    /// Returns where a vector of [`KvShape::vector_bytes`] begins; `None` if it is not here.
    pub fn place(&self, index: Index) -> Option<Place> {
        let Index { block, layer, plane, token, head } = index;
        let head = head.checked_sub(self.heads.start)?;
        let index = [block, layer, plane, token, head];
        let is_here = |axis: &Axis| index[*axis as usize] < self.length(*axis);
        let at = |axes: &[Axis]| {
            axes.iter().map(|&axis| index[axis as usize] * self.strides[axis as usize]).sum()
        };
        let place = || Place { region: at(self.order.outer()), offset: at(self.order.inner()) };
        self.order.axes().iter().all(is_here).then(place)
    }

    fn length(&self, axis: Axis) -> usize {
        length(&self.shape, self.blocks, &self.heads, axis)
    }

    /// Returns how far a block is from the one before it.
    pub(super) fn block_stride(&self) -> Place {
        let stride = self.strides[Axis::Block as usize];
        if self.order.outer().contains(&Axis::Block) {
            Place { region: stride, offset: 0 }
        } else {
            Place { region: 0, offset: stride }
        }
    }
}

/// Returns how many indices an axis has.
pub(super) fn length(shape: &KvShape, blocks: usize, heads: &Range<usize>, axis: Axis) -> usize {
    match axis {
        Axis::Block => blocks,
        Axis::Layer => shape.layers(),
        Axis::Plane => shape.planes(),
        Axis::Token => shape.block_size().tokens(),
        Axis::Head => heads.len(),
    }
}
