//! The main job on real weights: hand-off changes nothing in the answer and leaves nothing behind.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod processes;

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use dynamo_core::discovery::MemoryDiscovery;
use dynamo_core::event_plane::MemoryEventPlane;
use dynamo_core::protocol::{
    BlockSize, CacheNamespace, FinishReason, GenerateChunk, GenerateRequest, HandoffTicket,
    Sampling, Stage, TokenId, Usage,
};
use dynamo_core::request_plane::{TcpConfig, TcpRequestPlane};
use dynamo_core::{Context, Engine, ErrorKind, Runtime};
use dynamo_examples::engine::WorkerOptions;
use dynamo_examples::graph::{Graph, GraphConfig, GraphWorker};
use dynamo_examples::model::{Loaded, Model, Tokenizer};
use dynamo_examples::openai::{self, Server};
use dynamo_examples::text::ModelText;
use dynamo_router::{DisaggReport, Outcome, RouterConfig};
use dynamo_transfer::AgentConfig;

/// Returns where something is that `cargo xtask test` sets up, or says visibly how to get it.
#[expect(clippy::disallowed_methods, reason = "tests are told by the environment what there is")]
fn provided(variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    match &path {
        Some(path) => {
            assert!(path.exists(), "{variable} names {}, which is not there", path.display())
        }
        // Past the capture of passing tests' output.
        None => {
            let skipped =
                format!("SKIPPED: {variable} is not set; `cargo xtask test` sets it up\n");
            std::io::stderr().write_all(skipped.as_bytes()).unwrap();
        }
    }
    path
}

struct Real {
    model: Arc<Model>,
    tokenizer: Tokenizer,
}

fn real() -> Option<&'static Real> {
    static REAL: OnceLock<Option<Real>> = OnceLock::new();
    let load = || {
        let loaded = Loaded::read(&provided("DYNAMO_MODEL")?, &mut |_, _| {}).unwrap();
        Some(Real { model: Arc::new(loaded.model), tokenizer: loaded.tokenizer })
    };
    REAL.get_or_init(load).as_ref()
}

fn config(prefill_chunk_tokens: usize) -> GraphConfig {
    let worker = WorkerOptions { prefill_chunk_tokens, ..WorkerOptions::default() };
    GraphConfig { worker, blocks: 64, ..GraphConfig::default() }
}

fn request(real: &Real, prompt: &str, max_tokens: u32) -> GenerateRequest {
    let tokens = real.tokenizer.encode(prompt).unwrap();
    let sampling = Sampling { max_tokens, ..Sampling::default() };
    GenerateRequest::new(CacheNamespace::model("smol"), BlockSize::DEFAULT, tokens, sampling)
}

struct Answer {
    tokens: Vec<TokenId>,
    chunks: Vec<GenerateChunk>,
}

impl Answer {
    fn usage(&self) -> Usage {
        self.chunks.last().unwrap().usage.unwrap()
    }
}

async fn ask(graph: &Graph, request: &GenerateRequest) -> Answer {
    let ctx = Context::new().with_timeout(Duration::from_secs(120));
    let stream = graph.engine().generate(ctx, request.clone()).await.unwrap();
    let chunks = stream.collect().await.unwrap();
    let tokens = chunks.iter().flat_map(|chunk| chunk.token_ids.iter().copied()).collect();
    Answer { tokens, chunks }
}

async fn disaggregated(
    real: &Real,
    config: &GraphConfig,
) -> (Graph, Arc<Mutex<Vec<DisaggReport>>>) {
    let reports = Arc::<Mutex<Vec<DisaggReport>>>::default();
    let sink = Arc::clone(&reports);
    let observer = move |report: &DisaggReport| sink.lock().unwrap().push(report.clone());
    (Graph::disaggregated(&real.model, 2, 2, config, observer).await.unwrap(), reports)
}

