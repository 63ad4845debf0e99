//! Workers with real block managers in one process, whose events get lost on the way to a router.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dynamo_core::discovery::MemoryDiscovery;
use dynamo_core::event_plane::{MemoryEventPlane, Publisher};
use dynamo_core::protocol::{
    BlockSize, CacheNamespace, GenerateChunk, GenerateRequest, InstanceId, KvChange, KvEvent,
    Sampling, SnapshotPage, SnapshotRequest, Usage, WorkerId,
};
use dynamo_core::random::Random;
use dynamo_core::request_plane::MemoryRequestPlane;
use dynamo_core::time::SystemClock;
use dynamo_core::{
    Client, Component, Context, Engine, ResponseStream, Runtime, ServeOptions, Serving, engine_fn,
};
use dynamo_kv::{BlockLayout, BlockManager, DType, ManagerConfig, SnapshotEngine, TokenSequence};
use dynamo_router::{Constraints, EventFeed, KvRouter, ResyncConfig, RouterConfig};

/// A router that goes by what workers say alone, and says what it knows of each.
pub(crate) fn told() -> RouterConfig {
    RouterConfig::default().with_explain(true).with_provisional_ttl(None)
}

/// What stands between a worker and the plane: so many events of a hundred are lost, silently.
#[derive(Clone)]
pub(crate) struct Lossy {
    publisher: Publisher<KvEvent>,
    random: Arc<Mutex<Random>>,
    pub(crate) lost_percent: Arc<Mutex<usize>>,
}

impl Lossy {
    fn publish(&self, event: &KvEvent) {
        let number = self.random.lock().unwrap().below(100).unwrap();
        if number >= *self.lost_percent.lock().unwrap() {
            self.publisher.publish(event).unwrap();
        }
    }
}

pub(crate) struct Worker {
    pub(crate) id: InstanceId,
    pub(crate) manager: BlockManager,
    epoch: u64,
    servings: Vec<Serving>,
}

pub(crate) struct Fleet {
    pub(crate) runtime: Runtime,
    component: Component,
    pub(crate) lossy: Lossy,
    pub(crate) workers: Vec<Worker>,
    pub(crate) router: KvRouter,
    feed: Option<EventFeed>,
    client: Client<GenerateRequest, GenerateChunk>,
    /// The prompts that were asked, once each.
    prompts: BTreeMap<Vec<u32>, GenerateRequest>,
}

impl Fleet {
    /// Starts so many workers, and a router that hears of them over a plane with room for `backlog`
    /// events.
    pub(crate) async fn start(
        workers: u64,
        lost_percent: usize,
        seed: u64,
        backlog: usize,
    ) -> Self {
        let plane = Arc::new(MemoryEventPlane::new(backlog.try_into().unwrap()));
        let (discovery, requests) = (MemoryDiscovery::default(), MemoryRequestPlane::default());
        let runtime = Runtime::new(Arc::new(discovery), Arc::new(requests), plane);
        let component = runtime.namespace("test").unwrap().component("llm").unwrap();
        let lossy = Lossy {
            publisher: component.publisher("kv").unwrap(),
            random: Arc::new(Mutex::new(Random::new(seed))),
            lost_percent: Arc::new(Mutex::new(lost_percent)),
        };
        let router = KvRouter::new(told(), Arc::new(SystemClock));
        let client = component.endpoint("generate").unwrap().client().await.unwrap();
        let client = client.with_picker(router.clone());
        let (prompts, feed) = (BTreeMap::new(), None);
        let workers: Vec<_> = (1..=workers).map(InstanceId).collect();
        let mut fleet =
            Self { runtime, component, lossy, workers: Vec::new(), router, feed, client, prompts };
        fleet.feed = Some(fleet.feed_of(&fleet.router).await);
        for id in workers {
            fleet.join(id, 1, true).await;
        }
        fleet
    }

    async fn feed_of(&self, router: &KvRouter) -> EventFeed {
        let events = self.component.subscriber("kv").await.unwrap();
        let snapshots = self.snapshots().await;
        let config = ResyncConfig::default().with_seed(7);
        EventFeed::start_with_snapshots(router.clone(), events, snapshots, config)
    }

    async fn snapshots(&self) -> Client<SnapshotRequest, SnapshotPage> {
        self.component.endpoint("kv_snapshot").unwrap().client().await.unwrap()
    }

    /// Starts a worker with an empty cache.
    pub(crate) async fn join(&mut self, id: InstanceId, epoch: u64, has_snapshots: bool) {
        let lossy = self.lossy.clone();
        let layout = BlockLayout::new(1, 1, 1, BlockSize::DEFAULT, DType::F32).unwrap();
        let config = ManagerConfig::new(layout, BLOCKS).with_epoch(epoch);
        let sink = Box::new(move |event: KvEvent| lossy.publish(&event));
        let manager = BlockManager::new(config, WorkerId::new(id), sink).unwrap();
        let options = || ServeOptions::default().with_instance(id);
        let engine = manager.clone();
        let engine = engine_fn(move |ctx: Context, request: GenerateRequest| {
            let chunk = compute(&engine, &request);
            async move { Ok(ResponseStream::from_items(&ctx, [chunk])) }
        });
        let endpoint = self.component.endpoint("generate").unwrap();
        let mut servings = vec![endpoint.serve_with(engine, options()).await.unwrap()];
        if has_snapshots {
            let engine = SnapshotEngine::new([manager.clone()]);
            let endpoint = self.component.endpoint("kv_snapshot").unwrap();
            servings.push(endpoint.serve_with(engine, options()).await.unwrap());
        }
        self.workers.push(Worker { id, manager, epoch, servings });
    }

