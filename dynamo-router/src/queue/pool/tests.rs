use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dynamo_core::engine::layers::{Migrate, MigratePolicy};
use dynamo_core::time::SystemClock;
use dynamo_core::{Endpoint, Error, Runtime, Serving, engine_fn};
use futures::future::join_all;
use futures::{poll, stream};

use super::*;
use crate::events::Diagnosis;
use crate::fixtures;
use crate::queue::{BusyThresholds, Watermarks};
use crate::router::RouterConfig;

type Generate = Endpoint<GenerateRequest, GenerateChunk>;

fn endpoint() -> Generate {
    let component = Runtime::in_process().namespace("n").unwrap().component("c").unwrap();
    component.endpoint("generate").unwrap()
}

fn request(first: u32) -> GenerateRequest {
    fixtures::request(first..first + 64)
}

/// A pool in which nobody leaves for want of patience, nor looks by itself.
async fn pool(endpoint: &Generate) -> QueuedPool {
    let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
    let marks = Watermarks::new(0.0, 1.0).unwrap();
    let busy = BusyThresholds::never().with_prefill_tokens(marks);
    let never = Duration::from_secs(3600);
    let config = QueueConfig::default().with_busy(busy).with_wait_max(never).with_look_every(never);
    QueuedPool::new(endpoint.client().await.unwrap(), router, config)
}

fn chunk(token: u32) -> GenerateChunk {
    GenerateChunk { token_ids: vec![token], ..GenerateChunk::default() }
}

/// The last of an answer, whose worker had `cached_tokens` of a prompt of 64.
fn last(cached_tokens: u32) -> GenerateChunk {
    let usage =
        Some(Usage { prompt_tokens: 64, cached_tokens: Some(cached_tokens), ..Usage::default() });
    GenerateChunk { finish: Some(FinishReason::Stop), usage, ..GenerateChunk::default() }
}

async fn tokens(answer: ResponseStream<GenerateChunk>) -> Vec<u32> {
    let chunks = answer.collect().await.unwrap();
    chunks.into_iter().flat_map(|chunk| chunk.token_ids).collect()
}

/// Serves a worker that answers with its number, twice, and notes how many prompts it has at once.
async fn serve(endpoint: &Generate, number: u32, most: &Arc<AtomicUsize>) -> Serving {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::clone(most));
    let engine = engine_fn(move |ctx: Context, _: GenerateRequest| {
        let (now, most) = (Arc::clone(&now), Arc::clone(&most));
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
            now.fetch_sub(1, Ordering::Relaxed);
            Ok(ResponseStream::from_items(&ctx, [chunk(number), chunk(number), last(0)]))
        }
    });
    endpoint.serve(engine).await.unwrap()
}

#[tokio::test]
async fn requests_over_a_real_client_wait_for_a_worker_that_is_not_busy() {
    let endpoint = endpoint();
    let most = Arc::default();
    let _workers = [serve(&endpoint, 1, &most).await, serve(&endpoint, 2, &most).await];
    let pool = pool(&endpoint).await;
    let answers = (0..40).map(|n| {
        let pool = pool.clone();
        async move { tokens(pool.generate(Context::new(), request(n)).await.unwrap()).await }
    });
    let answers: Vec<Vec<u32>> = join_all(answers).await;
    assert!(answers.iter().all(|answer| answer.len() == 2 && answer[0] == answer[1]));
    assert_eq!(answers.iter().flatten().copied().collect::<BTreeSet<_>>(), [1, 2].into());
    assert_eq!(most.load(Ordering::Relaxed), 1, "one prompt at once, as the marks say");
    let stats = pool.queue().stats();
    assert_eq!((stats.popped_total, stats.waiting), (38, 0));
    assert_eq!(pool.queue().router().stats().bookings, 0);
    let (stream, other) = (pool.generate(Context::new(), request(1)), pool.clone());
    drop(stream.await.unwrap());
    assert_eq!(other.queue().router().stats().bookings, 0, "the booking lives in the stream");
}

#[tokio::test]
async fn what_was_not_started_goes_to_another_worker_and_what_has_failed_does_not() {
    let endpoint = endpoint();
    let most = Arc::default();
    let refuses = engine_fn(|_: Context, _: GenerateRequest| async {
        Err(Error::new(ErrorKind::Overloaded, "no room").unprocessed())
    });
    let _refuses = endpoint.serve(refuses).await.unwrap();
    let worker = serve(&endpoint, 2, &most).await;
    let pool = pool(&endpoint).await;
    for n in 0..8 {
        let stream = pool.generate(Context::new(), request(n)).await.unwrap();
        assert_eq!(tokens(stream).await, [2, 2]);
    }
    drop(worker);
    let error = pool.generate(Context::new(), request(1000)).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Overloaded | ErrorKind::Unavailable), "{error}");
    let router = pool.queue().router();
    assert_eq!(router.stats().bookings, 0);
    let again = router.route(&request(1000), &Constraints::default()).unwrap();
    assert_eq!(again.cached_tokens, 0, "what was refused is not there");
}

