use dynamo_core::protocol::BlockSize;
use proptest::prelude::*;

use super::*;
use crate::layout::{AxisOrder, DType, KvShape, TpShard};

/// The memory of one cache.
type Regions = Vec<Vec<u8>>;

fn memory(layout: &CacheLayout) -> Regions {
    vec![vec![0; layout.region_bytes()]; layout.regions()]
}

/// Every vector of a layout that there is, block after block.
fn indices(layout: &CacheLayout) -> Vec<Index> {
    let shape = layout.shape();
    let mut all = Vec::new();
    for block in 0..layout.blocks() {
        for layer in 0..shape.layers() {
            for plane in 0..shape.planes() {
                for token in 0..shape.block_size().tokens() {
                    let index = |head| Index { block, layer, plane, token, head };
                    all.extend(layout.heads().map(index));
                }
            }
        }
    }
    all
}

/// The bytes that a vector has, wherever it is: never zero, and hardly ever another's.
fn vector(index: Index, len: usize) -> Vec<u8> {
    let name = format!("{index:?}");
    blake3::hash(name.as_bytes()).as_bytes().iter().cycle().map(|byte| byte | 1).take(len).collect()
}

fn at(place: Place, len: usize) -> std::ops::Range<usize> {
    place.offset..place.offset + len
}

fn fill(layout: &CacheLayout) -> Regions {
    let (mut regions, len) = (memory(layout), layout.shape().vector_bytes());
    for index in indices(layout) {
        let place = layout.place(index).unwrap();
        let bytes = &mut regions[place.region][at(place, len)];
        assert!(bytes.iter().all(|byte| *byte == 0), "two vectors in one place");
        bytes.copy_from_slice(&vector(index, len));
    }
    regions
}

fn apply(pieces: &[Piece], from: &Regions, to: &mut Regions) {
    for Piece { from: source, to: target, len } in pieces {
        let bytes = &mut to[target.region][at(*target, *len)];
        assert!(bytes.iter().all(|byte| *byte == 0), "a byte is moved twice");
        bytes.copy_from_slice(&from[source.region][at(*source, *len)]);
    }
}

fn order() -> impl Strategy<Value = AxisOrder> {
    let axes = Just([Axis::Block, Axis::Layer, Axis::Plane, Axis::Token, Axis::Head]);
    (axes.prop_shuffle(), 0usize..=5)
        .prop_map(|(axes, regions)| AxisOrder::new(axes, regions).unwrap())
}

fn shape() -> impl Strategy<Value = KvShape> {
    let dtype = prop::sample::select(vec![DType::F32, DType::F16, DType::Byte]);
    let size =
        prop::sample::select(vec![1u32, 2, 4]).prop_map(|size| BlockSize::new(size).unwrap());
    (1usize..4, prop::sample::select(vec![2usize, 4]), 1usize..5, size, dtype, any::<bool>())
        .prop_map(|(layers, heads, dim, size, dtype, is_latent)| {
            let shape = if is_latent {
                KvShape::latent(layers, dim, size, dtype)
            } else {
                KvShape::new(layers, heads, dim, size, dtype)
            };
            shape.unwrap()
        })
}

proptest! {
    #[test]
    fn blocks_move_between_any_layouts_and_degrees_and_nothing_else_changes(
        shape in shape(),
        orders in [order(), order()],
        degrees in (prop::sample::select(vec![1usize, 2, 4]), prop::sample::select(vec![1usize, 2, 4])),
    ) {
        const BLOCKS: usize = 3;
        let shards = |degree, order| (0..degree).map(move |rank| {
            let shard = TpShard::new(rank, degree).unwrap();
            CacheLayout::of_shard(shape, BLOCKS, order, shard).unwrap()
        });
        let moved = [(0, 2), (2, 0)];
        for to in shards(degrees.1, orders[1]) {
            let (mut target, mut heads) = (memory(&to), Vec::new());
            for from in shards(degrees.0, orders[0]) {
                // Of ranks with the same heads one sends.
                if heads.contains(&from.heads().start) {
                    continue;
                }
                heads.push(from.heads().start);
                let transform = Transform::new(&from, &to).unwrap();
                let pieces = transform.pieces(&moved).unwrap();
                let bytes: usize = pieces.iter().map(|piece| piece.len).sum();
                prop_assert_eq!(bytes, 2 * transform.block_bytes());
                apply(&pieces, &fill(&from), &mut target);
            }
            let len = shape.vector_bytes();
            for index in indices(&to) {
                let place = to.place(index).unwrap();
                let source = moved.iter().find(|(_, to)| *to == index.block);
                let expected = source.map_or_else(|| vec![0; len], |(block, _)| {
                    vector(Index { block: *block, ..index }, len)
                });
                prop_assert_eq!(&target[place.region][at(place, len)], &expected[..]);
            }
        }
    }
}

fn model() -> KvShape {
    KvShape::new(4, 8, 64, BlockSize::DEFAULT, DType::Bf16).unwrap()
}

fn pieces(from: &CacheLayout, to: &CacheLayout, blocks: usize) -> usize {
    let blocks: Vec<_> = (0..blocks).map(|block| (block, block)).collect();
    Transform::new(from, to).unwrap().pieces(&blocks).unwrap().len()
}

#[test]
fn what_lies_together_on_both_sides_moves_together() {
    let cache = |order| CacheLayout::new(model(), 8, order).unwrap();
    let blocks = cache(AxisOrder::BLOCKS_NHD);
    assert_eq!(pieces(&blocks, &blocks, 8), 1, "neighbours are one piece");
    let layers = cache(AxisOrder::LAYERS_SPLIT_NHD);
    assert_eq!(pieces(&blocks, &layers, 8), 8 * 4 * 2, "K and V of each layer");
    let heads = cache(AxisOrder::BLOCKS_HND);
    // But that the last vector of a plane and the first of the next are neighbours on both sides.
    assert_eq!(pieces(&blocks, &heads, 1), 4 * 2 * 16 * 8 - 7, "vector by vector");
    let shard = TpShard::new(1, 2).unwrap();
    let half = |order| CacheLayout::of_shard(model(), 8, order, shard).unwrap();
    assert_eq!(pieces(&half(AxisOrder::BLOCKS_NHD), &blocks, 1), 4 * 2 * 16, "token by token");
    assert_eq!(pieces(&half(AxisOrder::BLOCKS_HND), &heads, 1), 4 * 2, "all heads of a plane");
}

#[test]
fn other_models_and_blocks_that_are_not_there_are_refused() {
    let other = KvShape::new(4, 8, 64, BlockSize::DEFAULT, DType::F16).unwrap();
    let cache = |shape, blocks| CacheLayout::new(shape, blocks, AxisOrder::BLOCKS_NHD).unwrap();
    let (from, to) = (cache(model(), 2), cache(model(), 1));
    assert_eq!(Transform::new(&from, &cache(other, 1)).unwrap_err(), LayoutError::Shapes);
    let transform = Transform::new(&from, &to).unwrap();
    let refused = transform.pieces(&[(1, 0), (0, 1)]).unwrap_err();
    assert_eq!(refused, LayoutError::Block { block: 1, blocks: 1 });
    assert_eq!(from.place(Index { block: 2, ..Index::default() }), None);
    assert_eq!(from.place(Index { head: 8, ..Index::default() }), None);
    let twice = [Axis::Block, Axis::Layer, Axis::Layer, Axis::Token, Axis::Head];
    assert_eq!(AxisOrder::new(twice, 0), Err(LayoutError::Axes));
}
