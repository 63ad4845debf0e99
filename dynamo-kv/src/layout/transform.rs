use super::LayoutError;
use super::cache::{CacheLayout, Index, Place, length};
use super::order::Axis;

/// Moves blocks from one layout to another, of other orders of axes or other degrees of tensor
/// parallelism: which bytes go where; pure.
///
/// Of the heads that both caches have, every byte is moved once, and no other byte of the target is
/// touched. Vectors that are neighbours in both caches go together, so that between caches laid out alike
/// a block is as few pieces as it has there.
#[derive(Debug, Clone)]
pub struct Transform {
    /// Of block 0 to block 0.
    pieces: Vec<Piece>,
    /// From block to block, on both sides.
    strides: (Place, Place),
    blocks: (usize, usize),
}

/// Bytes that lie together on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Piece {
    /// Where they are.
    pub from: Place,
    /// Where they go.
    pub to: Place,
    /// How many there are.
    pub len: usize,
}

impl Transform {
    /// Plans moves from blocks of `from` to blocks of `to`.
    ///
    /// Fails with [`LayoutError::Shapes`] if the two are not of one model, block size and type.
    pub fn new(from: &CacheLayout, to: &CacheLayout) -> Result<Self, LayoutError> {
        if from.shape() != to.shape() {
            return Err(LayoutError::Shapes);
        }
        let shape = to.shape();
        let heads = from.heads().start.max(to.heads().start)..from.heads().end.min(to.heads().end);
        let length = |axis| length(shape, 1, &heads, axis);
        let vectors: usize = to.order().axes().iter().map(|&axis| length(axis)).product();
        let mut pieces: Vec<Piece> = Vec::new();
        for number in 0..vectors {
            let index = nth(to.order().axes(), length, heads.start, number);
            if let (Some(from), Some(to)) = (from.place(index), to.place(index)) {
                push(&mut pieces, Piece { from, to, len: shape.vector_bytes() });
            }
        }
        let strides = (from.block_stride(), to.block_stride());
        Ok(Self { pieces, strides, blocks: (from.blocks(), to.blocks()) })
    }

    /// Returns how many bytes of each block are moved: those of the heads that both sides have.
    pub fn block_bytes(&self) -> usize {
        self.pieces.iter().map(|piece| piece.len).sum()
    }

    /// Returns what moves the blocks of `(from, to)`, in their order.
    ///
    /// Fails with [`LayoutError::Block`] naming the first block that is not there.
    pub fn pieces(&self, blocks: &[(usize, usize)]) -> Result<Vec<Piece>, LayoutError> {
        let mut pieces = Vec::with_capacity(self.pieces.len() * blocks.len());
        for &(from, to) in blocks {
            for (block, blocks) in [(from, self.blocks.0), (to, self.blocks.1)] {
                if block >= blocks {
                    return Err(LayoutError::Block { block, blocks });
                }
            }
            for piece in &self.pieces {
                let from = piece.from.after(from, self.strides.0);
                push(&mut pieces, Piece { from, to: piece.to.after(to, self.strides.1), ..*piece });
            }
        }
        Ok(pieces)
    }
}

/// Returns vector `number` of block 0, in the order of `axes`.
fn nth(axes: &[Axis], length: impl Fn(Axis) -> usize, first_head: usize, number: usize) -> Index {
    let (mut index, mut left) = (Index::default(), number);
    for &axis in axes.iter().rev() {
        let at = left % length(axis);
        left /= length(axis);
        match axis {
            Axis::Block => index.block = at,
            Axis::Layer => index.layer = at,
            Axis::Plane => index.plane = at,
            Axis::Token => index.token = at,
            Axis::Head => index.head = first_head + at,
        }
    }
    index
}

/// Appends a piece, to the one before it if they are neighbours on both sides.
fn push(pieces: &mut Vec<Piece>, piece: Piece) {
    match pieces.last_mut() {
        Some(last)
            if last.from.plus(last.len) == piece.from && last.to.plus(last.len) == piece.to =>
        {
            last.len += piece.len;
        }
        _ => pieces.push(piece),
    }
}

impl Place {
    fn plus(self, bytes: usize) -> Self {
        Self { offset: self.offset + bytes, ..self }
    }

    fn after(self, blocks: usize, stride: Self) -> Self {
        let Self { region, offset } = self;
        Self { region: region + blocks * stride.region, offset: offset + blocks * stride.offset }
    }
}

#[cfg(test)]
mod tests;