#[tokio::test]
async fn the_rest_of_a_lost_answer_goes_to_another_worker_though_the_first_has_its_prompt() {
    let endpoint = endpoint();
    let calls = Arc::<AtomicUsize>::default();
    let serve = |number| {
        let calls = Arc::clone(&calls);
        let engine = engine_fn(move |ctx: Context, _: GenerateRequest| {
            let is_lost = calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
            async move {
                // Not an instance that is left out for it: nobody knows whose fault it is.
                let end = if is_lost { Err(Error::internal("lost")) } else { Ok(last(0)) };
                Ok(ResponseStream::new(&ctx, stream::iter([Ok(chunk(number)), end])))
            }
        });
        endpoint.serve(engine)
    };
    let workers = [serve(1).await.unwrap(), serve(2).await.unwrap()];
    let pool = pool(&endpoint).await;
    let engine = Migrate::new(pool.clone(), MigratePolicy::default());
    for n in 0..8 {
        let answer = tokens(engine.generate(Context::new(), request(n)).await.unwrap()).await;
        assert!(matches!(answer[..], [1, 2] | [2, 1]), "{answer:?}");
    }
    // With nobody else, who lost it is better than nobody.
    let ctx = Context::new().with_attempts();
    workers.iter().for_each(|worker| ctx.note_tried(worker.instance().id));
    let begun = pool.begin(ctx, request(0)).await.unwrap();
    let chosen = begun.chosen.unwrap().chosen.worker.instance;
    assert!(workers.iter().any(|worker| worker.instance().id == chosen));
}

/// Serves a worker that never says anything.
async fn serve_silent(endpoint: &Generate) -> Serving {
    let silent = engine_fn(|ctx: Context, _: GenerateRequest| async move {
        Ok(ResponseStream::new(&ctx, stream::pending()))
    });
    endpoint.serve(silent).await.unwrap()
}

#[tokio::test]
async fn a_worker_that_joins_gets_what_waits() {
    let endpoint = endpoint();
    let _silent = serve_silent(&endpoint).await;
    let pool = pool(&endpoint).await;
    let _busy = pool.generate(Context::new(), request(1)).await.unwrap();
    let mut waits = Box::pin(pool.generate(Context::new(), request(2)));
    assert!(poll!(&mut waits).is_pending());
    let _joins = serve(&endpoint, 7, &Arc::default()).await;
    let answer = tokio::time::timeout(Duration::from_secs(10), waits).await.expect("it is seen");
    assert_eq!(tokens(answer.unwrap()).await, [7, 7]);
}

#[tokio::test]
async fn who_is_to_end_before_it_begins_is_answered_without_a_token_and_who_is_killed_is_not() {
    let endpoint = endpoint();
    let _silent = serve_silent(&endpoint).await;
    let pool = pool(&endpoint).await;
    let _busy = pool.generate(Context::new(), request(1)).await.unwrap();
    let (stopped, killed) = (Context::new(), Context::new());
    let mut of_stopped = Box::pin(pool.generate(stopped.clone(), request(2)));
    let mut of_killed = Box::pin(pool.generate(killed.clone(), request(3)));
    assert!(poll!(&mut of_stopped).is_pending() && poll!(&mut of_killed).is_pending());
    stopped.stop();
    killed.kill();
    let answer = of_stopped.await.unwrap().collect().await.unwrap();
    assert_eq!((answer.len(), answer[0].finish), (1, Some(FinishReason::Length)));
    assert_eq!(answer[0].usage.unwrap().prompt_tokens, 64);
    assert_eq!(of_killed.await.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(pool.queue().stats().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn the_router_learns_speed_and_what_is_wrong_with_the_cache_from_answers() {
    let endpoint = endpoint();
    // It caches what no event has told of.
    let engine = engine_fn(|ctx: Context, _: GenerateRequest| async move {
        Ok(ResponseStream::from_items(&ctx, [chunk(1), chunk(2), last(48)]))
    });
    let serving = endpoint.serve(engine).await.unwrap();
    let worker = WorkerId::new(serving.instance().id);
    let pool = pool(&endpoint).await;
    for n in 0..100 {
        let stream = pool.generate(Context::new(), request(n * 100)).await.unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(tokens(stream).await, [1, 2]);
    }
    let router = pool.queue().router();
    assert!(router.prefill_s_per_token(worker).is_some_and(|s_per_token| s_per_token > 0.0));
    assert_eq!(router.diagnoses(), [(worker, Diagnosis::NoEvents)]);
}
