//! Hit rate of KV-aware routing against round robin, on conversations over four workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dynamo_core::protocol::{
    BlockSize, CacheNamespace, GenerateRequest, InstanceId, KvEvent, Sampling, WorkerId,
};
use dynamo_core::time::SystemClock;
use dynamo_core::{
    Client, Context, Engine, Error, ResponseStream, Result, RoundRobin, Runtime, ServeOptions,
    Serving, engine_fn,
};
use dynamo_kv::{BlockLayout, BlockManager, DType, ManagerConfig, TokenSequence};
use dynamo_router::{EventFeed, KvRouter, RouterConfig};

const WORKERS: usize = 4;
/// No multiple of the workers: round robin would send each conversation to one worker by chance.
const CONVERSATIONS: u32 = 23;
const TURNS: u32 = 6;
/// Over all workers less than all conversations need: blocks are evicted.
const BLOCKS: usize = 120;

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example talks to a person")]
async fn main() -> Result<()> {
    let round_robin = hit_rate(false).await?;
    let routed = hit_rate(true).await?;
    println!("{CONVERSATIONS} conversations of {TURNS} turns over {WORKERS} workers");
    println!("prompt blocks found in cache, round robin: {:5.1} %", 100.0 * round_robin);
    println!("prompt blocks found in cache, KvRouter:    {:5.1} %", 100.0 * routed);
    Ok(())
}

async fn hit_rate(routed: bool) -> Result<f64> {
    let runtime = Runtime::in_process();
    let component = runtime.namespace("demo")?.component("llm")?;
    let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
    let feed = EventFeed::start(router.clone(), component.subscriber::<KvEvent>("kv").await?);
    let endpoint = component.endpoint("generate")?;
    let mut workers: Vec<(BlockManager, Serving)> = Vec::new();
    let published = Arc::new(AtomicU64::new(0));
    for _ in 0..WORKERS {
        let id = InstanceId::random();
        let (publisher, published) = (component.publisher("kv")?, Arc::clone(&published));
        let publish = move |event: KvEvent| {
            // The plane inside the process has nothing that could fail.
            let _ = publisher.publish(&event);
            published.fetch_add(1, Ordering::Relaxed);
        };
        let manager = manager(id, publish)?;
        let engine = manager.clone();
        let engine = engine_fn(move |ctx: Context, request: GenerateRequest| {
            let manager = engine.clone();
            async move {
                compute(&manager, &request)?;
                Ok(ResponseStream::from_items(&ctx, [0u32]))
            }
        });
        let options = ServeOptions::default().with_instance(id);
        workers.push((manager, endpoint.serve_with(engine, options).await?));
    }
    let client: Client<GenerateRequest, u32> = endpoint.client().await?;
    let client = match routed {
        true => client.with_picker(router.clone()),
        false => client.with_picker(RoundRobin::default()),
    };
    for turn in 1..=TURNS {
        // All conversations go on at once: what runs is what the router counts as load.
        let mut running = Vec::new();
        for conversation in 0..CONVERSATIONS {
            // A common system prompt, then everything said in this conversation so far.
            let own = (0..turn * 64).map(|i| 1_000 * (conversation + 1) + i);
            let prompt: Vec<u32> = (0..128).chain(own).collect();
            let namespace = CacheNamespace::model("mock");
            let request =
                GenerateRequest::new(namespace, BlockSize::DEFAULT, prompt, Sampling::default());
            running.push(client.generate(Context::new(), request).await?);
            // So that the rate is the same each time: the router has heard all before it chooses.
            while router.stats().events_total < published.load(Ordering::Relaxed) {
                tokio::task::yield_now().await;
            }
        }
        for stream in running {
            stream.collect().await?;
        }
    }
    feed.shutdown().await;
    let stats: Vec<_> = workers.iter().map(|(manager, _)| manager.stats()).collect();
    let hits: u64 = stats.iter().map(|stats| stats.hits_total).sum();
    let misses: u64 = stats.iter().map(|stats| stats.misses_total).sum();
    Ok(hits as f64 / (hits + misses) as f64)
}

fn manager(id: InstanceId, publish: impl Fn(KvEvent) + Send + 'static) -> Result<BlockManager> {
    let layout = BlockLayout::new(1, 1, 1, BlockSize::DEFAULT, DType::F32)
        .map_err(|error| Error::invalid("layout").with_source(error))?;
    BlockManager::new(ManagerConfig::new(layout, BLOCKS), WorkerId::new(id), Box::new(publish))
}

/// What an engine does with its cache: find the prefix, compute the rest, share it.
fn compute(manager: &BlockManager, request: &GenerateRequest) -> Result<()> {
    let size = request.blocks.block_size();
    let sequence = TokenSequence::new(&request.namespace, size, &request.token_ids);
    let held = manager.match_prefix(sequence.keys());
    let missing = &sequence.keys()[held.len()..];
    let blocks = manager
        .allocate(missing.len())
        .map_err(|error| Error::internal("allocating").with_source(error))?;
    let complete = blocks.into_iter().zip(missing).map(|(block, key)| block.complete(*key));
    manager.register_all(complete.collect());
    Ok(())
}
