//! Two runtimes that know nothing of each other: one serves, one calls. etcd tells who is there,
//! NATS carries the requests; that is configuration, and the graph is the one of a single process.
//!
//! Needs etcd and nats-server (on Debian `apt-get install etcd-server nats-server`); starts both on
//! loopback and ends them. Run it with
//! `cargo run -p dynamo-examples --features processes --example etcd_and_nats`.
#![expect(clippy::print_stdout, reason = "an example talks to a person")]

use std::time::Duration;

use anyhow::Result;
use dynamo_core::{
    Client, Context, Endpoint, Engine, ErrorKind, ResponseStream, Runtime, RuntimeConfig, engine_fn,
};
use dynamo_examples::servers::Servers;
use futures::stream;

#[tokio::main]
async fn main() -> Result<()> {
    let servers = Servers::start()?;
    println!("etcd at {}, NATS at {}", servers.etcd(), servers.nats());
    let outcome = graph(&servers).await;
    servers.end().await?;
    outcome
}

async fn graph(servers: &Servers) -> Result<()> {
    // In two processes each would read its own with `RuntimeConfig::from_env`, or from a file.
    let worker = config(servers)?.build().await?;
    let front_end = config(servers)?.build().await?;

    let serving = endpoint(&worker)?.serve(speaker()).await?;
    println!("serving {} at {}", serving.instance(), serving.instance().address);

    let client: Client<String, String> = endpoint(&front_end)?.client().await?;
    let text = "a token crosses nats as soon as it is there".to_owned();
    let mut answer = client.generate(Context::new(), text.clone()).await?;
    print!("answer:");
    let mut words = Vec::new();
    while let Some(word) = answer.next().await {
        words.push(word?);
        print!(" {}", words[words.len() - 1]);
    }
    println!("  ({} items)", words.len());
    anyhow::ensure!(words.join(" ") == text, "another answer was expected");

    // Leaving is told by etcd: the next request finds nobody, at once.
    let report = serving.drain(PATIENCE).await;
    println!("drained: {} finished, {} killed", report.finished, report.killed);
    let gone = async {
        loop {
            match client.generate(Context::new(), text.clone()).await {
                Err(error) if error.kind() == ErrorKind::Unavailable => break error,
                _ => tokio::task::yield_now().await,
            }
        }
    };
    println!("afterwards: {}", tokio::time::timeout(PATIENCE, gone).await?);
    drop(client);
    for runtime in [front_end, worker] {
        runtime.shutdown(PATIENCE).await?;
    }
    Ok(())
}

/// The variables that a process of this graph would be started with.
fn config(servers: &Servers) -> Result<RuntimeConfig> {
    let variables = [
        ("DYNAMO_RUNTIME_DISCOVERY__ETCD__ENDPOINTS", servers.etcd()),
        ("DYNAMO_RUNTIME_REQUEST_PLANE__NATS__ACCESS__URL", servers.nats()),
        ("DYNAMO_RUNTIME_EVENT_PLANE__NATS__ACCESS__URL", servers.nats()),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Ok(RuntimeConfig::from_vars(variables)?)
}

fn endpoint(runtime: &Runtime) -> Result<Endpoint<String, String>> {
    Ok(runtime.namespace("demo")?.component("speaker")?.endpoint("speak")?)
}

/// Says the words of a text, one every 50 ms.
fn speaker() -> impl Engine<Request = String, Response = String> {
    engine_fn(|ctx: Context, text: String| async move {
        let words: Vec<_> = text.split(' ').map(str::to_owned).collect();
        let words = stream::unfold(words.into_iter(), |mut words| async move {
            let word = words.next()?;
            tokio::time::sleep(Duration::from_millis(50)).await;
            Some((Ok(word), words))
        });
        Ok(ResponseStream::new(&ctx, words))
    })
}

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(20);
