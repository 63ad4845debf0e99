//! The front end over workers of this process: who gets what, and what becomes of lost answers.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dynamo_core::protocol::{BlockSize, CacheNamespace, GenerateRequest, Sampling, TokenId};
use dynamo_core::{Context, Engine, Runtime};
use dynamo_examples::front_end::{FrontEnd, FrontEndConfig, Outcome, Routing, Served};
use dynamo_examples::model::HubFolder;
use dynamo_examples::openai::Server;
use dynamo_examples::text::ModelText;
use dynamo_router::RouterConfig;
use folder::{BYTES, Folder};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use worker::{Deaths, Worker};

#[path = "support/folder.rs"]
mod folder;
#[path = "support/worker.rs"]
mod worker;

const PATIENCE: Duration = Duration::from_secs(20);

/// A front end, its workers, and what it told.
struct World {
    front_end: FrontEnd,
    workers: Vec<Worker>,
    told: Arc<Mutex<Vec<Served>>>,
}

impl World {
    async fn start(routing: Routing, workers: usize, deaths: Deaths) -> Self {
        let runtime = Runtime::in_process();
        let mut serving = Vec::new();
        let deaths = Arc::new(deaths);
        for index in 0..workers {
            let name = format!("worker-{index}");
            serving.push(Worker::start(&runtime, "fleet", &name, &deaths).await);
        }
        let config = FrontEndConfig {
            namespace: "demo".to_owned(),
            component: "fleet".to_owned(),
            routing,
            router: RouterConfig::default(),
            workers,
            workers_wait_max: PATIENCE,
        };
        let told = Arc::<Mutex<Vec<Served>>>::default();
        let noted = Arc::clone(&told);
        let note = move |served: &Served| noted.lock().unwrap().push(served.clone());
        let front_end = FrontEnd::start(runtime, config, note).await.unwrap();
        Self { front_end, workers: serving, told }
    }

    /// Sends a prompt and returns how it went.
    async fn say(&self, request: GenerateRequest) -> Served {
        let ctx = Context::new().with_timeout(PATIENCE);
        if let Ok(stream) = self.front_end.engine().generate(ctx, request).await {
            let _ = stream.collect().await;
        }
        self.told.lock().unwrap().last().unwrap().clone()
    }

