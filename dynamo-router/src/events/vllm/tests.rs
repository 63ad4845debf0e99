//! Tests of the rooms of vLLM's events, and what they share.

mod bridge;
#[path = "../../../../dynamo-core/tests/support/corpus.rs"]
mod corpus;
mod decode;
mod engine;
mod fleet;
mod live;
mod losses;
mod publisher;
mod translate;
mod wire;

use dynamo_core::protocol::{BlockSize, CacheNamespace, InstanceId, WorkerId};

use super::VllmConfig;

const WORKER: WorkerId = WorkerId::new(InstanceId(7));

/// Follows the publisher of [`WORKER`] at `endpoint`, for requests in blocks of so many tokens.
fn config(endpoint: &str, block_size: u32) -> VllmConfig {
    let block_size = BlockSize::new(block_size).unwrap();
    VllmConfig::new(WORKER.instance, endpoint, CacheNamespace::model("m"), block_size)
}
