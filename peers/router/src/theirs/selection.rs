//! `SelectionCore`: what its frontend and its standalone service choose by.

use std::time::Instant;

use anyhow::{Context as _, Result};
use dynamo_core::protocol::LocalHash;
use dynamo_kv_router::KvRouterConfig;
use dynamo_kv_router::identity::RoutingPartitionId;
use dynamo_kv_router::protocols::{
    BlockHashOptions, KvCacheEvent, LocalBlockHash, RouterEvent, compute_block_hash_for_seq,
    compute_seq_hash_for_block,
};
use dynamo_kv_router::services::indexer::backend::Indexer;
use dynamo_kv_router::services::selection::{
    PromptRequest, SelectAndReserveRequest, SelectionCacheConfig, SelectionCore, WorkerRequest,
};
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

use crate::decide::{BLOCK_TOKENS, Decider, Input, held};
use crate::workload::Prompt;

pub struct Selection {
    core: SelectionCore,
    /// All of it runs in the thread that asks.
    runtime: Runtime,
    by_tokens: PromptRequest,
    by_hashes: PromptRequest,
    /// Names of requests are taken once.
    requests: u64,
}

impl Selection {
    pub fn new(workers: usize, tokens: &[u32]) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let core = SelectionCore::try_new_local(
            KvRouterConfig::default(),
            INDEX_THREADS,
            CancellationToken::new(),
            SelectionCacheConfig::default(),
            dynamo_custom_policy_builtin::default_factory(),
        )?;
        let local = hash(tokens);
        let prompt = Prompt::new(local.iter().map(|local| LocalHash(local.0)).collect());
        runtime.block_on(fill(&core, workers, &prompt))?;
        let signed =
            |hashes: &mut dyn Iterator<Item = u64>| hashes.map(|hash| hash as i64).collect();
        let by_hashes = PromptRequest {
            block_hashes: Some(signed(&mut prompt.local.iter().map(|hash| hash.0))),
            sequence_hashes: Some(signed(&mut prompt.sequence.iter().map(|hash| hash.0))),
            isl_tokens: Some(tokens.len()),
            ..PromptRequest::default()
        };
        let by_tokens =
            PromptRequest { token_ids: Some(tokens.to_vec()), ..PromptRequest::default() };
        Ok(Self { core, runtime, by_tokens, by_hashes, requests: 0 })
    }
}

impl Decider for Selection {
    fn decide(&mut self, input: Input, count: usize) -> Result<(u64, Vec<f64>)> {
        let Self { core, runtime, by_tokens, by_hashes, requests } = self;
        let prompt = if input == Input::Tokens { by_tokens } else { by_hashes };
        runtime.block_on(async {
            let (mut worker, mut took) = (0, Vec::with_capacity(count));
            for _ in 0..count {
                *requests += 1;
                let id = requests.to_string();
                let request = request(id.clone(), prompt.clone());
                let start = Instant::now();
                let selected = core.select_and_reserve(request).await?;
                core.free_reservation(&id).await?;
                took.push(start.elapsed().as_secs_f64() * 1e6);
                worker = selected.worker_id;
            }
            Ok((worker, took))
        })
    }
}

/// Returns the hashes of a prompt's blocks and of their chain, as the peer makes them.
pub fn hash_in(tokens: &[u32]) -> (Vec<LocalBlockHash>, Vec<u64>) {
    let local = hash(tokens);
    let sequence = compute_seq_hash_for_block(&local);
    (local, sequence)
}

fn hash(tokens: &[u32]) -> Vec<LocalBlockHash> {
    compute_block_hash_for_seq(tokens, BLOCK_TOKENS as u32, BlockHashOptions::default())
}

async fn fill(core: &SelectionCore, workers: usize, prompt: &Prompt) -> Result<()> {
    for worker in 1..=workers {
        let request = WorkerRequest {
            worker_id: worker as u64,
            endpoint: Some(format!("http://worker-{worker}:8000")),
            kv_events_endpoint: Some(format!("tcp://127.0.0.1:{}", 40_000 + worker)),
            block_size: Some(BLOCK_TOKENS as u32),
            max_num_batched_tokens: Some(8192),
            ..WorkerRequest::default()
        };
        core.upsert_worker(request).await?;
    }
    let partition = core.partition(&RoutingPartitionId::new(MODEL, MODEL));
    let indexer = partition.context("there are workers")?.indexer().clone();
    for worker in 1..=workers {
        let data = super::stored(prompt, 0, held(worker, workers, prompt.len()));
        let event = KvCacheEvent { event_id: 0, data, dp_rank: 0 };
        indexer.apply_event_routed(RouterEvent::new(worker as u64, event)).await?;
    }
    if let Indexer::Concurrent { primary, .. } = &indexer {
        primary.flush().await;
    }
    Ok(())
}

fn request(id: String, prompt: PromptRequest) -> SelectAndReserveRequest {
    SelectAndReserveRequest {
        model_name: MODEL.to_owned(),
        routing_group: MODEL.to_owned(),
        selection_id: Some(id),
        prompt,
        router_config_override: None,
        expected_output_tokens: None,
        priority_jump: None,
        strict_priority: None,
        session_id: None,
        session_context: None,
        affinity_target: None,
        pinned_worker: None,
        allowed_worker_ids: None,
        routing_constraints: Default::default(),
    }
}

/// With more than one, whoever asks looks prompts up in its own thread.
const INDEX_THREADS: usize = 2;

const MODEL: &str = "default";
