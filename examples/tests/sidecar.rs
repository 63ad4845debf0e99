//! An engine server that others wrote, as an instance: listed while it answers, asked by token ids,
//! gone on with elsewhere when it dies, drained.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use dynamo_core::engine::layers::{Migrate, MigratePolicy};
use dynamo_core::event_plane::Delivery;
use dynamo_core::openai::OpenAiConfig;
use dynamo_core::protocol::{
    BlockSize, CacheNamespace, GenerateChunk, GenerateRequest, LoadReport, Sampling, TokenId,
};
use dynamo_core::testing::openai::{Fault, PlayedServer, Script};
use dynamo_core::time::SystemClock;
use dynamo_core::{Client, Component, Context, Engine, ErrorKind, Runtime};
use dynamo_examples::graph::{GENERATE, WORKER};
use dynamo_examples::sidecar::{Sidecar, SidecarConfig};
use dynamo_router::{KvRouter, RouterConfig};
use futures::StreamExt;
use tokio::task::JoinSet;

const PATIENCE: Duration = Duration::from_secs(20);
const PROMPT: [TokenId; 40] = [7; 40];
const TOKENS: u32 = 24;

async fn bounded<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, wait).await.unwrap()
}

fn component(runtime: &Runtime) -> Component {
    runtime.namespace("demo").unwrap().component("vllm").unwrap()
}

async fn client(runtime: &Runtime) -> Client<GenerateRequest, GenerateChunk> {
    component(runtime).endpoint(GENERATE).unwrap().client().await.unwrap()
}

fn config(server: &PlayedServer, name: &str) -> SidecarConfig {
    let engine = OpenAiConfig::new(server.url(), "played");
    let mut config = SidecarConfig::new(engine, "demo", "vllm", name);
    config.canary = [Duration::from_millis(50), Duration::from_secs(1)];
    config
}

async fn sidecar(runtime: &Runtime, server: &PlayedServer, name: &str) -> Sidecar {
    bounded(Sidecar::start(runtime, config(server, name))).await.unwrap()
}

fn request() -> GenerateRequest {
    let sampling = Sampling { max_tokens: TOKENS, ..Sampling::default() };
    let model = CacheNamespace::model("played");
    GenerateRequest::new(model, BlockSize::DEFAULT, PROMPT.to_vec(), sampling)
}

fn tokens(chunks: &[GenerateChunk]) -> Vec<TokenId> {
    chunks.iter().flat_map(|chunk| chunk.token_ids.clone()).collect()
}

/// Waits until so many instances are listed.
async fn listed(client: &Client<GenerateRequest, GenerateChunk>, count: usize) {
    let mut lists = client.watch();
    while lists.next().await.unwrap().len() != count {}
}

async fn ask(
    engine: &impl Engine<Request = GenerateRequest, Response = GenerateChunk>,
) -> Vec<TokenId> {
    let answer = engine.generate(Context::new(), request()).await.unwrap();
    tokens(&answer.collect().await.unwrap())
}

#[tokio::test]
async fn an_engine_answers_as_an_instance_and_says_how_busy_it_is() {
    let runtime = Runtime::in_process();
    let server = PlayedServer::start(Script::default()).await.unwrap();
    let mut reports =
        component(&runtime).subscriber::<LoadReport>(LoadReport::EVENT).await.unwrap();
    // A canary would be a request that runs.
    let mut config = config(&server, "played-0");
    config.canary = [PATIENCE, PATIENCE];
    let sidecar = bounded(Sidecar::start(&runtime, config)).await.unwrap();
    assert_eq!(sidecar.model().max_model_len, Some(4096));
    let client = client(&runtime).await;
    client.wait_for(1, PATIENCE).await.unwrap();
    assert_eq!(client.instances()[0].labels[WORKER], "played-0");
    let whole = Script::default().answer(&PROMPT, TOKENS as usize);
    assert_eq!(bounded(ask(&client)).await, whole);
    let mut told = async |running| loop {
        let Delivery::Event { value } = bounded(reports.recv()).await.unwrap() else {
            panic!("a report")
        };
        assert_eq!(value.worker.instance, sidecar.instance().id);
        assert_eq!(value.blocks_total, 1024);
        if value.requests_running == running {
            break;
        }
    };
    told(0).await;
    server.fail_next(Fault::HangAfter(1));
    let mut answer = client.generate(Context::new(), request()).await.unwrap();
    bounded(answer.next()).await.unwrap().unwrap();
    bounded(told(1)).await;
    server.release();
    bounded(answer.collect()).await.unwrap();
    bounded(told(0)).await;
    let report = bounded(sidecar.drain(PATIENCE)).await;
    assert_eq!(report.killed, 0);
    assert!(client.instances().is_empty());
}

