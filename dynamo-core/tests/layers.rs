//! Layers around a client whose instances are in other processes, as far as requests can tell.
#![cfg(feature = "tcp")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use dynamo_core::discovery::MemoryDiscovery;
use dynamo_core::engine::layers::{Migrate, MigratePolicy};
use dynamo_core::event_plane::MemoryEventPlane;
use dynamo_core::protocol::{
    BlockSize, CacheNamespace, FinishReason, GenerateChunk, GenerateRequest, Sampling, Usage,
};
use dynamo_core::request_plane::{TcpConfig, TcpRequestPlane};
use dynamo_core::{Client, Context, Engine, ResponseStream, Runtime, engine_fn};
use futures::{StreamExt, stream};
use tokio::sync::watch;

const STREAMS: u32 = 24;
const TOKENS: u32 = 40;

async fn runtime(discovery: &Arc<MemoryDiscovery>, listens: bool) -> Runtime {
    let config = TcpConfig::default();
    let config = if listens { config.with_listen("127.0.0.1:0".parse().unwrap()) } else { config };
    let plane = Arc::new(TcpRequestPlane::start(config).await.unwrap());
    let discovery = Arc::<MemoryDiscovery>::clone(discovery);
    Runtime::new(discovery, plane, Arc::new(MemoryEventPlane::default()))
}

fn endpoint(runtime: &Runtime) -> dynamo_core::Endpoint<GenerateRequest, GenerateChunk> {
    runtime.namespace("n").unwrap().component("c").unwrap().endpoint("e").unwrap()
}

/// Counts on from the last token of the prompt, one token a millisecond.
fn counting(
    calls: &Arc<AtomicUsize>,
) -> impl Engine<Request = GenerateRequest, Response = GenerateChunk> {
    let calls = Arc::clone(calls);
    engine_fn(move |ctx: Context, request: GenerateRequest| {
        calls.fetch_add(1, Ordering::Relaxed);
        let (last, left) = (*request.token_ids.last().unwrap(), request.sampling.max_tokens);
        let prompt_tokens = u32::try_from(request.token_ids.len()).unwrap();
        async move {
            let tokens = stream::iter(1..=left).then(move |n| async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                Ok(GenerateChunk { token_ids: vec![last + n], ..Default::default() })
            });
            let usage = Usage {
                prompt_tokens,
                cached_tokens: Some(0),
                completion_tokens: left,
                ..Usage::default()
            };
            let finish = Some(FinishReason::Length);
            let end = GenerateChunk { finish, usage: Some(usage), ..Default::default() };
            Ok(ResponseStream::new(&ctx, tokens.chain(stream::iter([Ok(end)]))))
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_token_is_lost_or_said_twice_when_instances_leave_in_mid_stream() {
    let (discovery, calls) = (Arc::default(), Arc::default());
    let caller = runtime(&discovery, false).await;
    let mut servers = Vec::new();
    for _ in 0..4 {
        let server = runtime(&discovery, true).await;
        let serving = endpoint(&server).serve(counting(&calls)).await.unwrap();
        servers.push((server, serving));
    }
    let client: Client<_, _> = endpoint(&caller).client().await.unwrap();
    let migrate = Migrate::new(client, MigratePolicy::default());

    let delivered = watch::Sender::new(0u32);
    let read = async |index: u32| {
        let sampling = Sampling { max_tokens: TOKENS, ..Sampling::default() };
        let (model, prompt) = (CacheNamespace::model("m"), vec![7, index * 1000]);
        let request = GenerateRequest::new(model, BlockSize::DEFAULT, prompt, sampling);
        let mut answer = migrate.generate(Context::new(), request).await.unwrap();
        let (mut tokens, mut end) = (Vec::new(), None);
        while let Some(chunk) = answer.next().await {
            let chunk = chunk.unwrap();
            assert_eq!(end, None, "nothing follows the end");
            end = chunk.finish.zip(chunk.usage);
            delivered.send_modify(|count| *count += u32::try_from(chunk.token_ids.len()).unwrap());
            tokens.extend(chunk.token_ids);
        }
        let expected: Vec<_> = (1..=TOKENS).map(|n| index * 1000 + n).collect();
        assert_eq!(tokens, expected);
        let usage = Usage {
            prompt_tokens: 2,
            cached_tokens: Some(0),
            completion_tokens: TOKENS,
            ..Usage::default()
        };
        assert_eq!(end, Some((FinishReason::Length, usage)));
    };
    let ended = AtomicU32::new(0);
    let reading = stream::iter(0..STREAMS).for_each_concurrent(None, async |index| {
        read(index).await;
        ended.fetch_add(1, Ordering::Relaxed);
    });
    // Three of the four leave, one after the other, with answers under way.
    let leaving = async {
        for part in 1..=3 {
            let count = STREAMS * TOKENS * part / 4;
            delivered.subscribe().wait_for(|delivered| *delivered >= count).await.unwrap();
            let (server, serving) = servers.remove(0);
            drop(serving);
            server.shutdown(Duration::from_secs(20)).await.unwrap();
        }
    };
    tokio::join!(reading, leaving);
    assert_eq!(ended.into_inner(), STREAMS);
    assert!(calls.load(Ordering::Relaxed) > STREAMS as usize, "some were moved");
    drop(migrate);
    for runtime in servers.into_iter().map(|(server, _)| server).chain([caller]) {
        runtime.shutdown(Duration::from_secs(20)).await.unwrap();
    }
}
