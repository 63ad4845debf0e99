//! The whole chain in one process: engines behind their sidecars, what they cache by ZeroMQ, and the
//! front end that routes by it.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use dynamo_core::openai::OpenAiConfig;
use dynamo_core::protocol::{BlockSize, CacheNamespace, GenerateRequest, Sampling, TokenId};
use dynamo_core::testing::openai::{BlockChange, Fault, PlayedServer, Script};
use dynamo_core::{Context, Engine, Runtime};
use dynamo_examples::front_end::{FrontEnd, FrontEndConfig, Outcome, Routing, Served};
use dynamo_examples::sidecar::{EventsConfig, Sidecar, SidecarConfig};
use dynamo_router::RouterConfig;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use zeromq::{RouterSocket, Socket, SocketRecv, SocketSend, XPubSocket, ZmqMessage};

const PATIENCE: Duration = Duration::from_secs(20);
const TOKENS: u32 = 12;
/// More messages than a test sends.
const MANY: usize = 1024;
const TWO: [&str; 2] = ["played-0", "played-1"];

async fn bounded<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, wait).await.unwrap()
}

/// The payloads that an engine has published, by number.
type Said = Arc<Mutex<Vec<Bytes>>>;

/// Engines, each with its sidecar, and the front end before them.
struct Fleet {
    front_end: FrontEnd,
    servers: Vec<PlayedServer>,
    sidecars: Vec<Sidecar>,
    /// How each request went, as the front end tells it.
    told: mpsc::Receiver<Served>,
    _publishers: JoinSet<()>,
}

impl Fleet {
    /// Starts as many engines as there are names.
    async fn start(names: &[&str], script: Script) -> Self {
        Self::losing(&[], names, script).await
    }

    /// Starts them so that messages of these numbers are lost on their way to the sidecars.
    async fn losing(lost: &'static [usize], names: &[&str], script: Script) -> Self {
        let runtime = Runtime::in_process();
        let (mut servers, mut sidecars) = (Vec::new(), Vec::new());
        let mut publishers = JoinSet::new();
        for name in names {
            let (tell, changes) = mpsc::channel(MANY);
            let script = script.clone().with_observer(move |change| tell.try_send(change).unwrap());
            let server = PlayedServer::start(script).await.unwrap();
            let mut socket = XPubSocket::new();
            let endpoint = socket.bind("tcp://127.0.0.1:0").await.unwrap().to_string();
            let mut config = SidecarConfig::new(
                OpenAiConfig::new(server.url(), "played"),
                "demo",
                "fleet",
                *name,
            );
            // A canary would be a request that is cached.
            config.canary = [PATIENCE, PATIENCE];
            let said = Arc::default();
            let mut replays = RouterSocket::new();
            let replay = Some(replays.bind("tcp://127.0.0.1:0").await.unwrap().to_string());
            publishers.spawn(repeat(replays, Arc::clone(&said)));
            let topic = String::new();
            config.events = Some(EventsConfig { endpoint, replay, topic, is_bound: false });
            sidecars.push(bounded(Sidecar::start(&runtime, config)).await.unwrap());
            // It has subscribed: what is published before that is lost.
            assert_eq!(bounded(socket.recv()).await.unwrap().get(0).unwrap()[..], [1]);
            publishers.spawn(publish(socket, changes, said, lost));
            servers.push(server);
        }
        // Only what engines say is known, not what was just sent to them.
        let router = RouterConfig::default().with_provisional_ttl(None);
        let config = FrontEndConfig {
            namespace: "demo".to_owned(),
            component: "fleet".to_owned(),
            routing: Routing::Kv,
            router,
            workers: names.len(),
            workers_wait_max: PATIENCE,
        };
        let (tell, told) = mpsc::channel(MANY);
        let tell = move |served: &Served| tell.try_send(served.clone()).unwrap();
        let front_end = FrontEnd::start(runtime, config, tell).await.unwrap();
        Self { front_end, servers, sidecars, told, _publishers: publishers }
    }