#[tokio::test]
async fn a_router_chooses_among_the_ranks_of_an_engine_and_the_engine_is_told() {
    let runtime = Runtime::in_process();
    let server = PlayedServer::start(Script::default()).await.unwrap();
    let mut config = config(&server, "played-0");
    (config.ranks, config.canary) = (2, [PATIENCE, PATIENCE]);
    let sidecar = bounded(Sidecar::start(&runtime, config)).await.unwrap();
    let client = client(&runtime).await;
    client.wait_for(1, PATIENCE).await.unwrap();
    let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
    let client = client.with_picker(router);
    // Prompts that nobody has cached: any rank will do.
    for prompt in 0..40 {
        let request = request().with_prompt([prompt; 3]);
        let answer = bounded(client.generate(Context::new(), request)).await.unwrap();
        bounded(answer.collect()).await.unwrap();
    }
    let asked = server.asked();
    let ranks: BTreeSet<_> = asked.iter().map(|it| it.header("x-data-parallel-rank")).collect();
    assert_eq!(ranks, BTreeSet::from([Some("0"), Some("1")]));
    bounded(sidecar.drain(PATIENCE)).await;
}

#[tokio::test]
async fn an_answer_that_one_engine_loses_goes_on_at_another_token_by_token() {
    let whole = Script::default().answer(&PROMPT, TOKENS as usize);
    for lost_after in [0, 1, 7, 23] {
        let runtime = Runtime::in_process();
        let server = || PlayedServer::start(Script::default());
        let servers = [server().await.unwrap(), server().await.unwrap()];
        // Whoever is asked first; the canaries' requests would take the fault.
        let mut sidecars = Vec::new();
        for (server, name) in servers.iter().zip(["played-0", "played-1"]) {
            let mut config = config(server, name);
            config.canary = [PATIENCE, PATIENCE];
            server.fail_next(Fault::CloseAfter(lost_after));
            sidecars.push(bounded(Sidecar::start(&runtime, config)).await.unwrap());
        }
        let client = client(&runtime).await;
        client.wait_for(2, PATIENCE).await.unwrap();
        let engine = Migrate::new(client, MigratePolicy::default());
        assert_eq!(bounded(Box::pin(ask(&engine))).await, whole, "lost after {lost_after}");
        let asked: usize = servers.iter().map(|server| server.asked().len()).sum();
        assert!(asked > 1, "lost after {lost_after}: {asked}");
        for sidecar in sidecars {
            bounded(sidecar.drain(PATIENCE)).await;
        }
    }
}

#[tokio::test]
async fn an_engine_that_is_gone_is_off_the_list_until_it_answers_again() {
    let runtime = Runtime::in_process();
    let server = PlayedServer::start(Script::default()).await.unwrap();
    let sidecar = sidecar(&runtime, &server, "played-0").await;
    let client = client(&runtime).await;
    client.wait_for(1, PATIENCE).await.unwrap();
    let first = client.instances()[0].incarnation;
    let address = server.address();
    server.shutdown().await;
    drop(server);
    bounded(listed(&client, 0)).await;
    let _server = PlayedServer::start(Script { address, ..Script::default() }).await.unwrap();
    bounded(listed(&client, 1)).await;
    assert!(client.instances()[0].incarnation > first);
    let whole = Script::default().answer(&PROMPT, TOKENS as usize);
    assert_eq!(bounded(ask(&client)).await, whole);
    bounded(sidecar.drain(PATIENCE)).await;
}

#[tokio::test]
async fn draining_lets_answers_end_and_takes_no_more() {
    let runtime = Runtime::in_process();
    let script = Script::default().with_faults([Fault::HangAfter(3)]);
    let server = PlayedServer::start(script).await.unwrap();
    let mut config = config(&server, "played-0");
    config.canary = [PATIENCE, PATIENCE];
    let sidecar = bounded(Sidecar::start(&runtime, config)).await.unwrap();
    let client = client(&runtime).await;
    client.wait_for(1, PATIENCE).await.unwrap();
    let mut answer = client.generate(Context::new(), request()).await.unwrap();
    let first = bounded(answer.next()).await.unwrap().unwrap();
    let mut draining = JoinSet::new();
    draining.spawn(sidecar.drain(PATIENCE));
    bounded(listed(&client, 0)).await;
    let refused = client.generate(Context::new(), request()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(draining.try_join_next().is_none());
    server.release();
    let rest = bounded(answer.collect()).await.unwrap();
    let whole = Script::default().answer(&PROMPT, TOKENS as usize);
    assert_eq!([first.token_ids, tokens(&rest)].concat(), whole);
    let report = bounded(draining.join_next()).await.unwrap().unwrap();
    assert_eq!((report.finished, report.killed), (1, 0));
}

#[tokio::test]
async fn what_cannot_be_served_is_said_by_name_and_nothing_is_registered() {
    let runtime = Runtime::in_process();
    let server = PlayedServer::start(Script::default()).await.unwrap();
    let mut other = config(&server, "played-0");
    other.engine = OpenAiConfig::new(server.url(), "another");
    let error = bounded(Sidecar::start(&runtime, other)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("another"), "{error}");

    let mut late = config(&server, "played-0");
    server.shutdown().await;
    late.ready_max = Duration::from_millis(300);
    let error = bounded(Sidecar::start(&runtime, late)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert!(error.to_string().contains(server.url()), "{error}");
    assert!(client(&runtime).await.instances().is_empty());
}
