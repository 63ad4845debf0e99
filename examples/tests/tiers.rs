//! Graphs whose workers have a disk below a memory that is too small.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dynamo_core::protocol::{BlockSize, CacheNamespace, GenerateRequest, Sampling, TokenId, Usage};
use dynamo_core::random::Random;
use dynamo_core::{Context, Engine};
use dynamo_examples::disk::DiskOptions;
use dynamo_examples::engine::{Progress, WorkerOptions};
use dynamo_examples::graph::{Graph, GraphConfig};
use dynamo_examples::model::{Loaded, Model};
use dynamo_router::DisaggReport;
use tiny::{Size, file};

#[path = "support/tiny.rs"]
mod tiny;

/// A model whose blocks take milliseconds to compute, and a tenth of one to load.
const DEAR: Size = Size { layers: 4, dim: 128, ffn: 512, context: 512 };

/// A model whose tokens take microseconds.
const CHEAP: Size = Size { layers: 1, dim: 32, ffn: 32, context: 64 };

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_pass_comes_from_the_disk_and_so_does_one_after_a_restart_with_the_same_answers() {
    let (model, scratch) = (model(DEAR), Scratch::new());
    let prompts: Vec<_> = (0..6).map(|seed| request(seed, 300, BlockSize::DEFAULT)).collect();
    // Room for one sequence, and a little.
    let small = config(40, Some(&scratch));
    let graph = disaggregated(&model, &small).await;
    let (first, usages) = pass(&graph, &prompts).await;
    assert!(usages.iter().all(|usage| usage.cached_tokens == Some(0)), "{usages:?}");
    let (second, usages) = pass(&graph, &prompts).await;
    assert!(second == first && from_disk(&usages) > 0, "{usages:?}");
    graph.shutdown(PATIENCE).await.unwrap();

    let graph = disaggregated(&model, &small).await;
    let (third, usages) = pass(&graph, &prompts).await;
    assert!(third == first && from_disk(&usages) > 0, "{usages:?}");
    graph.shutdown(PATIENCE).await.unwrap();

    let graph = Graph::aggregated(&model, &config(256, None)).await.unwrap();
    let (plain, usages) = pass(&graph, &prompts).await;
    assert!(plain == first && from_disk(&usages) == 0, "{usages:?}");
    graph.shutdown(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_come_up_from_the_disk_while_their_request_waits_for_its_turn() {
    let (model, scratch) = (model(DEAR), Scratch::new());
    let [known, other] = [0, 1].map(|seed| request(seed, 300, BlockSize::DEFAULT));
    let graph = Graph::aggregated(&model, &config(64, Some(&scratch))).await.unwrap();
    let (expected, _) = pass(&graph, std::slice::from_ref(&known)).await;
    graph.shutdown(PATIENCE).await.unwrap();

    let (computes, computing) = mpsc::channel();
    let (go_on, told) = mpsc::channel::<()>();
    let told = Mutex::new(told);
    let on_progress = Arc::new(move |_: &Progress<'_>| {
        // Listened to once.
        let _ = computes.send(());
        // Goes on when nobody is there any more to tell it.
        let _ = told.lock().unwrap().recv();
    });
    let worker = WorkerOptions { sequences_max: 1, on_progress, ..WorkerOptions::default() };
    let config = GraphConfig { worker, ..config(64, Some(&scratch)) };
    let graph = Graph::aggregated(&model, &config).await.unwrap();
    let first = graph.engine().generate(Context::new(), other).await.unwrap();
    let begun = move || computing.recv_timeout(PATIENCE);
    tokio::task::spawn_blocking(begun).await.unwrap().unwrap();
    let second = graph.engine().generate(Context::new(), known).await.unwrap();
    let manager = graph.workers()[0].worker.manager();
    let comes_up = async {
        while manager.tiers().unwrap().prefetched_total < 18 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, comes_up).await.unwrap();
    drop(go_on);
    first.collect().await.unwrap();
    let chunks = second.collect().await.unwrap();
    let tokens: Vec<_> = chunks.iter().flat_map(|chunk| chunk.token_ids.clone()).collect();
    assert_eq!(tokens, expected[0]);
    let usage = chunks.last().unwrap().usage.unwrap();
    assert_eq!((usage.cached_tokens, usage.loaded.disk), (Some(18 * 16), 0), "it was in memory");
    graph.shutdown(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_worker_computes_sooner_is_not_loaded() {
    let (model, scratch) = (model(CHEAP), Scratch::new());
    let size = BlockSize::new(1).unwrap();
    let prompts = [request(0, 40, size)];
    let config = GraphConfig { block_size: size, ..config(64, Some(&scratch)) };
    let mut answers = Vec::new();
    for _ in 0..2 {
        let graph = Graph::aggregated(&model, &config).await.unwrap();
        let (tokens, usages) = pass(&graph, &prompts).await;
        assert_eq!((usages[0].cached_tokens, from_disk(&usages)), (Some(0), 0));
        answers.push(tokens);
        graph.shutdown(PATIENCE).await.unwrap();
    }
    assert_eq!(answers[0], answers[1]);
}

fn model(size: Size) -> Arc<Model> {
    Arc::new(Loaded::from_bytes(&file(size).0, &mut |_, _| {}).unwrap().model)
}

fn config(blocks: usize, disk: Option<&Scratch>) -> GraphConfig {
    let disk = disk.map(|scratch| DiskOptions { dir: scratch.0.clone(), blocks: 256 });
    GraphConfig { blocks, disk, ..GraphConfig::default() }
}

/// A prompt of its own for each seed.
fn request(seed: u64, tokens: usize, block_size: BlockSize) -> GenerateRequest {
    let mut random = Random::new(seed);
    let tokens: Vec<_> =
        (0..tokens).map(|_| TokenId::try_from(1 + random.below(3).unwrap()).unwrap()).collect();
    let sampling = Sampling { max_tokens: 8, temperature: 1.0, seed, ..Sampling::default() };
    GenerateRequest::new(CacheNamespace::model("tiny"), block_size, tokens, sampling)
}

async fn disaggregated(model: &Arc<Model>, config: &GraphConfig) -> Graph {
    Graph::disaggregated(model, 1, 1, config, |_: &DisaggReport| {}).await.unwrap()
}

/// Asks one after the other; returns the answers and their counts.
async fn pass(graph: &Graph, prompts: &[GenerateRequest]) -> (Vec<Vec<TokenId>>, Vec<Usage>) {
    let (mut answers, mut usages) = (Vec::new(), Vec::new());
    for request in prompts {
        let ctx = Context::new().with_timeout(PATIENCE);
        let stream = graph.engine().generate(ctx, request.clone()).await.unwrap();
        let chunks = stream.collect().await.unwrap();
        answers.push(chunks.iter().flat_map(|chunk| chunk.token_ids.clone()).collect());
        usages.push(chunks.last().unwrap().usage.unwrap());
    }
    (answers, usages)
}

fn from_disk(usages: &[Usage]) -> u32 {
    usages.iter().map(|usage| usage.loaded.disk).sum()
}

/// A directory that goes when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let name = format!("graph-{:016x}", Random::unseeded().next_u64());
        Self(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
