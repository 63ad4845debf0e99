//! What tests of several rooms begin with.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use dynamo_core::Instance;
use dynamo_core::discovery::Address;
use dynamo_core::name::{EndpointPath, Name};
use dynamo_core::protocol::{
    BlockSize, CacheNamespace, GenerateRequest, InstanceId, KvChange, KvEvent, LocalHash,
    PromptBlocks, Sampling, SequenceHash, StoredBlock, Tier, WorkerId,
};
use tokio::sync::Notify;

use crate::router::KvRouter;

pub(crate) fn worker(id: u64) -> WorkerId {
    WorkerId::new(InstanceId(id))
}

pub(crate) fn instance(id: u64) -> Instance {
    let name = |name| Name::new(name).unwrap();
    Instance {
        id: InstanceId(id),
        incarnation: 0,
        endpoint: EndpointPath { namespace: name("n"), component: name("c"), endpoint: name("e") },
        address: Address(String::new()),
        labels: BTreeMap::new(),
    }
}

/// A block that is hashed so.
pub(crate) fn block(hash: u64) -> StoredBlock {
    StoredBlock { sequence: SequenceHash(hash), local: LocalHash(hash) }
}

/// A request whose prompt is these tokens, in blocks of the usual size.
pub(crate) fn request(tokens: Range<u32>) -> GenerateRequest {
    let prompt: Vec<u32> = tokens.collect();
    let namespace = CacheNamespace::default();
    GenerateRequest::new(namespace, BlockSize::DEFAULT, prompt, Sampling::default())
}

/// The first event of a worker: that it has the first `count` of a prompt's blocks.
pub(crate) fn holds(id: u64, tier: Tier, blocks: &PromptBlocks, count: usize) -> KvEvent {
    let blocks = blocks.sequence().iter().zip(blocks.local()).take(count);
    let blocks = blocks.map(|(&sequence, &local)| StoredBlock { sequence, local }).collect();
    let change = KvChange::BlockStored { parent: None, blocks, tier };
    KvEvent { worker: worker(id), epoch: 0, seq: 0, change }
}

/// Waits until it holds; fails if it does not for long.
pub(crate) async fn until(holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap();
}

/// Waits until something that is said of a worker's load makes it so; fails if nothing does for long.
pub(crate) async fn until_heard(router: &KvRouter, holds: impl Fn() -> bool) {
    let heard = Arc::new(Notify::new());
    let tell = Arc::clone(&heard);
    let _listener = router.on_release(move |_| tell.notify_one());
    let wait = async {
        while !holds() {
            heard.notified().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap();
}
