use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::engine::engine_fn;
use crate::error::ErrorKind;
use crate::protocol::InstanceId;

const MILLI: Duration = Duration::from_millis(1);

/// What an instance does with a request: its first item comes after a time, or an error does.
type Script = (u64, Option<fn() -> Error>);

/// The first copy does `first`, the next one what `second` says; each answers with the number of
/// its instance, twice. Also returns the contexts they were given.
fn scripted(
    first: Script,
    second: Script,
) -> (Arc<Mutex<Vec<Context>>>, impl Engine<Request = (), Response = u64>) {
    let seen = Arc::<Mutex<Vec<Context>>>::default();
    let noted = Arc::clone(&seen);
    let engine = engine_fn(move |ctx: Context, (): ()| {
        // As a client does it: one that was not asked yet.
        let instance = ctx.tried().len() as u64;
        ctx.note_tried(InstanceId(instance));
        noted.lock().unwrap().push(ctx.clone());
        let (millis, error) = if instance == 0 { first } else { second };
        async move {
            let items = stream::once(async move {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                error.map_or(Ok(instance), |error| Err(error()))
            });
            Ok(ResponseStream::new(&ctx, items.chain(stream::iter([Ok(instance)]))))
        }
    });
    (seen, engine)
}

/// A second copy after 10 ms, for each request.
fn always() -> HedgePolicy {
    HedgePolicy::default().with_delay(HedgeDelay::Fixed(10 * MILLI)).with_budget(100)
}

#[tokio::test(start_paused = true)]
async fn the_copy_with_the_first_item_answers_and_the_other_is_killed() {
    // (first, second) in ms, who answers, how many were asked
    for (first, second, instance, copies) in [(5, 0, 0, 1), (40, 50, 0, 2), (100, 5, 1, 2)] {
        let (seen, engine) = scripted((first, None), (second, None));
        let hedge = Hedge::new(engine, always());
        let stream = hedge.generate(Context::new(), ()).await.unwrap();
        let killed: Vec<_> = seen.lock().unwrap().iter().map(Context::is_killed).collect();
        let mut expected = vec![false; copies];
        if copies == 2 {
            expected[1 - instance] = true;
        }
        assert_eq!(killed, expected);
        assert_eq!(stream.collect().await.unwrap(), [instance as u64; 2]);
        assert_eq!(hedge.sent(), copies as u64 - 1);
    }
}

#[tokio::test(start_paused = true)]
async fn the_failure_of_one_copy_is_not_the_outcome_while_the_other_runs() {
    let boom: Option<fn() -> Error> = Some(|| Error::internal("boom"));
    let refused: Option<fn() -> Error> =
        Some(|| Error::new(ErrorKind::Overloaded, "full").unprocessed());
    for (first, second, outcome) in [
        ((20, boom), (100, None), Ok(1)),
        ((100, None), (1, boom), Ok(0)),
        // Nobody sent a second one yet.
        ((5, boom), (1, None), Err("boom")),
        ((20, boom), (20, refused), Err("boom")),
        // It must not look as if nothing was started.
        ((20, refused), (20, boom), Err("boom")),
        ((20, refused), (20, refused), Err("full")),
    ] {
        let (_, engine) = scripted(first, second);
        let answer = Hedge::new(engine, always()).generate(Context::new(), ()).await;
        match (answer, outcome) {
            (Ok(stream), Ok(instance)) => assert_eq!(stream.collect().await.unwrap()[0], instance),
            (Err(error), Err(message)) => assert_eq!(error.message(), message),
            (answer, outcome) => unreachable!("{answer:?} instead of {outcome:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn second_copies_are_a_share_of_the_requests() {
    let (seen, engine) = scripted((50, None), (50, None));
    let hedge = Hedge::new(engine, always().with_budget(5));
    for _ in 0..1000 {
        hedge.generate(Context::new(), ()).await.unwrap().collect().await.unwrap();
    }
    assert_eq!((hedge.sent(), seen.lock().unwrap().len()), (50, 1050));
}

#[tokio::test(start_paused = true)]
async fn the_delay_is_learned_from_what_was_seen_last() {
    let calls = Arc::<AtomicU64>::default();
    let scale = Arc::new(AtomicU64::new(1));
    let (counted, scaled) = (Arc::clone(&calls), Arc::clone(&scale));
    // One in ten takes ten times as long.
    let engine = engine_fn(move |ctx: Context, (): ()| {
        let call = counted.fetch_add(1, Ordering::Relaxed);
        let millis = scaled.load(Ordering::Relaxed) * if call % 10 == 9 { 100 } else { 10 };
        async move {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            Ok(ResponseStream::from_items(&ctx, [call]))
        }
    });
    let hedge = Hedge::new(engine, HedgePolicy::default().with_budget(0));
    let ask = async || drop(hedge.generate(Context::new(), ()).await.unwrap());
    for _ in 0..31 {
        ask().await;
        assert_eq!(hedge.delay(), None, "too few to say");
    }
    for _ in 0..300 {
        ask().await;
    }
    assert_eq!(hedge.delay(), Some(100 * MILLI));
    scale.store(7, Ordering::Relaxed);
    for _ in 0..272 {
        ask().await;
    }
    assert_eq!(hedge.delay(), Some(700 * MILLI));
    assert_eq!((hedge.sent(), hedge.state().observed.times.len()), (0, TIMES_MAX));
}

#[tokio::test(start_paused = true)]
async fn a_kill_or_the_deadline_ends_both_copies() {
    let (seen, engine) = scripted((100_000, None), (100_000, None));
    let hedge = Hedge::new(engine, always());
    let ctx = Context::new().with_timeout(50 * MILLI);
    let error = hedge.generate(ctx, ()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert!(seen.lock().unwrap().iter().all(Context::is_killed));
    assert_eq!(seen.lock().unwrap().len(), 2);
}
