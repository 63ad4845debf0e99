use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dynamo_core::time::SystemClock;
use dynamo_core::{Endpoint, Error, ErrorKind, Runtime, Serving, engine_fn};
use futures::future::join_all;

use super::*;
use crate::fixtures;
use crate::queue::{BusyThresholds, Watermarks};
use crate::router::RouterConfig;

type Generate = Endpoint<GenerateRequest, u64>;

fn endpoint() -> Generate {
    let component = Runtime::in_process().namespace("n").unwrap().component("c").unwrap();
    component.endpoint("generate").unwrap()
}

fn request(first: u32) -> GenerateRequest {
    fixtures::request(first..first + 64)
}

async fn pool(endpoint: &Generate) -> QueuedPool<u64> {
    let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
    let marks = Watermarks::new(0.0, 1.0).unwrap();
    let busy = BusyThresholds::never().with_prefill_tokens(marks);
    QueuedPool::new(
        endpoint.client().await.unwrap(),
        router,
        QueueConfig::default().with_busy(busy),
    )
}

/// Serves a worker that answers with its number, twice, and notes how many prompts it has at once.
async fn serve(endpoint: &Generate, number: u64, most: &Arc<AtomicUsize>) -> Serving {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::clone(most));
    let engine = engine_fn(move |ctx: Context, _: GenerateRequest| {
        let (now, most) = (Arc::clone(&now), Arc::clone(&most));
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
            now.fetch_sub(1, Ordering::Relaxed);
            Ok(ResponseStream::from_items(&ctx, [number, number]))
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
        async move { pool.generate(Context::new(), request(n)).await?.collect().await }
    });
    let answers: Vec<Vec<u64>> = join_all(answers).await.into_iter().map(Result::unwrap).collect();
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
        assert_eq!(stream.collect().await.unwrap(), [2, 2]);
    }
    drop(worker);
    let error = pool.generate(Context::new(), request(1)).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Overloaded | ErrorKind::Unavailable), "{error}");
    assert_eq!(pool.queue().router().stats().bookings, 0);
}
