//! A model of two groups of layers, each with a disk of its own.

use std::sync::Arc;

use dynamo_kv::tier::Tier;
use dynamo_kv::tier::disk::DiskTier;
use dynamo_kv::{Attention, BlockGroups, BlockManager};

use super::support::*;

const BLOCKS: u32 = 12;
const WINDOW: usize = 4;

/// Has all blocks of a sequence in both groups, and in memory none.
async fn below(scratch: [&Scratch; 2]) -> (BlockGroups, [BlockManager; 2], [Arc<DiskTier>; 2]) {
    let disks = [scratch[0].disk(64).await, scratch[1].disk(64).await];
    let managers = [&disks[0], &disks[1]].map(|disk| manager(16, over(disk)).0);
    // Behind a block there are three of the window that it is read with.
    let window = Attention::Window { tokens: WINDOW };
    let groups = [Attention::Full, window].into_iter().zip(managers.clone()).collect();
    let groups = BlockGroups::new(groups).unwrap();
    let keys = keys(0, BLOCKS);
    for (number, manager) in managers.iter().enumerate() {
        let blocks = manager.allocate(keys.len()).unwrap();
        let blocks = blocks.into_iter().zip(&keys).map(|(mut block, key)| {
            write(&key.identity, &mut block);
            (block, *key)
        });
        drop(groups.register(number, blocks.collect()));
        drop(manager.reserve(16).await.unwrap());
        written(manager, 128).await;
        assert_eq!(manager.stats().free, 16, "all have gone down");
    }
    (groups, managers, disks)
}

fn loaded(manager: &BlockManager) -> u64 {
    manager.tiers().unwrap().tiers[0].stats.hits_total
}

#[tokio::test]
async fn a_window_loads_what_it_reads_and_full_attention_all() {
    let scratch = [Scratch::new(), Scratch::new()];
    let (groups, managers, _) = below([&scratch[0], &scratch[1]]).await;
    let keys = keys(0, BLOCKS);
    assert_eq!(groups.match_prefix(&keys).blocks(), 0, "nothing is in memory");

    let found = groups.acquire(&keys).await;
    assert_eq!(found.blocks(), keys.len());
    for group in found.into_groups() {
        assert_eq!(group.blocks.len(), group.range.len());
        for (block, key) in group.blocks.iter().zip(&keys[group.range]) {
            let mut truth = vec![0; block.len()];
            write(&key.identity, &mut truth);
            assert!(*block.identity() == key.identity && **block == truth[..]);
        }
    }
    assert_eq!([loaded(&managers[0]), loaded(&managers[1])], [12, 3]);
    for manager in managers {
        assert_eq!(manager.stats().active, 0);
        manager.shutdown(PATIENCE).await.unwrap();
    }
}

#[tokio::test]
async fn a_block_that_a_window_has_nowhere_shortens_the_prefix_to_where_it_is_not_read() {
    let scratch = [Scratch::new(), Scratch::new()];
    let (groups, managers, disks) = below([&scratch[0], &scratch[1]]).await;
    let keys = keys(0, BLOCKS);
    assert_eq!(Tier::remove(&*disks[1], &keys[10..11]).await.unwrap(), 1);

    let found = groups.acquire(&keys).await;
    assert_eq!(found.blocks(), 10);
    let ranges = found.into_groups().into_iter().map(|group| (group.range, group.blocks.len()));
    assert_eq!(ranges.collect::<Vec<_>>(), [(0..10, 10), (7..10, 3)]);
    // The last one as well: it was asked for beside the one that is missing.
    assert_eq!([loaded(&managers[0]), loaded(&managers[1])], [12, 4]);
    for manager in managers {
        manager.shutdown(PATIENCE).await.unwrap();
    }
}
