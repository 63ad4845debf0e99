//! The front end of a fleet: OpenAI's API over engines that others wrote, which sidecars have registered.

mod args;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use dynamo_examples::front_end::{FrontEnd, Served};
use dynamo_examples::model::HubFolder;
use dynamo_examples::openai::{self, Server};
use dynamo_examples::planes;
use dynamo_examples::process::{EndSignals, log_warnings, say};
use dynamo_examples::text::ModelText;
use tokio::net::TcpListener;

use args::Args;

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse(std::env::args().skip(1))?;
    log_warnings();
    let mut signals = EndSignals::new()?;
    let model = HubFolder::read(&args.model_dir).context("the model's folder")?;
    let model = ModelText::of_folder(&args.model, model).with_context_max(args.context_max);
    let listener = TcpListener::bind(args.listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {}", args.listen))?;
    let runtime = tokio::select! {
        runtime = planes::runtime(&args.etcd, &args.nats, planes::on_loopback()) => runtime?,
        () = signals.next() => return Ok(()),
    };
    let starting = Box::pin(FrontEnd::start(runtime.clone(), args.front_end(), told));
    let started = tokio::select! {
        started = starting => Some(started),
        () = signals.next() => None,
    };
    let front_end = match started {
        Some(Ok(front_end)) => front_end,
        ended => {
            runtime.shutdown(PATIENCE).await?;
            return Ok(ended.transpose().map(drop)?);
        }
    };
    let server = Server::new(front_end.engine(), Arc::new(model), args.block_size);
    let server = server.with_readiness(front_end.readiness());
    say(&format!("ready http://{}", listener.local_addr()?));
    let ended = async move { signals.next().await };
    openai::serve(listener, server.into_router(), ended, PATIENCE).await?;
    Ok(front_end.shutdown().await?)
}

fn told(served: &Served) {
    say(&served.to_json().to_string());
}

/// Answers may go on for so long once the end is asked for.
const PATIENCE: Duration = Duration::from_secs(10);
