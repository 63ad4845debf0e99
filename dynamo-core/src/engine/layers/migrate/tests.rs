use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::engine::engine_fn;
use crate::protocol::{
    BlockSize, CacheNamespace, FinishReason, GenerateChunk, GenerateRequest, HandoffReport,
    HandoffTicket, InstanceId, PromptBlocks, Sampling, Stage, TokenId, Usage,
};

/// What befalls one part of an answer.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// It is refused: nothing starts.
    Refused,
    /// It starts, and is lost behind so many chunks.
    Lost(usize, ErrorKind),
    /// It starts, tells everything, and is lost before its end is told.
    LostAtTheEnd,
}

/// What the model says next: it depends on all tokens so far, as a greedy model's words do.
fn next_token(tokens: &[TokenId]) -> TokenId {
    let digest = tokens.iter().fold(7u64, |digest, token| {
        (digest ^ u64::from(*token)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    });
    u32::try_from(digest % 40).unwrap()
}

/// All chunks that a worker makes of a request; several tokens in some of them.
fn chunks(request: &GenerateRequest, cached_tokens: impl Into<Option<u32>>) -> Vec<GenerateChunk> {
    let mut tokens = request.token_ids.to_vec();
    let mut chunks = Vec::new();
    let mut generated = 0;
    let mut finish = FinishReason::Length;
    while generated < request.sampling.max_tokens {
        let token = next_token(&tokens);
        if request.sampling.stop_token_ids.contains(&token) {
            finish = FinishReason::Stop;
            break;
        }
        tokens.push(token);
        generated += 1;
        match chunks.last_mut() {
            Some(GenerateChunk { token_ids, .. }) if token.is_multiple_of(3) => {
                token_ids.push(token)
            }
            _ => chunks.push(GenerateChunk { token_ids: vec![token], ..Default::default() }),
        }
    }
    let prompt_tokens = u32::try_from(request.token_ids.len()).unwrap();
    let usage = Some(Usage {
        prompt_tokens,
        cached_tokens: cached_tokens.into(),
        completion_tokens: generated,
        ..Usage::default()
    });
    chunks.push(GenerateChunk { finish: Some(finish), usage, ..Default::default() });
    chunks
}

/// Workers on whom the fates come in order, and the requests they were sent; the rest goes well.
fn workers(
    fates: Vec<Fate>,
) -> (
    Arc<Mutex<Vec<GenerateRequest>>>,
    impl Engine<Request = GenerateRequest, Response = GenerateChunk>,
) {
    let seen = Arc::<Mutex<Vec<GenerateRequest>>>::default();
    let noted = Arc::clone(&seen);
    let fates = Mutex::new(fates.into_iter());
    let engine = engine_fn(move |ctx: Context, request: GenerateRequest| {
        let instance = noted.lock().unwrap().len() as u64;
        assert_eq!(ctx.tried().len() as u64, instance, "the parts know of each other");
        ctx.note_tried(InstanceId(instance));
        let mut items: Vec<_> = chunks(&request, 4).into_iter().map(Ok).collect();
        noted.lock().unwrap().push(request);
        let lost = |kind| Err(Error::new(kind, "worker lost"));
        let started = match fates.lock().unwrap().next() {
            Some(Fate::Refused) => Err(Error::new(ErrorKind::Overloaded, "full").unprocessed()),
            Some(Fate::Lost(after, kind)) => {
                items.truncate(after.min(items.len() - 1));
                items.push(lost(kind));
                Ok(())
            }
            Some(Fate::LostAtTheEnd) => {
                items.push(lost(ErrorKind::Unavailable));
                Ok(())
            }
            None => Ok(()),
        };
        let stream = started.map(|()| ResponseStream::new(&ctx, stream::iter(items)));
        async move { stream }
    });
    (seen, engine)
}

fn request(prompt: Vec<TokenId>, max_tokens: u32) -> GenerateRequest {
    let sampling = Sampling { max_tokens, stop_token_ids: vec![5], ..Sampling::default() };
    let block_size = BlockSize::new(4).unwrap();
    GenerateRequest::new(CacheNamespace::model("m"), block_size, prompt, sampling)
}

/// Returns the tokens in order and the last chunk.
fn read(chunks: &[GenerateChunk]) -> (Vec<TokenId>, GenerateChunk) {
    let tokens = chunks.iter().flat_map(|chunk| chunk.token_ids.iter().copied()).collect();
    let last = GenerateChunk { token_ids: Vec::new(), ..chunks.last().unwrap().clone() };
    assert!(chunks.iter().rev().skip(1).all(|chunk| chunk.finish.is_none()), "one end");
    (tokens, last)
}

async fn ask(
    engine: impl Engine<Request = GenerateRequest, Response = GenerateChunk>,
    policy: MigratePolicy,
    request: GenerateRequest,
) -> Result<Vec<GenerateChunk>> {
    Migrate::new(engine, policy).generate(Context::new(), request).await?.collect().await
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        1 => Just(Fate::Refused),
        4 => (0usize..12).prop_map(|after| Fate::Lost(after, ErrorKind::Unavailable)),
        1 => Just(Fate::LostAtTheEnd),
    ]
}

