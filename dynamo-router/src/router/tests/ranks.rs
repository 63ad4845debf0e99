//! The rank that is chosen is the one that works.

use std::collections::BTreeMap;

use dynamo_core::protocol::{FinishReason, GenerateChunk, HandoffTicket, Stage};
use dynamo_core::time::SystemClock;
use dynamo_core::{
    Component, Endpoint, Engine, Error, ResponseStream, Runtime, ServeOptions, Serving, engine_fn,
};
use futures::stream::{self, StreamExt};

use super::*;
use crate::disagg::{DisaggConfig, Pool, PrefillDecode, Split};
use crate::queue::{QueueConfig, QueuedPool};
use crate::workers::RANKS_LABEL;

const RANKS: u32 = 4;

fn component(name: &str) -> Component {
    let namespace = Runtime::in_process().namespace("n").unwrap();
    namespace.component(name).unwrap()
}

/// Serves an instance of four ranks.
async fn serve(
    endpoint: &Endpoint<GenerateRequest, GenerateChunk>,
    engine: impl Engine<Request = GenerateRequest, Response = GenerateChunk>,
) -> Serving {
    let options = ServeOptions::default().with_label(RANKS_LABEL, RANKS.to_string());
    endpoint.serve_with(engine, options).await.unwrap()
}

fn rank_of(ctx: &Context) -> Result<u32> {
    let rank = ctx.rank().filter(|rank| *rank < RANKS);
    rank.ok_or_else(|| Error::invalid(format!("no rank {:?}", ctx.rank())))
}

#[tokio::test]
async fn an_engine_sees_exactly_the_ranks_that_were_chosen() {
    let endpoint = component("c").endpoint("e").unwrap();
    let engine = engine_fn(|ctx: Context, _: GenerateRequest| async move {
        let token_ids = vec![rank_of(&ctx)?];
        Ok(ResponseStream::from_items(&ctx, [GenerateChunk { token_ids, ..Default::default() }]))
    });
    let serving = serve(&endpoint, engine).await;
    let client = endpoint.client().await.unwrap();
    let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
    let queued = QueuedPool::new(client.clone(), router.clone(), QueueConfig::default());
    let picked = client.with_picker(router.clone());

    let (mut streams, mut seen) = (Vec::new(), BTreeMap::new());
    for first in (0..16).map(|turn| turn * 64) {
        let request = fixtures::request(first..first + 64);
        let inherited = Context::new().with_rank(RANKS + 1);
        let mut stream = match first % 128 {
            0 => picked.generate(inherited, request).await.unwrap(),
            _ => queued.generate(inherited, request).await.unwrap(),
        };
        let rank = stream.next().await.unwrap().unwrap().token_ids[0];
        *seen.entry(rank).or_insert(0) += 1;
        streams.push(stream);
        for rank in 0..RANKS {
            let booked = router.load(WorkerId { instance: serving.instance().id, rank }).requests;
            assert_eq!(booked, seen.get(&rank).copied().unwrap_or(0), "rank {rank}");
        }
    }
    assert_eq!(seen.len(), RANKS as usize, "{seen:?}");
}

/// A pool of one instance all of whose ranks but `idle` are busy while the decisions are held; notes
/// who was asked for which stage.
async fn pool(
    name: &str,
    idle: u32,
    seen: &Arc<Mutex<Vec<(&'static str, u32)>>>,
) -> (Pool, Serving, Vec<Decision>) {
    let endpoint = component(name).endpoint("e").unwrap();
    let seen = Arc::clone(seen);
    let engine = engine_fn(move |ctx: Context, request: GenerateRequest| {
        let seen = Arc::clone(&seen);
        async move {
            let (stage, ticket, finish) = match request.stage {
                Stage::Prefill => ("prefill", Some(HandoffTicket::new(vec![1])), None),
                _ => ("decode", None, Some(FinishReason::Stop)),
            };
            seen.lock().unwrap().push((stage, rank_of(&ctx)?));
            let chunk =
                GenerateChunk { token_ids: vec![1], ticket, finish, ..GenerateChunk::default() };
            let hold = stream::pending().take(usize::from(finish.is_none()));
            Ok(ResponseStream::new(&ctx, stream::iter([Ok(chunk)]).chain(hold)))
        }
    });
    let serving = serve(&endpoint, engine).await;
    let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
    let client = endpoint.client().await.unwrap();
    router.set_workers(&client.candidates()).unwrap();
    let busy = (0..RANKS).filter(|rank| *rank != idle).map(|rank| {
        let worker = WorkerId { instance: serving.instance().id, rank };
        router.route(&request(50_000), &Constraints::default().with_pinned(worker)).unwrap()
    });
    let busy = busy.collect();
    (Pool::new(client, router), serving, busy)
}

#[tokio::test]
async fn both_stages_of_a_split_request_go_to_their_ranks() {
    let seen = Arc::default();
    let (prefill, _prefilling, _busy) = pool("prefill", 2, &seen).await;
    let (decode, _decoding, _also_busy) = pool("decode", 3, &seen).await;
    let config = DisaggConfig::default().with_split(Split::Always);
    let engine = PrefillDecode::new(prefill, decode).with_config(config);
    let stream = engine.generate(Context::new(), fixtures::request(0..640)).await.unwrap();
    assert_eq!(stream.collect().await.unwrap().len(), 2);
    assert_eq!(*seen.lock().unwrap(), [("prefill", 2), ("decode", 3)]);
}
