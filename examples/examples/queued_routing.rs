//! Two tenants over two busy workers: how long each waits for its first token, by queue policy.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dynamo_core::protocol::{
    BlockSize, CacheNamespace, FinishReason, GenerateChunk, GenerateRequest, Sampling,
};
use dynamo_core::time::{Clock, SystemClock};
use dynamo_core::{Context, Engine, Error, ResponseStream, Result, Runtime, engine_fn};
use dynamo_router::queue::{BusyThresholds, Watermarks};
use dynamo_router::{KvRouter, QueueConfig, QueuePolicy, QueuedPool, RouterConfig};
use tokio::task::JoinSet;

/// What a worker takes to prefill a token.
const PREFILL: Duration = Duration::from_micros(10);
/// Each tenant's requests, all at once, the first tenant's first.
const REQUESTS: u32 = 30;
/// Whose prompts are how long.
const TENANTS: [(&str, u32); 2] = [("batch", 2048), ("chat", 128)];

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example talks to a person")]
async fn main() -> Result<()> {
    let quantum_tokens = NonZeroU64::new(2048).unwrap_or(NonZeroU64::MIN);
    let policies = [
        ("first come, first served", QueuePolicy::Fcfs),
        ("shortest first", QueuePolicy::Wspt),
        ("tenants in turn", QueuePolicy::Fair { quantum_tokens }),
    ];
    println!("mean time to first token of {REQUESTS} requests each");
    for (name, policy) in policies {
        let [batch, chat] = run(policy).await?;
        println!("{name:24}   batch {batch:4} ms   chat {chat:4} ms");
    }
    Ok(())
}

/// Returns the mean time to first token of each tenant, in milliseconds.
async fn run(policy: QueuePolicy) -> Result<[u128; 2]> {
    let endpoint =
        Runtime::in_process().namespace("demo")?.component("llm")?.endpoint("generate")?;
    let worker = || {
        engine_fn(|ctx: Context, request: GenerateRequest| async move {
            let tokens = u32::try_from(request.token_ids.len()).unwrap_or(u32::MAX);
            tokio::time::sleep(PREFILL * tokens).await;
            let (token_ids, finish) = (vec![0], Some(FinishReason::Length));
            let chunk = GenerateChunk { token_ids, finish, ..GenerateChunk::default() };
            Ok(ResponseStream::from_items(&ctx, [chunk]))
        })
    };
    let _workers = [endpoint.serve(worker()).await?, endpoint.serve(worker()).await?];
    let client = endpoint.client().await?;

    // A worker is busy from the first token that it has to prefill to the last: one prompt at once.
    let busy = BusyThresholds::never().with_prefill_tokens(Watermarks::new(0.0, 1.0)?);
    let config = QueueConfig::default().with_policy(policy).with_busy(busy);
    let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
    let pool = QueuedPool::new(client, router, config);

    let mut running = JoinSet::new();
    for (tenant, (name, tokens)) in TENANTS.into_iter().enumerate() {
        for seed in 0..REQUESTS {
            let (pool, request) = (pool.clone(), request(name, seed, tokens));
            let since = SystemClock.now();
            running.spawn(async move { (tenant, first_token(&pool, request, since).await) });
        }
    }
    let mut waited = [Duration::ZERO; 2];
    for (tenant, wait) in running.join_all().await {
        waited[tenant] += wait?;
    }
    Ok(waited.map(|wait| (wait / REQUESTS).as_millis()))
}

async fn first_token(
    pool: &QueuedPool,
    request: GenerateRequest,
    since: Instant,
) -> Result<Duration> {
    let mut stream = pool.generate(Context::new(), request).await?;
    stream.next().await.ok_or_else(|| Error::internal("an answer of no token"))??;
    Ok(SystemClock.now() - since)
}

fn request(tenant: &str, seed: u32, tokens: u32) -> GenerateRequest {
    let namespace = CacheNamespace { tenant: tenant.to_owned(), ..CacheNamespace::model("mock") };
    let prompt: Vec<u32> = (0..tokens).map(|i| seed * 10_000 + i).collect();
    GenerateRequest::new(namespace, BlockSize::DEFAULT, prompt, Sampling::default())
}