    /// A worker dies, and comes back under its id with an empty cache.
    pub(crate) async fn restart(&mut self, at: usize) {
        let Worker { id, epoch, servings, .. } = self.workers.remove(at);
        for serving in servings {
            serving.drain(Duration::from_secs(1)).await;
        }
        self.join(id, epoch + 1, true).await;
    }

    /// Replaces the router by one that knows nothing.
    pub(crate) async fn restart_router(&mut self) {
        self.feed.take().unwrap().shutdown().await;
        self.router = KvRouter::new(told(), Arc::new(SystemClock));
        self.client = self.client.clone().with_picker(self.router.clone());
        self.feed = Some(self.feed_of(&self.router).await);
    }

    /// Asks for the answer to a prompt.
    pub(crate) async fn ask(&mut self, prompt: Vec<u32>) -> Vec<u32> {
        let namespace = CacheNamespace::model("mock");
        let (size, sampling) = (BlockSize::DEFAULT, Sampling::default());
        let request = GenerateRequest::new(namespace, size, prompt.clone(), sampling);
        self.prompts.insert(prompt, request.clone());
        let answer = self.client.generate(Context::new(), request).await.unwrap();
        let chunks = answer.collect().await.unwrap();
        chunks.into_iter().flat_map(|chunk| chunk.token_ids).collect()
    }

    /// Conversations that share a system prompt take turns; returns all that was answered.
    pub(crate) async fn converse(&mut self, conversations: u32, turns: u32) -> Vec<Vec<u32>> {
        let mut answers = Vec::new();
        for turn in 1..=turns {
            for conversation in 1..=conversations {
                let own = (0..turn * 48).map(|i| 1_000 * conversation + i);
                answers.push(self.ask((0..128).chain(own).collect()).await);
            }
        }
        answers
    }

    /// Tells whether of every prompt the router expects at every worker what that worker has, and
    /// nothing else is in its index.
    pub(crate) async fn has_converged(&self) -> bool {
        let mut blocks = BTreeSet::new();
        for worker in &self.workers {
            for change in worker.manager.snapshot().stored {
                let KvChange::BlockStored { blocks: stored, .. } = change else { unreachable!() };
                blocks.extend(stored.into_iter().map(|block| block.sequence));
            }
        }
        let mut same = self.router.event_stats().blocks == blocks.len();
        for request in self.prompts.values() {
            let expected = self.expected(request);
            for worker in &self.workers {
                let sequence = sequence(request);
                let held = worker.manager.probe(sequence.keys()).await;
                // The last token is computed anew.
                let reusable = (request.token_ids.len() - 1) / 16;
                same &= expected[&worker.id] == 16 * held.min(reusable);
            }
        }
        same
    }

    /// Returns how many tokens of a prompt the router expects to be cached at each worker.
    fn expected(&self, request: &GenerateRequest) -> BTreeMap<InstanceId, usize> {
        self.router.set_workers(&self.client.instances()).unwrap();
        let decision = self.router.route(request, &Constraints::default()).unwrap();
        let explain = &decision.explain;
        let all = explain.others.iter().chain([&explain.chosen]);
        all.map(|cost| (cost.worker.instance, cost.cached_tokens)).collect()
    }

    /// Waits until the router expects what there is; time is paused, so that takes none.
    pub(crate) async fn converge(&self) {
        let converges = async {
            while !self.has_converged().await {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let stats = || self.router.event_stats();
        let within = tokio::time::timeout(CONVERGED_MAX, converges).await;
        assert!(within.is_ok(), "{:?}", stats());
    }

    pub(crate) async fn stop(mut self) {
        self.feed.take().unwrap().shutdown().await;
        drop(self.workers);
        self.runtime.shutdown(Duration::from_secs(5)).await.unwrap();
    }
}

/// What an engine does: finds the prefix, computes the rest from it, shares it. The answer depends on
/// every byte that was found or computed.
fn compute(manager: &BlockManager, request: &GenerateRequest) -> GenerateChunk {
    let sequence = sequence(request);
    let held = manager.match_prefix(sequence.keys());
    let cached_tokens = u32::try_from(16 * held.len()).unwrap();
    let mut state = held.iter().fold(1, fold);
    let missing = &sequence.keys()[held.len()..];
    let tokens = request.token_ids.chunks_exact(16).skip(held.len());
    let blocks = manager.allocate(missing.len()).unwrap();
    let complete = blocks.into_iter().zip(missing).zip(tokens).map(|((mut block, key), tokens)| {
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        block[..bytes.len()].copy_from_slice(&bytes);
        block[bytes.len()..].fill(0);
        state = fold(state, &block);
        block.complete(*key)
    });
    drop(manager.register_all(complete.collect()));
    let prompt_tokens = u32::try_from(request.token_ids.len()).unwrap();
    let usage = Usage {
        prompt_tokens,
        cached_tokens: Some(cached_tokens),
        completion_tokens: 1,
        ..Usage::default()
    };
    GenerateChunk { token_ids: vec![state], usage: Some(usage), ..GenerateChunk::default() }
}

fn fold(state: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(state, |state, byte| (state ^ u32::from(*byte)).wrapping_mul(16_777_619))
}

fn sequence(request: &GenerateRequest) -> TokenSequence {
    TokenSequence::new(&request.namespace, BlockSize::DEFAULT, &request.token_ids)
}

/// Fewer than the conversations need, over all workers: blocks are evicted.
const BLOCKS: usize = 64;

/// An audit, and what may be wrong with it.
const CONVERGED_MAX: Duration = Duration::from_secs(200);
