//! A prompt prefilled by one server of vLLM's kind and decoded by another.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use dynamo_core::openai::{OpenAiConfig, OpenAiEngine};
use dynamo_core::protocol::{
    BlockSize, CacheNamespace, FinishReason, GenerateChunk, GenerateRequest, Sampling, TokenId,
};
use dynamo_core::testing::openai::{Connector, Fault, PlayedServer, Script};
use dynamo_core::time::SystemClock;
use dynamo_core::{Context, Engine, ResponseStream, Runtime, ServeOptions, Serving};
use dynamo_router::disagg::{DisaggConfig, Pool, PrefillDecode, Split};
use dynamo_router::{KvRouter, RouterConfig};

/// Two pools of engines, and the engine over them that splits every request.
struct Graph {
    engine: PrefillDecode,
    engines: Vec<OpenAiEngine>,
    servings: Vec<Serving>,
}

impl Graph {
    async fn new(prefill: Vec<OpenAiConfig>, decode: Vec<OpenAiConfig>) -> Self {
        let namespace = Runtime::in_process().namespace("n").unwrap();
        let (mut pools, mut engines, mut servings) = (Vec::new(), Vec::new(), Vec::new());
        for (role, configs) in [("prefill", prefill), ("decode", decode)] {
            let endpoint = namespace.component(role).unwrap().endpoint("generate").unwrap();
            for config in configs {
                let engine = OpenAiEngine::new(config).unwrap();
                engines.push(engine.clone());
                let served = endpoint.serve_with(engine, ServeOptions::default()).await;
                servings.push(served.unwrap());
            }
            let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
            pools.push(Pool::new(endpoint.client().await.unwrap(), router));
        }
        let (decode, prefill) = (pools.pop().unwrap(), pools.pop().unwrap());
        let config = DisaggConfig::default().with_split(Split::Always);
        let engine = PrefillDecode::new(prefill, decode).with_config(config);
        Self { engine, engines, servings }
    }

    async fn ask(&self, request: GenerateRequest) -> ResponseStream<GenerateChunk> {
        self.engine.generate(Context::new(), request).await.unwrap()
    }

    async fn shutdown(self) {
        for engine in &self.engines {
            engine.shutdown().await;
        }
        drop(self.servings);
    }
}

/// Played servers that pull from each other.
struct Fleet {
    script: Script,
    prefill: Vec<PlayedServer>,
    decode: Vec<PlayedServer>,
}

impl Fleet {
    async fn start(prefill: usize, decode: usize) -> Self {
        let script = Script::default().with_connector(&Connector::default());
        let mut fleet = Self { script, prefill: Vec::new(), decode: Vec::new() };
        for _ in 0..prefill {
            fleet.prefill.push(PlayedServer::start(fleet.script.clone()).await.unwrap());
        }
        for _ in 0..decode {
            fleet.decode.push(PlayedServer::start(fleet.script.clone()).await.unwrap());
        }
        fleet
    }

    async fn graph(&self, hold_max: Duration) -> Graph {
        let configs = |servers: &[PlayedServer]| {
            let config = |server: &PlayedServer| {
                OpenAiConfig::new(server.url(), &self.script.model).with_hold_max(hold_max)
            };
            servers.iter().map(config).collect()
        };
        Graph::new(configs(&self.prefill), configs(&self.decode)).await
    }
}

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(60);

fn request(prompt: &[TokenId], max_tokens: u32) -> GenerateRequest {
    let sampling = Sampling { max_tokens, ..Sampling::default() };
    GenerateRequest::new(CacheNamespace::default(), BlockSize::DEFAULT, prompt, sampling)
}

fn prompt(first: TokenId, length: TokenId) -> Vec<TokenId> {
    (first..first + length).collect()
}

fn tokens(chunks: &[GenerateChunk]) -> Vec<TokenId> {
    chunks.iter().flat_map(|chunk| chunk.token_ids.clone()).collect()
}

/// The rest of an answer, behind what was read of it.
async fn whole(begun: GenerateChunk, stream: ResponseStream<GenerateChunk>) -> Vec<GenerateChunk> {
    [vec![begun], stream.collect().await.unwrap()].concat()
}

#[tokio::test]
async fn an_answer_by_two_servers_is_that_of_one() {
    let fleet = Fleet::start(1, 1).await;
    let graph = fleet.graph(LONG).await;
    // In a block, a block, blocks and a part, and blocks.
    for (number, length) in [3, 16, 40, 64].into_iter().enumerate() {
        let prompt = prompt(1000 * length, length);
        let chunks = graph.ask(request(&prompt, 9)).await.collect().await.unwrap();
        assert_eq!(tokens(&chunks), fleet.script.answer(&prompt, 9), "{length} tokens");
        let last = chunks.last().unwrap();
        assert_eq!(last.finish, Some(FinishReason::Length));
        let usage = last.usage.unwrap();
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (length, 9));

        let prefilled = &fleet.prefill[0].asked()[number].body;
        assert_eq!((&prefilled["max_tokens"], &prefilled["stream"]), (&1.into(), &false.into()));
        assert_eq!(prefilled["kv_transfer_params"]["do_remote_decode"], true);
        let decoded = &fleet.decode[0].asked()[number].body;
        assert_eq!(decoded["prompt"], prefilled["prompt"]);
        assert_eq!(decoded["kv_transfer_params"]["do_remote_prefill"], true);
        assert_eq!(fleet.prefill[0].kept(), 0, "it was pulled");
    }
    graph.shutdown().await;
}

