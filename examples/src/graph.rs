//! Wiring: workers, routers and planes become one engine.
//!
//! ```text
//! disaggregated   PrefillDecode ─► KvRouter ─► prefill workers ─┐ KV blocks
//!                               └► KvRouter ─► decode workers ◄─┘
//! aggregated      Client ─► one worker
//! ```
//!
//! A front end and workers may as well be processes of their own: the same graph on a [`Runtime`]
//! whose planes and directory reach further ([`Graph::front_end`], [`GraphWorker::start`]).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use dynamo_core::name::EndpointPath;
use dynamo_core::protocol::{
    BlockSize, GenerateChunk, GenerateRequest, InstanceId, KvEvent, LoadReport, WorkerId,
};
use dynamo_core::server::{LoadPublisher, LoadPublisherConfig};
use dynamo_core::time::SystemClock;
use dynamo_core::{
    Client, Component, Error, ErrorKind, Namespace, Result, Runtime, ServeOptions, Serving,
    SharedEngine,
};
use dynamo_kv::metrics::BlockMetrics;
use dynamo_kv::{BlockManager, Handoff, HandoffConfig, ManagerConfig, SnapshotEngine};
use dynamo_router::disagg::{DisaggConfig, Observer, Pool, PrefillDecode, Split};
use dynamo_router::{EventFeed, KvRouter, LoadFeed, ResyncConfig, RouterConfig};
use dynamo_transfer::{Agent, AgentConfig, MemoryFabric};

use crate::disk::DiskOptions;
use crate::engine::{LlamaWorker, WorkerOptions, block_layout};
use crate::model::Model;

/// What every worker of a graph shares.
#[derive(Debug, Clone)]
pub struct GraphConfig {
    /// KV blocks per worker, in memory.
    pub blocks: usize,
    /// Where blocks go that memory has no room for.
    pub disk: Option<DiskOptions>,
    /// Tokens per KV block.
    pub block_size: BlockSize,
    /// How long a prefill worker holds blocks for a decode worker that does not come.
    pub hold_ttl: Duration,
    /// How workers compute.
    pub worker: WorkerOptions,
    /// How requests are routed.
    pub router: RouterConfig,
}

impl Default for GraphConfig {
    fn default() -> Self {
        Self {
            blocks: 256,
            disk: None,
            block_size: BlockSize::DEFAULT,
            hold_ttl: Duration::from_secs(30),
            worker: WorkerOptions::default(),
            router: RouterConfig::default(),
        }
    }
}

/// A running graph: one engine in front, workers and routers behind it.
pub struct Graph {
    runtime: Runtime,
    engine: SharedEngine<GenerateRequest, GenerateChunk>,
    workers: Vec<GraphWorker>,
    clients: Vec<Client<GenerateRequest, GenerateChunk>>,
    routers: Vec<KvRouter>,
    feeds: Vec<(EventFeed, LoadFeed)>,
}

/// One worker of a graph.
#[derive(Debug)]
pub struct GraphWorker {
    /// A name for people, such as `prefill-0`.
    pub name: String,
    /// The engine.
    pub worker: LlamaWorker,
    serving: Serving,
    agent: Agent,
    load: LoadPublisher,
    _blocks: Arc<BlockMetrics>,
    _snapshots: Serving,
}

impl GraphWorker {
    /// Starts a worker of `role` that peers reach as `agent` says.
    pub async fn start(
        runtime: &Runtime,
        role: &str,
        name: &str,
        model: &Arc<Model>,
        agent: AgentConfig,
        config: &GraphConfig,
    ) -> Result<Self> {
        let component = namespace(runtime)?.component(role)?;
        let id = InstanceId::random();
        let agent = Agent::start(agent.with_name(name))
            .await
            .map_err(|error| Error::internal(format!("agent of {name}")).with_source(error))?;
        let layout = block_layout(model.config(), config.block_size)?;
        let publisher = component.publisher::<KvEvent>(KV_EVENTS)?;
        let publish = move |event: KvEvent| {
            if let Err(error) = publisher.publish(&event) {
                tracing::warn!(%error, "KV event not published");
            }
        };
        let mut manager = ManagerConfig::new(layout, config.blocks);
        if let Some(disk) = &config.disk {
            manager = manager.with_tiers(disk.tiers(name, model, &layout).await?);
        }
        let manager =
            BlockManager::new(manager, WorkerId::new(id), Box::new(publish)).map_err(|error| {
                Error::internal(format!("block manager of {name}")).with_source(error)
            })?;
        let blocks = Arc::new(BlockMetrics::new(name, &manager));
        runtime.metrics().add(&blocks);
        let snapshots = SnapshotEngine::new([manager.clone()]);
        let options = ServeOptions::default().with_instance(id);
        let snapshots = component.endpoint(KV_SNAPSHOT)?.serve_with(snapshots, options).await?;
        let handoff = HandoffConfig::default().with_ttl(config.hold_ttl);
        let handoff = Handoff::new(agent.clone(), manager.clone(), handoff)?;
        let worker = LlamaWorker::new(Arc::clone(model), manager, handoff, config.worker.clone());
        let options = ServeOptions::default().with_instance(id).with_label(WORKER, name);
        let serving = component.endpoint(GENERATE)?.serve_with(worker.clone(), options).await?;
        let (reports, busy) = (component.publisher(LoadReport::EVENT)?, worker.clone());
        let load =
            LoadPublisher::start(reports, move || busy.load(), LoadPublisherConfig::default());
        let (_blocks, _snapshots) = (blocks, snapshots);
        Ok(Self { name: name.to_owned(), worker, serving, agent, load, _blocks, _snapshots })
    }

