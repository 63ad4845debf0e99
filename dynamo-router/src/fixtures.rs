//! What tests of several rooms begin with.

use std::collections::BTreeMap;
use std::ops::Range;

use dynamo_core::Instance;
use dynamo_core::discovery::Address;
use dynamo_core::name::{EndpointPath, Name};
use dynamo_core::protocol::{
    BlockSize, CacheNamespace, GenerateRequest, InstanceId, KvChange, KvEvent, LocalHash,
    PromptBlocks, Sampling, SequenceHash, StoredBlock, Tier, WorkerId,
};

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
