//! Layers around an engine that forgets to answer, refuses, and loses answers in mid-stream; and a
//! layer of one's own.
//!
//! Run it with `cargo run -p dynamo-examples --example middleware`.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dynamo_core::engine::layers::{
    Concurrency, Hedge, HedgeDelay, HedgePolicy, Migrate, MigratePolicy, Mirror, MirrorPolicy,
    Split, Timeout, TimeoutPolicy,
};
use dynamo_core::protocol::{
    BlockSize, CacheNamespace, GenerateChunk, GenerateRequest, Sampling, TokenId,
};
use dynamo_core::{Context, Engine, Error, ErrorKind, ResponseStream, Result, engine_fn};
use futures::stream;

type Items = Vec<Result<GenerateChunk>>;

/// Says each token plus one; every third request hangs at first, every second one is lost half-way.
fn flaky() -> impl Engine<Request = GenerateRequest, Response = GenerateChunk> {
    let calls = AtomicU32::new(0);
    engine_fn(move |ctx: Context, request: GenerateRequest| {
        let call = calls.fetch_add(1, Ordering::Relaxed);
        async move {
            if call % 3 == 2 {
                tokio::time::sleep(Duration::from_secs(600)).await;
            }
            let last = request.token_ids.last().copied().unwrap_or_default();
            let left = request.sampling.max_tokens;
            let say =
                |n: TokenId| Ok(GenerateChunk { token_ids: vec![last + n], ..Default::default() });
            let mut items: Items = (1..=left).map(say).collect();
            if call.is_multiple_of(2) && left > 1 {
                items.truncate(items.len() / 2);
                items.push(Err(Error::new(ErrorKind::Unavailable, "instance went away")));
            }
            Ok(ResponseStream::new(&ctx, stream::iter(items)))
        }
    })
}

/// A layer of one's own is an engine that holds an engine.
struct Timed<E>(E);

impl<E: Engine> Engine for Timed<E> {
    type Request = E::Request;
    type Response = E::Response;

    #[expect(clippy::print_stdout, reason = "an example talks to a person")]
    #[expect(clippy::disallowed_methods, reason = "the wall clock is what a person sees")]
    async fn generate(
        &self,
        ctx: Context,
        request: E::Request,
    ) -> Result<ResponseStream<E::Response>> {
        let (start, id) = (Instant::now(), ctx.id().clone());
        let stream = self.0.generate(ctx, request).await?;
        // What is put into the stream is dropped when the stream ends.
        Ok(stream.with_guard(OnDrop(move || println!("{id} took {:?}", start.elapsed()))))
    }
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example talks to a person")]
async fn main() -> Result<()> {
    // From the inside out: ask twice if the first token is late, go on elsewhere if an answer is
    // lost, four at once and four that wait, a second at most for a token.
    let delay = HedgeDelay::Fixed(Duration::from_millis(20));
    let engine = Hedge::new(flaky(), HedgePolicy::default().with_delay(delay).with_budget(100));
    let engine = Migrate::new(engine, MigratePolicy::default());
    let engine = Concurrency::new(engine, 4, 4);
    let second = Duration::from_secs(1);
    let policy = TimeoutPolicy::default().with_first_item(second).with_between_items(second);
    let stable = Timed(Timeout::new(engine, policy));

    // A tenth of the users is answered by the canary; a copy of each request goes to a shadow.
    let canary = engine_fn(|ctx: Context, _: GenerateRequest| async move {
        let token_ids = vec![0];
        Ok(ResponseStream::from_items(&ctx, [GenerateChunk { token_ids, ..Default::default() }]))
    });
    let split = Split::new()
        .with_arm("stable", 90, stable)?
        .with_arm("canary", 10, canary)?
        .with_metadata_key("user");
    let policy = MirrorPolicy::default().with_share_thousandths(1000);
    let engine = Mirror::new(split, flaky(), policy);

    for user in ["ada", "bob", "cleo", "dan", "eve", "fay", "gus", "hal"] {
        let ctx = Context::with_id(user.into()).with_metadata("user", user);
        let sampling = Sampling { max_tokens: 8, ..Sampling::default() };
        let model = CacheNamespace::model("counting");
        let request = GenerateRequest::new(model, BlockSize::DEFAULT, vec![100], sampling);
        let chunks = engine.generate(ctx, request).await?.collect().await?;
        let tokens: Vec<_> = chunks.into_iter().flat_map(|chunk| chunk.token_ids).collect();
        println!("{user} got {tokens:?}");
    }
    println!("copies that hang: {}", engine.running());
    engine.shutdown().await;
    println!("after shutdown:   {}", engine.running());
    Ok(())
}