    /// Returns the instance that requests are routed to.
    pub fn instance(&self) -> InstanceId {
        self.serving.instance().id
    }

    /// Returns the number of requests in flight.
    pub fn inflight(&self) -> usize {
        self.serving.inflight()
    }

    fn endpoint(&self) -> &EndpointPath {
        &self.serving.instance().endpoint
    }

    /// Lets requests in flight finish for `patience`, then ends the worker.
    pub async fn end(self, patience: Duration) {
        let report = self.serving.drain(patience).await;
        if report.killed > 0 {
            tracing::warn!(worker = self.name, ?report, "requests ended by shutdown");
        }
        self.load.shutdown().await;
        self.worker.shutdown().await;
        self.agent.shutdown().await;
    }
}

impl Graph {
    /// Starts one worker that does everything.
    pub async fn aggregated(model: &Arc<Model>, config: &GraphConfig) -> Result<Self> {
        let runtime = Runtime::in_process();
        let agent = in_process(&MemoryFabric::new());
        let worker = GraphWorker::start(&runtime, "llm", "worker-0", model, agent, config).await?;
        let component = namespace(&runtime)?.component("llm")?;
        let endpoint = component.endpoint::<GenerateRequest, GenerateChunk>(GENERATE)?;
        let client = endpoint.client().await?;
        let (engine, clients) = (Arc::new(client.clone()), vec![client]);
        let (routers, feeds) = (Vec::new(), Vec::new());
        Ok(Self { runtime, engine, workers: vec![worker], clients, routers, feeds })
    }

    /// Starts `prefill` and `decode` workers with a KV-aware router before each pool.
    ///
    /// `observer` is told how each request went.
    pub async fn disaggregated(
        model: &Arc<Model>,
        prefill: usize,
        decode: usize,
        config: &GraphConfig,
        observer: impl Observer,
    ) -> Result<Self> {
        let fabric = MemoryFabric::new();
        let front_end = FrontEnd::new(Runtime::in_process(), &config.router).await?;
        let mut workers = Vec::new();
        for (role, count) in ROLES.into_iter().zip([prefill, decode]) {
            for index in 0..count {
                let (name, agent) = (format!("{role}-{index}"), in_process(&fabric));
                let runtime = &front_end.runtime;
                workers.push(GraphWorker::start(runtime, role, &name, model, agent, config).await?);
            }
        }
        front_end.graph(workers, [prefill, decode], observer).await
    }

    /// Starts the front end of a graph whose workers are other processes, once as many as that of
    /// each role are there.
    ///
    /// `observer` is told how each request went.
    pub async fn front_end(
        runtime: Runtime,
        router: &RouterConfig,
        prefill: usize,
        decode: usize,
        observer: impl Observer,
    ) -> Result<Self> {
        let front_end = FrontEnd::new(runtime, router).await?;
        front_end.graph(Vec::new(), [prefill, decode], observer).await
    }

    /// Returns a probe that tells whether each pool has a worker.
    pub fn readiness(&self) -> impl Fn() -> bool + Send + Sync + use<> {
        let clients = self.clients.clone();
        move || clients.iter().all(|client| !client.instances().is_empty())
    }

    /// Returns the engine in front.
    pub fn engine(&self) -> SharedEngine<GenerateRequest, GenerateChunk> {
        Arc::clone(&self.engine)
    }

    /// Returns the workers.
    pub fn workers(&self) -> &[GraphWorker] {
        &self.workers
    }

    /// Returns the routers: none, or prefill then decode.
    pub fn routers(&self) -> &[KvRouter] {
        &self.routers
    }

    /// Returns the name of the worker behind `instance`, as it says itself.
    pub fn worker_name(&self, instance: InstanceId) -> String {
        let known = self.clients.iter().flat_map(|client| client.instances().to_vec());
        let mut named = known.filter(|known| known.id == instance);
        let name = named.find_map(|known| known.labels.get(WORKER).cloned());
        name.unwrap_or_else(|| instance.to_string())
    }

