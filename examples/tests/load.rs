//! What workers of a graph say of their load, and who hears it.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use dynamo_core::protocol::{
    BlockSize, CacheNamespace, GenerateRequest, LoadReport, Sampling, TokenId, WorkerId,
};
use dynamo_core::{Context, Engine};
use dynamo_examples::engine::{Progress, WorkerOptions};
use dynamo_examples::graph::{Graph, GraphConfig};
use dynamo_examples::model::Loaded;
use dynamo_router::DisaggReport;
use futures::future::{join, join_all};
use tiny::{Size, file};

#[path = "support/tiny.rs"]
mod tiny;

const SIZE: Size = Size { layers: 1, dim: 32, ffn: 32, context: 512 };
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_says_what_it_computes_and_what_waits_and_its_router_hears_it() {
    let model = Arc::new(Loaded::from_bytes(&file(SIZE).0, &mut |_, _| {}).unwrap().model);
    let (go_on, told) = mpsc::channel::<()>();
    let told = Mutex::new(told);
    let on_progress = Arc::new(move |_: &Progress<'_>| {
        // Goes on when nobody is there any more to tell it.
        let _ = told.lock().unwrap().recv();
    });
    let worker = WorkerOptions { sequences_max: 1, on_progress, ..WorkerOptions::default() };
    let config = GraphConfig { worker, blocks: 100, ..GraphConfig::default() };
    let graph = Graph::disaggregated(&model, 1, 1, &config, |_: &DisaggReport| {}).await.unwrap();
    let (prefill, router) = (&graph.workers()[0], &graph.routers()[0]);
    let id = WorkerId::new(prefill.instance());

    let engine = graph.engine();
    let answers = join_all([1, 2].map(|token| {
        let (engine, ctx) = (Arc::clone(&engine), Context::new().with_timeout(PATIENCE));
        async move { engine.generate(ctx, request(token)).await?.collect().await }
    }));
    let heard = async {
        while router.load(id).blocks_total != 100
            || prefill.worker.load().prefill_tokens < Some(600)
        {
            tokio::task::yield_now().await;
        }
        let LoadReport { requests_running, requests_waiting, prefill_tokens, .. } =
            prefill.worker.load();
        assert_eq!((requests_running, requests_waiting, prefill_tokens), (1, 1, Some(600)));
        drop(go_on);
    };
    let (answers, ()) = tokio::time::timeout(PATIENCE, join(answers, heard)).await.unwrap();
    answers.into_iter().for_each(|answer| assert!(!answer.unwrap().is_empty()));
    for worker in graph.workers() {
        worker.worker.idle().await;
        let idle = LoadReport::idle(WorkerId::new(worker.instance()));
        assert_eq!(worker.worker.load(), LoadReport { blocks_total: 100, ..idle });
    }
    graph.shutdown(PATIENCE).await.unwrap();
}

fn request(token: TokenId) -> GenerateRequest {
    let sampling = Sampling { max_tokens: 4, ..Sampling::default() };
    let (namespace, size) = (CacheNamespace::model("tiny"), BlockSize::DEFAULT);
    GenerateRequest::new(namespace, size, vec![token; 300], sampling)
}
