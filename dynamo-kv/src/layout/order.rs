use super::LayoutError;

/// What the KV of numbered blocks is indexed by, beside the elements of a vector, which always lie
/// together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Axis {
    /// Which block.
    Block,
    /// Which layer.
    Layer,
    /// K or V.
    Plane,
    /// Which token of the block.
    Token,
    /// Which KV head.
    Head,
}

/// How the axes of a cache lie in memory, the outermost first; the first few may each choose a piece of
/// memory of its own, a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AxisOrder {
    axes: [Axis; AXES],
    regions: usize,
}

/// How many axes there are.
pub(crate) const AXES: usize = 5;

impl AxisOrder {
    /// Block after block in one region, tokens before heads (NHD).
    pub const BLOCKS_NHD: Self =
        Self { axes: [Axis::Block, Axis::Layer, Axis::Plane, Axis::Token, Axis::Head], regions: 0 };

    /// Block after block in one region, heads before tokens (HND): what one rank of TP has of a head is
    /// in one piece.
    pub const BLOCKS_HND: Self =
        Self { axes: [Axis::Block, Axis::Layer, Axis::Plane, Axis::Head, Axis::Token], regions: 0 };

    /// A region for each layer, there all K before all V, NHD: `[2, blocks, tokens, heads, head_dim]`, as
    /// vLLM lays it out for FlashAttention.
    pub const LAYERS_SPLIT_NHD: Self =
        Self { axes: [Axis::Layer, Axis::Plane, Axis::Block, Axis::Token, Axis::Head], regions: 1 };

    /// A region for each layer, there block after block, HND: `[blocks, 2, heads, tokens, head_dim]`, as
    /// vLLM lays it out for FlashInfer where that wants HND.
    pub const LAYERS_HND: Self =
        Self { axes: [Axis::Layer, Axis::Block, Axis::Plane, Axis::Head, Axis::Token], regions: 1 };

    /// A region for K and one for V of each layer, NHD: `[blocks, tokens, heads, head_dim]`, as SGLang
    /// lays it out.
    pub const PLANES_NHD: Self =
        Self { axes: [Axis::Layer, Axis::Plane, Axis::Block, Axis::Token, Axis::Head], regions: 2 };

    /// Lays `axes` out, the first `regions` of which choose a region.
    ///
    /// Fails with [`LayoutError::Axes`] unless each axis is there once.
    pub fn new(axes: [Axis; AXES], regions: usize) -> Result<Self, LayoutError> {
        let is_each_once = (1..AXES).all(|at| !axes[..at].contains(&axes[at]));
        if is_each_once && regions <= AXES {
            Ok(Self { axes, regions })
        } else {
            Err(LayoutError::Axes)
        }
    }

    /// Returns the axes that choose a region.
    pub fn outer(&self) -> &[Axis] {
        &self.axes[..self.regions]
    }

    /// Returns the axes within a region.
    pub fn inner(&self) -> &[Axis] {
        &self.axes[self.regions..]
    }

    /// Returns all axes, the outermost first.
    pub fn axes(&self) -> &[Axis; AXES] {
        &self.axes
    }
}