    /// Lets requests in flight finish for `patience`, then ends everything and joins it.
    ///
    /// Fails with [`DeadlineExceeded`](dynamo_core::ErrorKind::DeadlineExceeded) if something does
    /// not end once it was told to.
    pub async fn shutdown(self, patience: Duration) -> Result<()> {
        let mut later = self.workers;
        while let Some(endpoint) = later.first().map(|worker| worker.endpoint().clone()) {
            // Pool after pool: what prefills still needs a decode worker.
            let pool: Vec<_>;
            (pool, later) = later.into_iter().partition(|worker| *worker.endpoint() == endpoint);
            let ends = pool.into_iter().map(|worker| worker.end(patience));
            let ends = futures::future::join_all(ends);
            tokio::time::timeout(patience + ENDING_MAX, ends).await.map_err(|_| {
                let message = format!("workers of {endpoint} were told to end and did not");
                Error::new(ErrorKind::DeadlineExceeded, message)
            })?;
        }
        for (events, load) in self.feeds {
            events.shutdown().await;
            load.shutdown().await;
        }
        drop((self.engine, self.clients));
        self.runtime.shutdown(ENDING_MAX).await
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph").field("workers", &self.workers).finish_non_exhaustive()
    }
}

/// What stands before the workers: a router for each role, and what feeds it.
struct FrontEnd {
    runtime: Runtime,
    pools: Vec<(Component, KvRouter)>,
    feeds: Vec<(EventFeed, LoadFeed)>,
}

impl FrontEnd {
    /// Listens before the first worker speaks, so that it misses no event.
    async fn new(runtime: Runtime, router: &RouterConfig) -> Result<Self> {
        let (mut pools, mut feeds) = (Vec::new(), Vec::new());
        for role in ROLES {
            let component = namespace(&runtime)?.component(role)?;
            let router = KvRouter::new(router.clone(), Arc::new(SystemClock));
            let events = component.subscriber::<KvEvent>(KV_EVENTS).await?;
            let snapshots = component.endpoint(KV_SNAPSHOT)?.client().await?;
            let (config, known) = (ResyncConfig::default(), router.clone());
            let events = EventFeed::start_with_snapshots(known, events, snapshots, config);
            let reports = component.subscriber(LoadReport::EVENT).await?;
            feeds.push((events, LoadFeed::start(router.clone(), reports)));
            pools.push((component, router));
        }
        Ok(Self { runtime, pools, feeds })
    }

    /// Waits for the workers, and makes it one engine.
    async fn graph(
        self,
        workers: Vec<GraphWorker>,
        counts: [usize; 2],
        observer: impl Observer,
    ) -> Result<Graph> {
        let Self { runtime, pools: known, feeds } = self;
        let mut pools = Vec::new();
        for ((component, router), count) in known.into_iter().zip(counts) {
            let client = component.endpoint(GENERATE)?.client().await?;
            client.wait_for(count, READY_MAX).await?;
            pools.push(Pool::new(client, router));
        }
        let clients = pools.iter().map(|pool| pool.client().clone()).collect();
        let routers = pools.iter().map(|pool| pool.router().clone()).collect();
        let [prefill, decode]: [Pool; 2] =
            pools.try_into().map_err(|_| Error::internal("a graph has two pools"))?;
        // Idle workers would seldom split: this graph is there to show how blocks are handed over.
        let config = DisaggConfig::default().with_split(Split::Always);
        let engine = PrefillDecode::new(prefill, decode).with_config(config);
        let engine = Arc::new(engine.with_observer(observer));
        Ok(Graph { runtime, engine, workers, clients, routers, feeds })
    }
}

/// An agent that its peers reach by memcpy.
fn in_process(fabric: &MemoryFabric) -> AgentConfig {
    AgentConfig::default().with_fabric(fabric.clone())
}

fn namespace(runtime: &Runtime) -> Result<Namespace> {
    runtime.namespace("demo")
}

/// The endpoint at which workers answer requests.
pub const GENERATE: &str = "generate";

/// The events in which a worker says what its cache holds.
pub const KV_EVENTS: &str = "kv_events";

/// The endpoint at which a worker tells a router that lost some of those what it holds.
pub const KV_SNAPSHOT: &str = "kv_snapshot";

/// The components of a disaggregated graph.
const ROLES: [&str; 2] = ["prefill", "decode"];

/// The label under which a worker says its name.
pub const WORKER: &str = "worker";

/// A worker that was told to end does so after the chunk it computes.
const ENDING_MAX: Duration = Duration::from_secs(30);

/// Workers of this process are there already; a process loads its model first.
const READY_MAX: Duration = Duration::from_secs(120);
