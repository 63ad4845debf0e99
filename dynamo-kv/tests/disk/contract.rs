use std::sync::{Arc, Mutex};
use std::time::Duration;

use dynamo_core::ErrorKind;
use dynamo_core::protocol::{self, BlockSize, CacheNamespace, InstanceId, WorkerId};
use dynamo_kv::tier::disk::DiskTier;
use dynamo_kv::tier::{Damage, Loaded, MissReason, Outgoing, Stored, Tier, TierChange, digest};
use dynamo_kv::{
    BlockKey, BlockLayout, BlockManager, DType, ManagerConfig, RegisteredBlock, TokenSequence,
};

use super::support::*;

const BLOCKS: u32 = 4;

fn manager() -> BlockManager {
    let layout = BlockLayout::new(2, 1, 4, BlockSize::DEFAULT, DType::F32).unwrap();
    let config = ManagerConfig::new(layout, BLOCKS as usize);
    BlockManager::new(config, WorkerId::new(InstanceId(1)), Box::new(|_| {})).unwrap()
}

fn keys() -> Vec<BlockKey> {
    let tokens: Vec<u32> = (0..16 * BLOCKS).collect();
    TokenSequence::new(&CacheNamespace::model("m"), BlockSize::DEFAULT, &tokens).keys().to_vec()
}

/// Registers blocks whose bytes are their positions.
fn fill(manager: &BlockManager, keys: &[BlockKey]) -> Vec<RegisteredBlock> {
    let blocks = manager.allocate(keys.len()).unwrap().into_iter().zip(keys);
    let blocks = blocks.map(|(mut block, key)| {
        block.fill(u8::try_from(key.position).unwrap());
        block.complete(*key)
    });
    manager.register_all(blocks.collect()).into()
}

#[tokio::test]
async fn blocks_go_down_and_come_back_through_the_contract_that_all_tiers_share() {
    let (scratch, manager, keys) = (Scratch::new(), manager(), keys());
    let config = scratch.config(BLOCKS, manager.layout().block_bytes());
    let tier = DiskTier::open(config.with_load_time(Duration::from_secs(3))).await.unwrap();
    let tier: Arc<dyn Tier> = Arc::new(tier);
    let changes = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&changes);
    let heard = Box::new(move |change| seen.lock().unwrap().push(change));
    assert_eq!((tier.kind(), tier.watch(heard)), (protocol::Tier::Disk, Vec::new()));

    let blocks = fill(&manager, &keys).into_iter().map(Outgoing::from);
    let stored = tier.store(keys.iter().copied().zip(blocks).collect()).await;
    assert!(stored.iter().all(|stored| matches!(stored, Ok(Stored::Written))), "{stored:?}");
    assert_eq!(changes.lock().unwrap().len(), keys.len());
    assert_eq!(tier.match_prefix(&keys).await, keys.len());
    assert_eq!(tier.estimate(2), Duration::from_secs(6));

    // What is in memory is gone, and comes from below.
    manager.clear();
    assert_eq!(tier.remove(&keys[3..]).await.unwrap(), 1);
    let targets = manager.allocate(keys.len()).unwrap();
    let outcomes = tier.load(keys.iter().copied().zip(targets).collect()).await;
    let (hits, misses): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert!(matches!(&misses[..], [Err(miss)] if matches!(miss.reason, MissReason::Absent)));
    drop(misses);
    let hits = manager.register_all(hits.into_iter().map(|hit| hit.unwrap().complete()).collect());
    assert_eq!(manager.match_prefix(&keys).len(), 3);
    for (block, key) in hits.iter().zip(&keys) {
        assert!(block.iter().all(|byte| u32::from(*byte) == key.position), "{key:?}");
    }
    let stats = tier.stats();
    assert_eq!((stats.blocks, stats.hits_total, stats.misses_total), (3, 3, 1));
    assert_eq!((stats.stored_total, stats.evicted_total), (4, 0));
    assert!(tier.estimate(1) < Duration::from_secs(3), "it was measured");

    assert_eq!(tier.watch(Box::new(|_: TierChange| {})), keys[..3]);
    tier.clear().await.unwrap();
    assert_eq!(tier.match_prefix(&keys).await, 0);
    tier.shutdown(PATIENCE).await.unwrap();
    let error = tier.remove(&keys).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
}

#[test]
fn bytes_prove_themselves_for_the_block_that_they_were_stored_as() {
    let (one, other) = (key(1), key(2));
    let (bytes, proof) = (vec![7u8; 64], digest(&one.identity, &[7; 64]));
    let loaded = Loaded::verify(one, &proof, bytes.clone()).unwrap();
    assert_eq!((loaded.key(), loaded.into_target()), (one, bytes.clone()));
    let mut flipped = bytes.clone();
    flipped[63] ^= 1;
    for (key, bytes) in [(other, bytes), (one, flipped)] {
        let miss = Loaded::verify(key, &proof, bytes).unwrap_err();
        assert!(matches!(miss.reason, MissReason::Damaged(Damage::Digest)));
        assert!(miss.target.is_some());
    }
}
