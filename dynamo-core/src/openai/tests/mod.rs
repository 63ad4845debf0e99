//! The engine against a server that plays by a script.

mod connections;
mod endings;
mod refusals;

use std::time::Duration;

use super::*;
use crate::engine::{Context, Engine, ResponseStream};
use crate::error::{ErrorKind, Result};
use crate::protocol::{
    BlockSize, CacheNamespace, FinishReason, GenerateChunk, GenerateRequest, Sampling, TokenId,
};
use crate::runtime::Runtime;
use crate::server::{Canary, ServeOptions};
use crate::testing::openai::{AskedState, Fault, PlayedServer, Script};

async fn played(faults: impl IntoIterator<Item = Fault>) -> PlayedServer {
    PlayedServer::start(Script::default().with_faults(faults)).await.unwrap()
}

fn engine(url: &str) -> OpenAiEngine {
    OpenAiEngine::new(config(url)).unwrap()
}

fn config(url: &str) -> OpenAiConfig {
    OpenAiConfig::new(url, "played").with_end_tokens(vec![0])
}

/// A prompt of three blocks and a bit.
fn prompt() -> Vec<TokenId> {
    (1..=50).collect()
}

fn request(max_tokens: u32) -> GenerateRequest {
    let sampling = Sampling { max_tokens, ..Sampling::default() };
    GenerateRequest::new(CacheNamespace::model("m"), BlockSize::DEFAULT, prompt(), sampling)
}

/// Asks for `max_tokens` and reads all that comes.
async fn asked(engine: &OpenAiEngine, max_tokens: u32) -> Result<Vec<GenerateChunk>> {
    engine.generate(Context::new(), request(max_tokens)).await?.collect().await
}

fn tokens(chunks: &[GenerateChunk]) -> Vec<TokenId> {
    chunks.iter().flat_map(|chunk| chunk.token_ids.clone()).collect()
}

/// Takes items until the stream ends, and returns their tokens and the error that ended it.
async fn until_failed(mut stream: ResponseStream<GenerateChunk>) -> (Vec<TokenId>, crate::Error) {
    let mut taken = Vec::new();
    loop {
        match stream.next().await.expect("the answer is not complete") {
            Ok(chunk) => taken.extend(chunk.token_ids),
            Err(error) => return (taken, error),
        }
    }
}

#[tokio::test]
async fn an_answer_is_the_servers_tokens_with_its_counts() {
    let server = played([]).await;
    let engine = engine(server.url());
    for cached in [0, 48] {
        let chunks = asked(&engine, 5).await.unwrap();
        assert_eq!(tokens(&chunks), Script::default().answer(&prompt(), 5));
        let last = chunks.last().unwrap();
        let usage = last.usage.unwrap();
        assert_eq!(last.finish, Some(FinishReason::Length));
        let counts = (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens);
        assert_eq!(counts, (50, Some(cached), 5));
        let firsts = &chunks[..chunks.len() - 1];
        assert!(firsts.iter().all(|chunk| chunk.finish.is_none() && chunk.usage.is_none()));
    }
    engine.shutdown().await;
}

#[tokio::test]
async fn the_models_end_token_ends_the_answer_and_is_no_part_of_it() {
    let mut script = Script::default();
    (script.end_at, script.tokens_per_delta) = (Some(53), 4);
    let server = PlayedServer::start(script.clone()).await.unwrap();
    let engine = engine(server.url());
    let chunks = asked(&engine, 9).await.unwrap();
    let mut expected = script.answer(&prompt(), 9);
    assert_eq!(expected.pop(), Some(script.end_token));
    assert_eq!(tokens(&chunks), expected);
    assert_eq!(expected.len(), 3);
    assert_eq!(chunks.last().unwrap().finish, Some(FinishReason::Stop));

    let mut unending = request(9);
    unending.sampling.ignore_end = true;
    let chunks = engine.generate(Context::new(), unending).await.unwrap().collect().await.unwrap();
    assert_eq!(tokens(&chunks).len(), 9);
    engine.shutdown().await;
}

#[tokio::test]
async fn a_server_tells_its_health_and_its_model() {
    let server = played([]).await;
    let engine = engine(server.url());
    engine.check().await.unwrap();
    let served = engine.model().await.unwrap();
    assert_eq!((served.id.as_str(), served.max_model_len), ("played", Some(4096)));
    let other = OpenAiEngine::new(OpenAiConfig::new(server.url(), "other")).unwrap();
    assert_eq!(other.model().await.unwrap_err().kind(), ErrorKind::NotFound);
    server.shutdown().await;
    assert_eq!(engine.check().await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_canary_of_one_token_takes_a_server_off_the_list_and_puts_it_back() {
    let server = played([Fault::None, Fault::Refuse(500)]).await;
    let runtime = Runtime::in_process();
    let component = runtime.namespace("demo").unwrap().component("played").unwrap();
    let endpoint = component.endpoint("generate").unwrap();
    let canary = Canary::new(request(1)).with_after(Duration::from_millis(1));
    let (engine, options) = (engine(server.url()), ServeOptions::default());
    let serving = endpoint.serve_watched(engine, options, canary).await.unwrap();
    let client = endpoint.client().await.unwrap();
    // The second one fails; who is listed again is its next incarnation.
    let listed_again = async {
        while client.instances().first().is_none_or(|instance| instance.incarnation == 0) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), listed_again).await.unwrap();
    let asked = server.asked();
    assert!(asked.len() >= 3 && asked.iter().all(|it| it.body["max_tokens"] == 1));
    serving.drain(Duration::from_secs(5)).await;
    runtime.shutdown(Duration::from_secs(5)).await.unwrap();
}