    /// Waits until the router knows of so many blocks.
    async fn knows(&self, blocks: usize) {
        let router = self.front_end.router().unwrap();
        let known = async {
            while router.stats().indexed_blocks < blocks {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, known).await.unwrap();
    }

    async fn end(self) {
        self.front_end.shutdown().await.unwrap();
        drop(self.workers);
    }
}

/// A prompt of 70 tokens; no two begin alike.
fn request(first: TokenId) -> GenerateRequest {
    let sampling = Sampling { max_tokens: 12, ..Sampling::default() };
    let prompt: Vec<_> = (0..70).map(|at| BYTES + (first * 7 + at) % 200).collect();
    GenerateRequest::new(CacheNamespace::model("m"), BlockSize::DEFAULT, prompt, sampling)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kv_sends_a_repeated_prompt_to_who_has_it_and_predicts_what_it_has() {
    let world = World::start(Routing::Kv, 3, Deaths::none()).await;
    let mut first = Vec::new();
    for n in 0..7 {
        first.push(world.say(request(n)).await);
    }
    world.knows(7 * 4).await;
    for (n, first) in (0..7).zip(&first) {
        assert_eq!((first.predicted_cached_tokens, first.cached_tokens), (Some(0), Some(0)));
        let again = world.say(request(n)).await;
        assert_eq!(again.parts, first.parts, "prompt {n}");
        assert_eq!((again.predicted_cached_tokens, again.cached_tokens), (Some(64), Some(64)));
        assert_eq!((again.prompt_tokens, again.completion_tokens), (70, 12));
        assert!(again.ttft.is_some() && matches!(again.outcome, Outcome::Finished(_)));
    }
    world.end().await;
}

#[tokio::test]
async fn round_robin_sends_each_prompt_to_the_next_worker_whoever_has_it() {
    let world = World::start(Routing::RoundRobin, 3, Deaths::none()).await;
    let mut first = Vec::new();
    for n in 0..4 {
        first.push(world.say(request(n)).await);
    }
    assert_eq!(first[0].parts, first[3].parts, "in turn");
    for (n, first) in (0..4).zip(&first) {
        let again = world.say(request(n)).await;
        assert_ne!(again.parts, first.parts, "prompt {n}");
        assert_eq!((again.predicted_cached_tokens, again.cached_tokens), (None, Some(0)));
    }
    world.end().await;
}

/// Asks over HTTP and returns the text of the answer, as its events say it, and their last usage.
async fn ask(world: &World, folder: &Folder) -> (String, Value) {
    let model = ModelText::of_folder("m", HubFolder::read(folder.path()).unwrap());
    let server = Server::new(world.front_end.engine(), Arc::new(model), BlockSize::DEFAULT);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(async move { axum::serve(listener, server.into_router()).await });
    let body = json!({
        "model": "m", "stream": true, "stream_options": { "include_usage": true },
        "max_completion_tokens": 40, "temperature": 0,
        "messages": [{ "role": "user", "content": "Tell me of the sea." }],
    });
    let body = body.to_string();
    let head = "POST /v1/chat/completions HTTP/1.0\r\nContent-Length:";
    let asked = format!("{head} {}\r\n\r\n{body}", body.len());
    stream.write_all(asked.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap();
    assert!(answer.ends_with("data: [DONE]\n\n"), "{answer}");
    let events = answer.lines().filter_map(|line| line.strip_prefix("data: "));
    let events: Vec<Value> = events.filter_map(|event| serde_json::from_str(event).ok()).collect();
    let deltas = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    (deltas.collect(), events.last().unwrap()["usage"].clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_text_of_an_answer_whose_worker_dies_is_that_of_one_whose_does_not() {
    let folder = Folder::of_bytes();
    for routing in [Routing::Kv, Routing::RoundRobin] {
        let world = World::start(routing, 2, Deaths::none()).await;
        let (whole, usage) = ask(&world, &folder).await;
        assert!(whole.contains('é') && usage["completion_tokens"] == 40, "{whole:?} {usage}");
        world.end().await;
        // At each place, within characters too.
        for tokens in 0..40 {
            let world = World::start(routing, 2, Deaths::after(tokens)).await;
            let (text, of_two) = ask(&world, &folder).await;
            assert_eq!(text, whole, "{routing:?}, dead after {tokens} tokens");
            assert_eq!(of_two["completion_tokens"], usage["completion_tokens"]);
            let served = world.told.lock().unwrap().pop().unwrap();
            let mut parts = served.parts.clone();
            parts.sort();
            assert_eq!(parts, ["worker-0", "worker-1"]);
            assert_eq!(served.completion_tokens, 40);
            assert_eq!(served.cached_tokens, Some(0), "{served:?}");
            world.end().await;
        }
    }
}

#[tokio::test]
async fn of_each_request_there_is_a_line_also_if_it_fails_or_its_client_goes_away() {
    let world = World::start(Routing::Kv, 1, Deaths::always()).await;
    let failed = world.say(request(1)).await.to_json();
    assert_eq!((&failed["finish"], &failed["worker"]), (&json!("error"), &json!("worker-0")));
    assert!(failed["error"].as_str().unwrap().contains("died"), "{failed}");
    assert_eq!((failed["parts"].as_array().unwrap().len(), &failed["ttft_ms"]), (3, &Value::Null));
    world.end().await;

    let world = World::start(Routing::RoundRobin, 1, Deaths::none()).await;
    let stream = world.front_end.engine().generate(Context::new(), request(1)).await.unwrap();
    let id = stream.context().id().clone();
    drop(stream);
    let left = world.told.lock().unwrap().pop().unwrap().to_json();
    assert_eq!((&left["id"], &left["finish"]), (&json!(id.as_str()), &json!("cancelled")));
    assert_eq!((&left["parts"], &left["ttft_ms"]), (&json!(["worker-0"]), &Value::Null));
    let finished = world.say(request(2)).await.to_json();
    assert_eq!((&finished["finish"], finished.get("error")), (&json!("length"), None));
    assert!(
        finished["ttft_ms"].as_f64().is_some() && finished["predicted_cached_tokens"].is_null()
    );
    assert_eq!(world.told.lock().unwrap().len(), 1, "one for each request");
    world.end().await;
}