    async fn ask(&mut self, prompt: &[TokenId]) -> Served {
        let ctx = Context::new().with_timeout(PATIENCE);
        let stream = self.front_end.engine().generate(ctx, request(prompt)).await.unwrap();
        let chunks = stream.collect().await.unwrap();
        let tokens: Vec<_> = chunks.into_iter().flat_map(|chunk| chunk.token_ids).collect();
        assert_eq!(tokens, Script::default().answer(prompt, TOKENS as usize));
        self.went().await
    }

    /// Waits until it is told how one more request went.
    async fn went(&mut self) -> Served {
        bounded(self.told.recv()).await.unwrap()
    }

    /// Waits until the router knows of so many blocks.
    async fn knows(&self, blocks: usize) {
        let router = self.front_end.router().unwrap();
        let known = async {
            while router.stats().indexed_blocks != blocks {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        bounded(known).await;
    }

    async fn end(self) {
        for sidecar in self.sidecars {
            bounded(sidecar.drain(PATIENCE)).await;
        }
        self.front_end.shutdown().await.unwrap();
        drop(self.servers);
    }
}

/// Publishes what becomes of an engine's blocks as vLLM does.
async fn publish(
    mut socket: XPubSocket,
    mut changes: mpsc::Receiver<BlockChange>,
    said: Said,
    lost: &[usize],
) {
    while let Some(change) = changes.recv().await {
        let event = match change {
            BlockChange::Stored { hashes, parent, token_ids } => json!({
                "type": "BlockStored", "block_hashes": hashes, "parent_block_hash": parent,
                "token_ids": token_ids, "block_size": BlockSize::DEFAULT.tokens(),
            }),
            BlockChange::Removed { hashes } => {
                json!({ "type": "BlockRemoved", "block_hashes": hashes })
            }
            BlockChange::Cleared => json!({ "type": "AllBlocksCleared" }),
            other => panic!("no message of vLLM: {other:?}"),
        };
        let payload = Bytes::from(rmp_serde::to_vec(&json!([1.5, [event], 0])).unwrap());
        let number = {
            let mut said = said.lock().unwrap();
            said.push(payload.clone());
            said.len() - 1
        };
        if !lost.contains(&number) {
            let frames = vec![Bytes::new(), number_frame(number as u64), payload];
            socket.send(ZmqMessage::try_from(frames).unwrap()).await.unwrap();
        }
    }
}

/// Repeats what was published, from the number on that is asked for, as vLLM does.
async fn repeat(mut socket: RouterSocket, said: Said) {
    loop {
        let asked = socket.recv().await.unwrap().into_vec();
        let [peer, _, from] = &asked[..] else { panic!("{asked:?}") };
        let from = u64::from_be_bytes(from[..].try_into().unwrap());
        let said = said.lock().unwrap().clone();
        let again = (0..).zip(said).filter(|(number, _)| *number >= from);
        for (number, payload) in again.chain([(u64::MAX, Bytes::new())]) {
            let frames =
                vec![peer.clone(), Bytes::new(), Bytes::new(), number_frame(number), payload];
            socket.send(ZmqMessage::try_from(frames).unwrap()).await.unwrap();
        }
    }
}

fn number_frame(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

fn request(prompt: &[TokenId]) -> GenerateRequest {
    let sampling = Sampling { max_tokens: TOKENS, ..Sampling::default() };
    let model = CacheNamespace::model("played");
    GenerateRequest::new(model, BlockSize::DEFAULT, prompt.to_vec(), sampling)
}

/// Four blocks that all prompts of a kind begin with, and three tokens of its own: with its answer
/// no fifth block is full.
fn prompt(kind: TokenId, own: TokenId) -> Vec<TokenId> {
    (0..64).map(|at| 1 + (kind * 31 + at) % 200).chain([own; 3]).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_predicted_of_a_prefix_is_what_the_engine_that_has_it_reports() {
    let mut fleet = Fleet::start(&TWO, Script::default()).await;
    let mut first = Vec::new();
    for kind in 0..6 {
        first.push(fleet.ask(&prompt(kind, 1)).await);
        fleet.knows(4 * first.len()).await;
    }
    for (kind, first) in (0..6).zip(&first) {
        assert_eq!((first.predicted_cached_tokens, first.cached_tokens), (Some(0), Some(0)));
        let again = fleet.ask(&prompt(kind, 2)).await;
        assert_eq!(again.parts, first.parts, "prompt {kind}");
        assert_eq!((again.predicted_cached_tokens, again.cached_tokens), (Some(64), Some(64)));
    }
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_lost_between_an_engine_and_its_sidecar_is_had_from_the_replay() {
    let mut fleet = Fleet::losing(&[1], &["played-0"], Script::default()).await;
    for kind in 0..3 {
        fleet.ask(&prompt(kind, 1)).await;
    }
    fleet.knows(12).await;
    let again = fleet.ask(&prompt(1, 2)).await;
    assert_eq!((again.predicted_cached_tokens, again.cached_tokens), (Some(64), Some(64)));
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_engine_has_evicted_is_predicted_no_more() {
    // Room for one prompt, and a block more.
    let mut fleet = Fleet::start(&["played-0"], Script { blocks: 5, ..Script::default() }).await;
    fleet.ask(&prompt(0, 1)).await;
    fleet.knows(4).await;
    fleet.ask(&prompt(1, 1)).await;
    // The last three blocks of the first one made room.
    fleet.knows(5).await;
    for (kind, tokens) in [(1, 64), (0, 16)] {
        let again = fleet.ask(&prompt(kind, 2)).await;
        let cached = (again.predicted_cached_tokens, again.cached_tokens);
        assert_eq!(cached, (Some(tokens), Some(tokens)), "prompt {kind}");
    }
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_of_an_engine_that_is_killed_go_on_at_the_other_token_by_token() {
    const ANSWERS_MAX: u32 = 40;
    let hang = (0..ANSWERS_MAX).map(|_| Fault::HangAfter(5));
    let mut fleet = Fleet::start(&TWO, Script::default().with_faults(hang)).await;
    let mut answers = Vec::new();
    // Until both have some.
    while fleet.servers.iter().any(|server| server.asked().is_empty()) {
        let kind = TokenId::try_from(answers.len()).unwrap();
        assert!(kind < ANSWERS_MAX, "all went to the same engine");
        let prompt = prompt(kind, 1);
        let ctx = Context::new().with_timeout(PATIENCE);
        let mut stream = fleet.front_end.engine().generate(ctx, request(&prompt)).await.unwrap();
        let begun = stream.next().await.unwrap().unwrap().token_ids;
        answers.push((prompt, begun, stream));
    }
    let [lost, other] = [0, 1].map(|index| fleet.servers[index].asked().len());
    fleet.servers[1].release();
    bounded(fleet.servers[0].shutdown()).await;
    let mut went = Vec::new();
    for (prompt, begun, stream) in answers {
        let rest = bounded(stream.collect()).await.unwrap();
        let rest = rest.into_iter().flat_map(|chunk| chunk.token_ids);
        let tokens: Vec<_> = begun.into_iter().chain(rest).collect();
        assert_eq!(tokens, Script::default().answer(&prompt, TOKENS as usize));
        went.push(fleet.went().await);
    }
    assert!(went.iter().all(|served| matches!(served.outcome, Outcome::Finished(_))));
    let moved = went.iter().filter(|served| served.parts == TWO).count();
    let stayed = went.iter().filter(|served| served.parts == ["played-1"]).count();
    assert_eq!((moved, stayed), (lost, other));
    fleet.end().await;
}
