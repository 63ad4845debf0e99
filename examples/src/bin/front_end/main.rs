//! The front end of a fleet: OpenAI's API over engines that others wrote, which sidecars have registered.

mod args;

use std::io::Write as _;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use dynamo_examples::front_end::{FrontEnd, Served};
use dynamo_examples::model::HubFolder;
use dynamo_examples::openai::{self, Server};
use dynamo_examples::planes::{self, LOOPBACK};
use dynamo_examples::text::ModelText;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use args::Args;

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse(std::env::args().skip(1))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut ended = Box::pin(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    let model = HubFolder::read(&args.model_dir).context("the model's folder")?;
    let model = ModelText::of_folder(&args.model, model).with_context_max(args.context_max);
    let listener = TcpListener::bind(args.listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {}", args.listen))?;
    let runtime = planes::runtime(&args.etcd, &args.nats, LOOPBACK).await?;
    let front_end = {
        let mut starting = pin!(FrontEnd::start(runtime.clone(), args.front_end(), told));
        tokio::select! {
            started = &mut starting => Some(started?),
            () = &mut ended => None,
        }
    };
    let Some(front_end) = front_end else {
        return Ok(runtime.shutdown(PATIENCE).await?);
    };
    let server = Server::new(front_end.engine(), Arc::new(model), args.block_size);
    let server = server.with_readiness(front_end.readiness());
    say(&format!("ready http://{}", listener.local_addr()?));
    openai::serve(listener, server.into_router(), ended, PATIENCE).await?;
    Ok(front_end.shutdown().await?)
}

fn told(served: &Served) {
    say(&served.to_json().to_string());
}

/// Writes a line; that nobody reads them ends no request.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Answers may go on for so long once the end is asked for.
const PATIENCE: Duration = Duration::from_secs(10);