const STORY: &str = "Once upon a time there was a lighthouse keeper who lived alone with a grey \
    cat on a rock in the sea. Every evening she climbed ninety-nine steps, lit the lamp and wrote";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hand_off_prefix_reuse_and_chunked_prefill_give_the_same_tokens() {
    let Some(real) = real() else { return };
    let single = Graph::aggregated(&real.model, &config(1024)).await.unwrap();
    let (split, reports) = disaggregated(real, &config(7)).await;
    // One prompt inside a block, one of exactly two blocks, and long ones with a common prefix.
    let two_blocks = real.tokenizer.encode(STORY).unwrap()[..32].to_vec();
    let mut requests = vec![
        request(real, "The capital of France is", 8),
        request(real, STORY, 12),
        request(real, &format!("{STORY} a letter to"), 12),
        request(real, STORY, 12),
    ];
    requests[0].sampling.temperature = 0.8;
    requests[0].sampling.seed = 42;
    requests.push(GenerateRequest::new(
        CacheNamespace::model("smol"),
        BlockSize::DEFAULT,
        two_blocks,
        Sampling { max_tokens: 6, ..Sampling::default() },
    ));
    for request in &requests {
        let (one, two) = (ask(&single, request).await, ask(&split, request).await);
        assert_eq!(one.tokens, two.tokens);
        assert_eq!(one.tokens.len(), request.sampling.max_tokens as usize);
        assert_eq!(two.chunks.last().unwrap().finish, Some(FinishReason::Length));
        assert_eq!(one.usage().completion_tokens, two.usage().completion_tokens);
    }
    let reports = reports.lock().unwrap().clone();
    let full_blocks = (real.tokenizer.encode(STORY).unwrap().len() - 1) / 16;
    assert_eq!(
        reports[2].cached_tokens,
        Some(full_blocks * 16),
        "the common prefix is not computed again"
    );
    assert_eq!(reports[3].cached_tokens, Some(full_blocks * 16));
    let moved = reports[3].handoff.unwrap();
    assert!(moved.blocks_cached > 0, "only what the decode worker lacks is moved: {moved:?}");
    for report in &reports {
        let moved = report.handoff.unwrap();
        let blocks = report.prompt_tokens.div_ceil(16);
        assert_eq!((moved.blocks_pulled + moved.blocks_cached) as usize, blocks);
        assert_eq!(moved.bytes, u64::from(moved.blocks_pulled) * 737_280);
        assert_eq!(report.outcome, Outcome::Complete);
    }
    assert_at_rest(&split).await;
    split.shutdown(Duration::from_secs(10)).await.unwrap();
    single.shutdown(Duration::from_secs(10)).await.unwrap();
}