#[tokio::test]
async fn an_answer_of_one_token_leaves_no_blocks_that_nobody_pulls() {
    let fleet = Fleet::start(1, 1).await;
    let graph = fleet.graph(LONG).await;
    let prompt = prompt(1, 40);
    let chunks = graph.ask(request(&prompt, 1)).await.collect().await.unwrap();
    assert_eq!(tokens(&chunks), fleet.script.answer(&prompt, 1));
    assert_eq!((fleet.prefill[0].kept(), fleet.decode[0].asked().len()), (0, 0));
    graph.shutdown().await;
}

#[tokio::test]
async fn a_prefill_server_that_dies_before_the_pull_is_replaced() {
    for others in [0, 1] {
        let fleet = Fleet::start(1 + others, 1).await;
        let graph = fleet.graph(LONG).await;
        let prompt = prompt(1, 40);
        let mut stream = graph.ask(request(&prompt, 9)).await;
        let first = stream.next().await.unwrap().unwrap();
        let prefilled = fleet.prefill.iter().find(|server| server.kept() == 1).unwrap();
        prefilled.shutdown().await;
        let chunks = whole(first, stream).await;
        assert_eq!(tokens(&chunks), fleet.script.answer(&prompt, 9), "{others} others");
        assert_eq!(chunks.last().unwrap().usage.unwrap().completion_tokens, 9);
        graph.shutdown().await;
    }
}

#[tokio::test]
async fn a_decode_server_that_dies_in_the_middle_is_replaced() {
    for dies_after in [0, 1, 4] {
        let fleet = Fleet::start(1, 2).await;
        for server in &fleet.decode {
            server.fail_next(Fault::CloseAfter(dies_after));
        }
        let graph = fleet.graph(LONG).await;
        let prompt = prompt(1, 40);
        let chunks = graph.ask(request(&prompt, 9)).await.collect().await.unwrap();
        assert_eq!(tokens(&chunks), fleet.script.answer(&prompt, 9), "after {dies_after}");
        assert_eq!(chunks.last().unwrap().usage.unwrap().completion_tokens, 9);
        graph.shutdown().await;
    }
}

#[tokio::test]
async fn blocks_that_may_be_others_by_now_are_never_gone_on_from() {
    let fleet = Fleet::start(1, 1).await;
    let kept = Duration::from_millis(50);
    let graph = fleet.graph(kept).await;
    let prompt = prompt(1, 40);
    let mut stream = graph.ask(request(&prompt, 9)).await;
    let first = stream.next().await.unwrap().unwrap();
    // A client that reads slowly: meanwhile the server gives the blocks to somebody else.
    fleet.prefill[0].expire_kept();
    tokio::time::sleep(kept).await;
    let chunks = whole(first, stream).await;
    assert_eq!(tokens(&chunks), fleet.script.answer(&prompt, 9));
    graph.shutdown().await;
}

#[tokio::test]
async fn a_server_without_a_connector_leaves_the_prefill_to_the_decode_server() {
    let mut fleet = Fleet::start(0, 1).await;
    fleet.prefill.push(PlayedServer::start(Script::default()).await.unwrap());
    let graph = fleet.graph(LONG).await;
    let prompt = prompt(1, 40);
    let chunks = graph.ask(request(&prompt, 9)).await.collect().await.unwrap();
    assert_eq!(tokens(&chunks), fleet.script.answer(&prompt, 9));
    graph.shutdown().await;
}

/// Two servers of vLLM with `NixlConnector`, as `docs/openai-engine.md` starts them, at the URLs in
/// `DYNAMO_VLLM_PREFILL` and `DYNAMO_VLLM_DECODE`, with a model named `smol`.
#[tokio::test]
async fn an_answer_by_two_real_servers_is_that_of_one() {
    let Some([prefill, decode]) = provided() else { return };
    let config = |url: &str| OpenAiConfig::new(url, "smol");
    let graph = Graph::new(vec![config(&prefill)], vec![config(&decode)]).await;
    let alone = OpenAiEngine::new(config(&prefill)).unwrap();
    for length in [3, 32, 64, 70, 200] {
        let prompt: Vec<TokenId> = (0..length).map(|at| (length + 7 * at) % 900 + 100).collect();
        let split = graph.ask(request(&prompt, 12)).await.collect().await.unwrap();
        let whole = alone.generate(Context::new(), request(&prompt, 12)).await.unwrap();
        let whole = whole.collect().await.unwrap();
        let usage = split.last().unwrap().usage.unwrap();
        say(&format!("{length} tokens: {:?} {usage:?}\n", tokens(&split)));
        assert_eq!(tokens(&split), tokens(&whole), "{length} tokens");
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (length, 12));
    }
    alone.shutdown().await;
    graph.shutdown().await;
}

#[expect(clippy::disallowed_methods, reason = "tests are told by the environment what there is")]
fn provided() -> Option<[String; 2]> {
    let urls = ["DYNAMO_VLLM_PREFILL", "DYNAMO_VLLM_DECODE"].map(|name| std::env::var(name).ok());
    let [Some(prefill), Some(decode)] = urls else {
        say("SKIPPED: DYNAMO_VLLM_PREFILL and DYNAMO_VLLM_DECODE are not set\n");
        return None;
    };
    Some([prefill, decode])
}

/// Past the capture of passing tests' output.
fn say(text: &str) {
    std::io::stderr().write_all(text.as_bytes()).unwrap();
}
