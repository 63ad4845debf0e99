use dynamo_core::protocol::BlockSize;

use super::{DType, LayoutError};

/// What one block of a model's KV is, wherever it lies: `layers × planes × tokens × heads × head_dim`
/// elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    layers: usize,
    planes: usize,
    heads: usize,
    head_dim: usize,
    block_size: BlockSize,
    dtype: DType,
}

impl KvShape {
    /// Describes blocks of `block_size` tokens over `layers` layers, with K and V of `heads` KV heads of
    /// `head_dim` elements each.
    pub fn new(
        layers: usize,
        heads: usize,
        head_dim: usize,
        block_size: BlockSize,
        dtype: DType,
    ) -> Result<Self, LayoutError> {
        Self { layers, planes: 2, heads, head_dim, block_size, dtype }.checked()
    }

    /// Describes blocks of multi-head latent attention (MLA): each layer keeps one vector of `latent_dim`
    /// elements for a token, from which all heads take their K and V.
    pub fn latent(
        layers: usize,
        latent_dim: usize,
        block_size: BlockSize,
        dtype: DType,
    ) -> Result<Self, LayoutError> {
        let (planes, heads, head_dim) = (1, 1, latent_dim);
        Self { layers, planes, heads, head_dim, block_size, dtype }.checked()
    }

    fn checked(self) -> Result<Self, LayoutError> {
        let Self { layers, planes, heads, head_dim, block_size, dtype } = self;
        for (axis, length) in [("layers", layers), ("heads", heads), ("head_dim", head_dim)] {
            if length == 0 {
                return Err(LayoutError::Zero(axis));
            }
        }
        let bytes = [planes, block_size.tokens(), heads, head_dim, dtype.size_bytes()]
            .into_iter()
            .try_fold(layers, usize::checked_mul);
        bytes.filter(|&bytes| isize::try_from(bytes).is_ok()).ok_or(LayoutError::TooLarge)?;
        Ok(self)
    }

    /// Returns the number of layers.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Returns how many vectors each layer keeps for a token and head: 2, K and V, or 1 of MLA.
    pub fn planes(&self) -> usize {
        self.planes
    }

    /// Returns the number of KV heads of the whole model.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Returns how many tokens a block holds.
    pub fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// Returns the size of one vector, of one head and token in one plane, in bytes.
    pub fn vector_bytes(&self) -> usize {
        self.head_dim * self.dtype.size_bytes()
    }

    /// Returns the size of a block with all heads in bytes.
    pub fn block_bytes(&self) -> usize {
        self.layers * self.planes * self.plane_bytes()
    }

    /// Returns the size of one plane of one layer of a block in bytes.
    pub(super) fn plane_bytes(&self) -> usize {
        self.block_size.tokens() * self.heads * self.vector_bytes()
    }

    /// Returns the number of elements of a vector, of one head and token in one plane.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Returns the type of one element.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Returns the axes of a block, for a number that tells shapes apart.
    pub(super) fn axes(&self) -> [usize; 6] {
        let tokens = self.block_size.tokens();
        [self.layers, self.planes, tokens, self.heads, self.head_dim, self.dtype as usize]
    }
}
