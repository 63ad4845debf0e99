use std::cell::RefCell;
use std::time::Duration;

use dynamo_kv::tier::disk::DiskTier;
use dynamo_kv::tier::{Damage, Loaded, MissReason, Tier as _, conformance, digest};

use super::support::*;

#[tokio::test]
async fn a_tier_on_a_disk_conforms() {
    let scratches = RefCell::new(Vec::new());
    conformance::run(async || {
        let scratch = Scratch::new();
        let config = scratch.config(conformance::BLOCKS, conformance::layout().block_bytes());
        scratches.borrow_mut().push(scratch);
        DiskTier::open(config).await.unwrap()
    })
    .await;
}

#[tokio::test]
async fn a_disk_is_taken_to_be_as_fast_as_the_config_says_until_it_is_measured() {
    let scratch = Scratch::new();
    let config = scratch.config(4, 4096).with_load_time(Duration::from_secs(3));
    let (tier, truth) = (DiskTier::open(config).await.unwrap(), Truth::new(1, 4096));
    assert_eq!(tier.estimate(2), Duration::from_secs(6));
    store(&tier, &truth, [0]).await.remove(0).unwrap();
    assert!(truth.load(&tier, &[key(0).identity]).await.is_empty());
    assert!(tier.estimate(1) < Duration::from_secs(3), "it was measured");
    shut(tier).await;
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
