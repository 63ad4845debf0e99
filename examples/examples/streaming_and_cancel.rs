//! Four ways to end an answer before it is complete, on an engine that says a word every 50 ms.
//!
//! Run it with `cargo run -p dynamo-examples --example streaming_and_cancel`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dynamo_core::{Client, Context, Engine, ErrorKind, ResponseStream, Result, Runtime};
use futures::stream;

/// Counts aloud, and knows how many of its answers still run.
#[derive(Clone, Default)]
struct Counter {
    running: Arc<AtomicUsize>,
}

/// Lives in the work of one answer.
struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Engine for Counter {
    type Request = u32;
    type Response = String;

    async fn generate(&self, ctx: Context, to: u32) -> Result<ResponseStream<String>> {
        self.running.fetch_add(1, Ordering::Relaxed);
        let running = Running(Arc::clone(&self.running));
        let work = (ctx.clone(), running, 1);
        let items = stream::unfold(work, move |(ctx, running, number)| async move {
            // A stop is a request: whoever answers finishes what it is saying, and ends well.
            if number > to || ctx.is_stopped() {
                return None;
            }
            // A kill or the deadline needs no help: the stream ends, and drops this work.
            tokio::time::sleep(Duration::from_millis(50)).await;
            Some((Ok(format!("word {number}")), (ctx, running, number + 1)))
        });
        Ok(ResponseStream::new(&ctx, items))
    }
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example talks to a person")]
async fn main() -> Result<()> {
    let runtime = Runtime::in_process();
    let endpoint = runtime.namespace("demo")?.component("counter")?.endpoint("count")?;
    let counter = Counter::default();
    let serving = endpoint.serve(counter.clone()).await?;
    let client = endpoint.client().await?;

    println!("left alone:     {}", read(&client, Context::new(), 3, |_, _| ()).await?);

    let stop = |ctx: &Context, words| {
        if words == 2 {
            ctx.stop();
        }
    };
    println!("stop at two:    {}", read(&client, Context::new(), 99, stop).await?);

    let kill = |ctx: &Context, words| {
        if words == 2 {
            ctx.kill();
        }
    };
    println!("kill at two:    {}", read(&client, Context::new(), 99, kill).await?);

    let hurried = Context::new().with_timeout(Duration::from_millis(180));
    println!("180 ms to live: {}", read(&client, hurried, 99, |_, _| ()).await?);

    let mut stream = client.generate(Context::new(), 99).await?;
    let first = stream.next().await.transpose()?;
    drop(stream);
    println!("dropped:        {} and nobody listens any more", first.unwrap_or_default());

    // Whatever ended the answers, nothing works on for nobody.
    let report = serving.drain(Duration::from_secs(5)).await;
    println!(
        "still running:  {}, {} killed",
        counter.running.load(Ordering::Relaxed),
        report.killed
    );
    Ok(())
}

/// Reads an answer to its end and says how it ended; `after` is told after each word.
async fn read(
    client: &Client<u32, String>,
    ctx: Context,
    to: u32,
    after: impl Fn(&Context, usize),
) -> Result<String> {
    let mut stream = client.generate(ctx.clone(), to).await?;
    let mut words = Vec::new();
    loop {
        match stream.next().await {
            Some(Ok(word)) => {
                words.push(word);
                after(&ctx, words.len());
            }
            None => return Ok(format!("{}, complete", words.join(", "))),
            Some(Err(error)) => {
                let what = match error.kind() {
                    ErrorKind::Cancelled => "cancelled",
                    ErrorKind::DeadlineExceeded => "out of time",
                    _ => return Err(error),
                };
                return Ok(format!("{}, {what}", words.join(", ")));
            }
        }
    }
}
