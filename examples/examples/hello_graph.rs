//! A graph of one endpoint, served and called in one process.

use dynamo_core::{Context, Engine, ResponseStream, Result, Runtime, engine_fn};

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example talks to a person")]
async fn main() -> Result<()> {
    let runtime = Runtime::in_process();
    let endpoint = runtime.namespace("demo")?.component("counter")?.endpoint("count")?;
    let engine =
        engine_fn(
            |ctx: Context, to: u32| async move { Ok(ResponseStream::from_items(&ctx, 1..=to)) },
        );
    let _serving = endpoint.serve(engine).await?;

    let client = endpoint.client().await?;
    let mut stream = client.generate(Context::new(), 3).await?;
    while let Some(number) = stream.next().await {
        println!("{}", number?);
    }
    Ok(())
}