proptest! {
    #[test]
    fn wherever_workers_are_lost_the_answer_is_that_of_one_that_was_not(
        prompt in prop::collection::vec(0u32..40, 4..40),
        max_tokens in 1u32..40,
        fates in prop::collection::vec(fate(), 0..12),
    ) {
        let request = request(prompt, max_tokens);
        let whole = read(&chunks(&request, 4));
        let (seen, engine) = workers(fates);
        let policy = MigratePolicy::default().with_attempts_max(99).with_moves_max(99);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let answer = runtime.block_on(ask(engine, policy, request.clone())).unwrap();
        let (tokens, mut last) = read(&answer);
        let usage = last.usage.as_mut().unwrap();
        // What the cache held is told with the end: where that alone was lost, nobody knows.
        if last.finish == Some(FinishReason::Length) && usage.cached_tokens.is_none() {
            usage.cached_tokens = Some(4);
        }
        prop_assert_eq!((&tokens, &last), (&whole.0, &whole.1));
        // Each part was asked for exactly what was missing, with the hashes of what it was sent.
        for part in &*seen.lock().unwrap() {
            let sent = part.token_ids.len() - request.token_ids.len();
            let so_far = [&request.token_ids[..], &whole.0[..sent]].concat();
            prop_assert_eq!(&part.token_ids[..], &so_far[..]);
            prop_assert_eq!(part.sampling.max_tokens as usize, max_tokens as usize - sent);
            let blocks = PromptBlocks::new(&part.namespace, part.blocks.block_size(), &so_far);
            prop_assert_eq!(&*part.blocks, &blocks);
            let sampling = Sampling { max_tokens, ..part.sampling.clone() };
            prop_assert_eq!(&sampling, &request.sampling);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn attempts_without_an_item_have_an_end_and_each_item_starts_the_count_again() {
    let lost = |after| Fate::Lost(after, ErrorKind::Unavailable);
    let (seen, engine) = workers(vec![lost(0); 9]);
    let error = ask(engine, MigratePolicy::default(), request(vec![1], 30)).await.unwrap_err();
    assert_eq!((error.kind(), seen.lock().unwrap().len()), (ErrorKind::Unavailable, 3));

    // Two in vain between any two items: never three.
    let fates = [lost(1), lost(0), Fate::Refused].repeat(4);
    let (seen, engine) = workers(fates);
    ask(engine, MigratePolicy::default(), request(vec![1], 30)).await.unwrap();
    assert_eq!(seen.lock().unwrap().len(), 13);

    let (seen, engine) = workers(vec![lost(1); 99]);
    let policy = MigratePolicy::default().with_moves_max(5);
    ask(engine, policy, request(vec![1], 30)).await.unwrap_err();
    assert_eq!(seen.lock().unwrap().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn only_what_another_instance_could_do_better_is_moved() {
    for (kind, parts) in [
        (ErrorKind::Cancelled, 1),
        (ErrorKind::DeadlineExceeded, 1),
        (ErrorKind::InvalidArgument, 1),
        (ErrorKind::Overloaded, 1),
        // Once: it may have been the instance. Not twice: it may be the request.
        (ErrorKind::Internal, 2),
    ] {
        let (seen, engine) = workers(vec![Fate::Lost(1, kind); 9]);
        let error = ask(engine, MigratePolicy::default(), request(vec![1], 30)).await.unwrap_err();
        assert_eq!((error.kind(), seen.lock().unwrap().len()), (kind, parts));
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_whose_end_alone_was_lost_takes_no_other_call() {
    // All tokens, but not the chunk that ends them.
    let asked = request(vec![1, 2, 3, 4, 6], 3);
    let whole = chunks(&asked, None);
    let tokens = whole.len() - 1;
    let (seen, engine) = workers(vec![Fate::Lost(tokens, ErrorKind::Unavailable)]);
    let answer = ask(engine, MigratePolicy::default(), asked.clone()).await.unwrap();
    assert_eq!((answer, seen.lock().unwrap().len()), (whole, 1));
    // That chunk too, but not that it was the end.
    let (seen, engine) = workers(vec![Fate::LostAtTheEnd]);
    let answer = ask(engine, MigratePolicy::default(), asked.clone()).await.unwrap();
    assert_eq!((answer, seen.lock().unwrap().len()), (chunks(&asked, 4), 1));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_and_the_kill_hold_over_all_parts() {
    let (seen, engine) = workers(vec![Fate::Lost(0, ErrorKind::Unavailable); 99]);
    let policy = MigratePolicy::default().with_attempts_max(99).with_moves_max(99);
    let ctx = Context::new().with_timeout(Duration::from_secs(3));
    let stream = Migrate::new(engine, policy).generate(ctx, request(vec![1], 30)).await.unwrap();
    assert_eq!(stream.collect().await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!((5..50).contains(&seen.lock().unwrap().len()));

    let (seen, engine) = workers(vec![Fate::Lost(1, ErrorKind::Unavailable); 99]);
    let ctx = Context::new();
    let migrate = Migrate::new(engine, policy);
    let mut stream = migrate.generate(ctx.clone(), request(vec![1], 30)).await.unwrap();
    assert!(stream.next().await.unwrap().is_ok());
    ctx.kill();
    assert_eq!(stream.next().await.unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(seen.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_parts_of_a_hand_off_are_passed_through() {
    let decode = Stage::Decode { ticket: HandoffTicket::new(vec![1]), first_token: 1 };
    for stage in [Stage::Prefill, decode] {
        let lost = Fate::Lost(1, ErrorKind::Unavailable);
        let seen = Arc::<Mutex<Vec<GenerateRequest>>>::default();
        let (_, engine) = workers(vec![lost]);
        let noted = Arc::clone(&seen);
        let engine = Arc::new(engine);
        let engine = engine_fn(move |ctx: Context, request: GenerateRequest| {
            noted.lock().unwrap().push(request.clone());
            let engine = Arc::clone(&engine);
            async move { engine.generate(ctx, request).await }
        });
        let asked = request(vec![1], 30).with_stage(stage);
        ask(engine, MigratePolicy::default(), asked.clone()).await.unwrap_err();
        assert_eq!(*seen.lock().unwrap(), [asked]);
    }
}

#[test]
fn counts_are_those_of_the_callers_request_and_a_hand_off_is_reported_once() {
    let asked = request(vec![1, 2, 3, 4, 5, 6], 9);
    let mut progress = asked.progress().unwrap();
    let handoff = Some(HandoffReport { blocks_pulled: 1, ..Default::default() });
    let mut chunk = GenerateChunk { token_ids: vec![7, 8, 9], handoff, ..Default::default() };
    let first = chunk.clone();
    progress.deliver(&mut chunk);
    assert_eq!(chunk, first);
    let Rest::Ask(rest) = progress.rest() else { unreachable!("six are left") };
    assert_eq!((rest.token_ids.len(), rest.sampling.max_tokens), (9, 6));

    // The other worker found more in its cache than the caller's prompt has.
    let usage = Some(Usage {
        prompt_tokens: 9,
        cached_tokens: Some(8),
        completion_tokens: 2,
        ..Usage::default()
    });
    let (token_ids, finish) = (vec![1, 2], Some(FinishReason::Stop));
    let mut chunk = GenerateChunk { token_ids, finish, usage, handoff, ..Default::default() };
    progress.deliver(&mut chunk);
    let expected = Usage {
        prompt_tokens: 6,
        cached_tokens: Some(6),
        completion_tokens: 5,
        ..Usage::default()
    };
    assert_eq!((chunk.usage, chunk.handoff), (Some(expected), None));
    assert_eq!(progress.rest(), Rest::Nothing(None));
}
