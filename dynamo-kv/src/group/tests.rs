use dynamo_core::ErrorKind;
use dynamo_core::protocol::{CacheNamespace, InstanceId, WorkerId};
use futures::FutureExt;
use proptest::prelude::*;

use super::*;
use crate::layout::{BlockLayout, DType, KvShape};
use crate::manager::ManagerConfig;
use crate::sequence::TokenSequence;

const BLOCK_TOKENS: usize = 4;
const BLOCKS: usize = 12;

fn manager(block_tokens: usize, blocks: usize) -> BlockManager {
    let size = BlockSize::new(u32::try_from(block_tokens).unwrap()).unwrap();
    let layout = BlockLayout::of(KvShape::latent(1, 4, size, DType::Byte).unwrap());
    let (config, worker) = (ManagerConfig::new(layout, blocks), WorkerId::new(InstanceId(1)));
    BlockManager::new(config, worker, Box::new(|_event| {})).unwrap()
}

fn keys() -> Vec<BlockKey> {
    let tokens: Vec<u32> = (0..).take(BLOCKS * BLOCK_TOKENS).collect();
    let size = BlockSize::new(u32::try_from(BLOCK_TOKENS).unwrap()).unwrap();
    TokenSequence::new(&CacheNamespace::default(), size, &tokens).keys().to_vec()
}

/// What every byte is of a block of a group.
fn content(group: usize, position: usize) -> u8 {
    u8::try_from(group * BLOCKS + position).unwrap()
}

fn store(
    groups: &BlockGroups,
    group: usize,
    keys: &[BlockKey],
    position: usize,
) -> RegisteredBlock {
    let mut block = groups.manager(group).allocate(1).unwrap().remove(0);
    block.fill(content(group, position));
    groups.register(group, vec![(block, keys[position])]).into_iter().next().unwrap()
}

/// Tells whether whatever the tokens behind the first `blocks` attend to is there.
fn is_whole(attention: Attention, there: &[bool], blocks: usize) -> bool {
    let next = blocks * BLOCK_TOKENS;
    let first = match attention {
        Attention::Full => 0,
        Attention::Window { tokens } => (next + 1).saturating_sub(tokens),
    };
    (first..next).all(|token| there[token / BLOCK_TOKENS])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_prefix_is_as_long_as_every_group_has_what_it_reads(
        there in prop::collection::vec(prop::collection::vec(prop::bool::weighted(0.8), BLOCKS), 3),
        windows in prop::collection::vec(1..30usize, 2),
        asked in 0..=BLOCKS,
    ) {
        let attention = |group: usize| match group {
            0 => Attention::Full,
            _ => Attention::Window { tokens: windows[group - 1] },
        };
        let (keys, managers) = (keys(), (0..3).map(|_| manager(BLOCK_TOKENS, BLOCKS)));
        let groups = BlockGroups::new((0..3).map(attention).zip(managers).collect()).unwrap();
        for (group, there) in there.iter().enumerate() {
            for position in (0..BLOCKS).filter(|&position| there[position]) {
                drop(store(&groups, group, &keys, position));
            }
        }
        let is_whole = |blocks: &usize| (0..3).all(|group| is_whole(attention(group), &there[group], *blocks));
        let acquired = groups.acquire(&keys[..asked]).now_or_never().expect("no tier to wait for");
        let found = groups.match_prefix(&keys[..asked]);
        prop_assert_eq!(acquired.blocks(), found.blocks());
        let ranges = |prefix: GroupedPrefix| {
            prefix.into_groups().into_iter().map(|group| (group.range, group.blocks.len())).collect::<Vec<_>>()
        };
        prop_assert_eq!(ranges(acquired), ranges(groups.match_prefix(&keys[..asked])));
        prop_assert_eq!(found.blocks(), (0..=asked).rev().find(is_whole).unwrap());
        let blocks = found.blocks();
        for (group, found) in found.into_groups().into_iter().enumerate() {
            prop_assert_eq!(found.range.clone(), attention(group).reads(blocks, groups.block_size));
            prop_assert_eq!(found.blocks.len(), found.range.len());
            for (position, block) in found.range.zip(&found.blocks) {
                prop_assert_eq!(*block.identity(), keys[position].identity);
                prop_assert!(block.iter().all(|&byte| byte == content(group, position)));
            }
        }
        for group in 0..3 {
            prop_assert_eq!(groups.manager(group).stats().active, 0);
        }
    }
}

#[test]
fn a_window_needs_no_room_for_what_it_has_left_behind() {
    let attention = Attention::Window { tokens: 2 * BLOCK_TOKENS };
    let groups = vec![
        (Attention::Full, manager(BLOCK_TOKENS, BLOCKS)),
        (attention, manager(BLOCK_TOKENS, 3)),
    ];
    let (groups, keys) = (BlockGroups::new(groups).unwrap(), keys());
    let mut held = Vec::new();
    for position in 0..BLOCKS {
        drop(store(&groups, 0, &keys, position));
        held.push(store(&groups, 1, &keys, position));
        let left_behind =
            held.len() - attention.reads(position + 1, groups.block_size).len().min(held.len());
        held.drain(..left_behind);
    }
    drop(held);
    let found = groups.match_prefix(&keys);
    assert_eq!(found.blocks(), BLOCKS);
    assert_eq!(found.into_groups()[1].range, BLOCKS - 2..BLOCKS);
}

#[test]
fn blocks_are_allocated_in_all_groups_or_in_none() {
    let groups =
        vec![(Attention::Full, manager(4, 5)), (Attention::Window { tokens: 4 }, manager(4, 2))];
    let groups = BlockGroups::new(groups).unwrap();
    let error = groups.allocate(3).unwrap_err();
    assert_eq!((error.group, error.source.requested, error.source.capacity), (1, 3, 2));
    assert_eq!((groups.manager(0).stats().free, groups.manager(1).stats().free), (5, 2));
    let allocated = groups.allocate(2).unwrap();
    assert_eq!(allocated.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2]);
}

#[test]
fn groups_that_make_no_model_are_refused() {
    let refused = |groups| BlockGroups::new(groups).unwrap_err();
    let window = |tokens| (Attention::Window { tokens }, manager(4, 1));
    for (error, said) in [
        (refused(vec![]), "no block groups"),
        (refused(vec![window(8), (Attention::Full, manager(8, 1))]), "group 1 of 8 tokens"),
        (refused(vec![window(8), window(0)]), "group 1 with a window of 0"),
    ] {
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(said), "{error}");
    }
}