/// Nothing in flight, nothing staged, nothing booked, no block held.
async fn assert_at_rest(graph: &Graph) {
    for worker in graph.workers() {
        // Joins the worker's tasks, so that nothing is left to happen.
        let idle = tokio::time::timeout(Duration::from_secs(60), worker.worker.idle());
        idle.await.unwrap();
        assert_eq!(worker.inflight(), 0, "{}", worker.name);
        assert_eq!(worker.worker.handoff().staged_blocks(), 0, "{}", worker.name);
        let stats = worker.worker.manager().stats();
        assert_eq!((stats.mutable, stats.complete, stats.active), (0, 0, 0), "{}", worker.name);
    }
    for router in graph.routers() {
        assert_eq!(router.stats().bookings, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_at_any_stage_leaves_nothing_behind() {
    let Some(real) = real() else { return };
    // 0: in the middle of the prefill; n: after n chunks, the second of which is the pull.
    for chunks in 0..5 {
        let (started, starts) = std::sync::mpsc::channel();
        let started = Mutex::new(started);
        let mut config = config(4);
        config.worker.on_progress = Arc::new(move |_| {
            // Nobody listens after the first word.
            let _ = started.lock().unwrap().send(());
        });
        let (graph, reports) = disaggregated(real, &config).await;
        let request = request(real, STORY, 64);
        let engine = graph.engine();
        if chunks == 0 {
            let mut call = Box::pin(engine.generate(Context::new(), request));
            let prefilling = tokio::task::spawn_blocking(move || starts.recv().unwrap());
            tokio::select! {
                result = &mut call => unreachable!("{result:?}"),
                started = prefilling => started.unwrap(),
            }
            drop(call);
        } else {
            let mut stream = engine.generate(Context::new(), request).await.unwrap();
            for _ in 0..chunks {
                stream.next().await.unwrap().unwrap();
            }
            drop(stream);
        }
        assert_at_rest(&graph).await;
        let outcomes: Vec<_> = reports.lock().unwrap().iter().map(|r| r.outcome).collect();
        assert_eq!(outcomes, [Outcome::Cancelled], "after {chunks} chunks");
        graph.shutdown(Duration::from_secs(10)).await.unwrap();
    }
}

#[tokio::test]
async fn requests_that_can_never_work_are_refused_by_name() {
    let Some(real) = real() else { return };
    let (graph, _) = disaggregated(real, &config(64)).await;
    let good = request(real, "Hello", 4);
    let context = real.model.config().context;
    let sized = |tokens: Vec<TokenId>| {
        let sampling = Sampling::default();
        GenerateRequest::new(CacheNamespace::model("smol"), BlockSize::DEFAULT, tokens, sampling)
    };
    let mut no_tokens = good.clone();
    no_tokens.sampling.max_tokens = 0;
    let other_blocks = GenerateRequest::new(
        CacheNamespace::model("smol"),
        BlockSize::new(32).unwrap(),
        vec![1],
        Sampling::default(),
    );
    let stolen = good
        .with_stage(Stage::Decode { ticket: HandoffTicket::new(&b"stolen"[..]), first_token: 1 });
    for (bad, named) in [
        (sized(Vec::new()), "prompt is empty"),
        (sized(vec![1; context]), "context"),
        (sized(vec![u32::MAX]), "vocabulary"),
        (no_tokens, "max_tokens"),
        (other_blocks, "32 tokens"),
        (stolen, "stage"),
    ] {
        let error = graph.engine().generate(Context::new(), bad).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.message().contains(named), "{error}");
    }
    assert_eq!(ask(&graph, &good).await.tokens.len(), 4, "the graph goes on");
    graph.shutdown(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test]
async fn a_pool_without_room_is_an_overload() {
    let Some(real) = real() else { return };
    let config = GraphConfig { blocks: 1, ..config(64) };
    let graph = Graph::aggregated(&real.model, &config).await.unwrap();
    let request = request(real, STORY, 4);
    let stream = graph.engine().generate(Context::new(), request).await.unwrap();
    let error = stream.collect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    graph.shutdown(Duration::from_secs(10)).await.unwrap();
}

/// The same graph with each worker behind a plane and an agent of its own, as processes have them:
/// requests and blocks cross real sockets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_behind_sockets_give_the_same_tokens() {
    let Some(real) = real() else { return };
    let config = config(64);
    let single = Graph::aggregated(&real.model, &config).await.unwrap();
    let discovery = Arc::<MemoryDiscovery>::default();
    let events = Arc::<MemoryEventPlane>::default();
    let loopback: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    let process = async || {
        let requests = TcpConfig::default().with_listen(loopback);
        let requests = Arc::new(TcpRequestPlane::start(requests).await.unwrap());
        let discovery = Arc::<MemoryDiscovery>::clone(&discovery);
        Runtime::new(discovery, requests, Arc::<MemoryEventPlane>::clone(&events))
    };
    let mut workers = Vec::new();
    for (role, name) in [("prefill", "prefill-0"), ("decode", "decode-0")] {
        let runtime = process().await;
        let agent = AgentConfig::default().with_tcp_listen(loopback);
        let worker = GraphWorker::start(&runtime, role, name, &real.model, agent, &config).await;
        workers.push((runtime, worker.unwrap()));
    }
    let front_end = process().await;
    let reports = Arc::<Mutex<Vec<DisaggReport>>>::default();
    let sink = Arc::clone(&reports);
    let observer = move |report: &DisaggReport| sink.lock().unwrap().push(report.clone());
    let graph =
        Graph::front_end(front_end, &RouterConfig::default(), 1, 1, observer).await.unwrap();
    for prompt in [STORY, "The capital of France is", STORY] {
        let request = request(real, prompt, 8);
        assert_eq!(ask(&single, &request).await.tokens, ask(&graph, &request).await.tokens);
    }
    let last = reports.lock().unwrap().last().cloned().unwrap();
    assert!(last.cached_tokens >= Some(16), "the router heard what the worker holds: {last:?}");
    assert_eq!(graph.worker_name(last.decode_worker().unwrap().instance), "decode-0");
    let patience = Duration::from_secs(10);
    graph.shutdown(patience).await.unwrap();
    for (runtime, worker) in workers {
        assert_eq!(worker.worker.handoff().staged_blocks(), 0);
        worker.end(patience).await;
        runtime.shutdown(patience).await.unwrap();
    }
    single.shutdown(patience).await.unwrap();
}

/// A stream that is held and not read: what computes behind it ends with the worker all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stops_reading_does_not_keep_a_worker_from_ending() {
    let Some(real) = real() else { return };
    let (graph, _) = disaggregated(real, &config(64)).await;
    let request = request(real, "Hello", 200);
    let mut unread = graph.engine().generate(Context::new(), request).await.unwrap();
    unread.next().await.unwrap().unwrap();
    unread.next().await.unwrap().unwrap();
    graph.shutdown(Duration::from_millis(100)).await.unwrap();
    // What was computed ahead may still be read; then the stream says why it ends.
    let error = unread.collect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_openai_client_streams_from_the_server() {
    let (Some(model), Some(python)) = (provided("DYNAMO_MODEL"), provided("DYNAMO_PYTHON")) else {
        return;
    };
    let loaded = Loaded::read(&model, &mut |_, _| {}).unwrap();
    let config = config(64);
    let model = Arc::new(loaded.model);
    let graph = Graph::disaggregated(&model, 1, 1, &config, |_: &DisaggReport| {}).await.unwrap();
    let text = ModelText::new("smol", 512, loaded.tokenizer, loaded.template);
    let server = Server::new(graph.engine(), Arc::new(text), config.block_size);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let shutdown = async {
        let _ = stopped.await;
    };
    let patience = Duration::from_secs(10);
    let mut server = Box::pin(openai::serve(listener, server.into_router(), shutdown, patience));
    let mut client = tokio::process::Command::new(python);
    client.args(["-c", CLIENT, &base_url]).kill_on_drop(true);
    let output = tokio::select! {
        output = client.output() => output.unwrap(),
        ended = &mut server => unreachable!("the server ended: {ended:?}"),
    };
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert_eq!(stdout.trim().lines().last(), Some("all good"), "{stdout}");
    drop(stop);
    server.await.unwrap();
    graph.shutdown(Duration::from_secs(10)).await.unwrap();
}

const CLIENT: &str = r#"
import sys, openai
client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0, timeout=120)
assert [m.id for m in client.models.list()] == ["smol"]
ask = dict(model="smol", messages=[{"role": "user", "content": "Count to five."}], temperature=0)
whole = client.chat.completions.create(max_tokens=12, **ask)
text, usage, reasons = "", None, []
for chunk in client.chat.completions.create(
        max_tokens=12, stream=True, stream_options={"include_usage": True}, **ask):
    for choice in chunk.choices:
        text += choice.delta.content or ""
        if choice.finish_reason: reasons.append(choice.finish_reason)
    usage = chunk.usage or usage
assert text == whole.choices[0].message.content != "", (text, whole)
assert reasons == [whole.choices[0].finish_reason], reasons
assert usage.completion_tokens == whole.usage.completion_tokens, (usage, whole.usage)
assert usage.prompt_tokens_details.cached_tokens >= 16, usage
plain = client.completions.create(model="smol", prompt="The capital of France is", max_tokens=4, temperature=0)
assert "Paris" in plain.choices[0].text, plain
def refused(kind, **change):
    try: client.chat.completions.create(**{**ask, **change})
    except kind as error: return error
    raise AssertionError(change)
assert refused(openai.NotFoundError, model="other").code == "model_not_found"
assert refused(openai.BadRequestError, max_tokens=0).param == "max_tokens"
assert refused(openai.BadRequestError, temperature=3).param == "temperature"
long = [{"role": "user", "content": "word " * 600}]
assert refused(openai.BadRequestError, messages=long).code == "context_length_exceeded"
assert refused(openai.BadRequestError, extra_body={"kv_transfer_params": {}}).param == "kv_transfer_params"
print("all good")
"#;
