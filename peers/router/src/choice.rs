//! Our router.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use dynamo_core::Instance;
use dynamo_core::discovery::Address;
use dynamo_core::name::{EndpointPath, Name};
use dynamo_core::protocol::{
    BlockSize, CacheNamespace, GenerateRequest, InstanceId, KvChange, KvEvent, PromptBlocks,
    Sampling, StoredBlock, Tier, WorkerId,
};
use dynamo_core::time::SystemClock;
use dynamo_router::{Constraints, Decision, KvRouter, RouterConfig};

use crate::decide::{BLOCK_TOKENS, Decider, Input, held};
use crate::figures::Figure;
use crate::together::scaling;

pub struct Choice {
    router: KvRouter,
    tokens: Arc<[u32]>,
    namespace: Arc<CacheNamespace>,
    block_size: BlockSize,
}

impl Choice {
    pub fn new(workers: usize, tokens: &[u32]) -> Result<Self> {
        let this = Self {
            router: KvRouter::new(RouterConfig::default(), Arc::new(SystemClock)),
            tokens: tokens.into(),
            namespace: Arc::new(CacheNamespace::model("m")),
            block_size: BlockSize::new(BLOCK_TOKENS as u32).context("a block has tokens")?,
        };
        let all: Vec<_> = (1..=workers as u64).map(instance).collect::<Result<_>>()?;
        this.router.set_workers(&all)?;
        let request = this.request();
        for worker in 1..=workers {
            let blocks = held(worker, workers, request.blocks.len());
            this.router.apply(&stored(worker as u64, &request.blocks, blocks));
        }
        Ok(this)
    }

    fn request(&self) -> GenerateRequest {
        let (namespace, tokens) = (Arc::clone(&self.namespace), Arc::clone(&self.tokens));
        GenerateRequest::new(namespace, self.block_size, tokens, Sampling::default())
    }

    fn route(&self, request: &GenerateRequest) -> Result<Decision> {
        Ok(self.router.route(request, &Constraints::default())?)
    }
}

impl Choice {
    /// Compares a thread on each core, all of which decide for the same request, with one.
    pub fn scaling(&self) -> Option<Figure> {
        let request = self.request();
        scaling(|| Some(|| drop(self.route(&request).map(|decision| decision.booking))))
    }
}

impl Decider for Choice {
    fn decide(&mut self, input: Input, count: usize) -> Result<(u64, Vec<f64>)> {
        let known = self.request();
        let (mut worker, mut took) = (0, Vec::with_capacity(count));
        for _ in 0..count {
            let start = Instant::now();
            let hashed = (input == Input::Tokens).then(|| self.request());
            let decision = self.route(hashed.as_ref().unwrap_or(&known))?;
            drop(decision.booking);
            took.push(start.elapsed().as_secs_f64() * 1e6);
            worker = decision.worker.instance.0;
        }
        Ok((worker, took))
    }
}

/// Returns the hashes of a prompt's blocks and of their chain.
pub fn hash_in(tokens: &[u32]) -> Option<PromptBlocks> {
    let block_size = BlockSize::new(BLOCK_TOKENS as u32)?;
    Some(PromptBlocks::new(&CacheNamespace::default(), block_size, tokens))
}

fn instance(id: u64) -> Result<Instance> {
    let name = |name| Name::new(name);
    let endpoint = EndpointPath {
        namespace: name("bench")?,
        component: name("llm")?,
        endpoint: name("generate")?,
    };
    Ok(Instance {
        id: InstanceId(id),
        incarnation: 0,
        endpoint,
        address: Address(String::new()),
        labels: BTreeMap::new(),
    })
}

/// Says that a worker has stored the first `count` blocks of a prompt.
fn stored(worker: u64, prompt: &PromptBlocks, count: usize) -> KvEvent {
    let blocks = prompt.sequence().iter().zip(prompt.local()).take(count);
    let blocks = blocks.map(|(sequence, local)| StoredBlock { sequence: *sequence, local: *local });
    let change =
        KvChange::BlockStored { parent: None, blocks: blocks.collect(), tier: Tier::Device };
    KvEvent { worker: WorkerId::new(InstanceId(worker)), epoch: 0, seq: 0, change }
}
