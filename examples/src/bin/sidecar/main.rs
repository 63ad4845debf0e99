//! The sidecar of one engine server: an instance of a component as long as the engine answers.

mod args;

use std::time::Duration;

use anyhow::Result;
use dynamo_core::Runtime;
use dynamo_examples::planes;
use dynamo_examples::process::{EndSignals, log_warnings, say};
use dynamo_examples::sidecar::Sidecar;

use args::Args;

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse(std::env::args().skip(1))?;
    log_warnings();
    let mut signals = EndSignals::new()?;
    let runtime = tokio::select! {
        runtime = planes::runtime(&args.etcd, &args.nats, args.tcp.clone()) => runtime?,
        () = signals.next() => return Ok(()),
    };
    let served = serve(&runtime, &args, &mut signals).await;
    runtime.shutdown(ENDING_MAX).await?;
    served
}

/// Serves the engine until a signal comes, and drains it; a second signal waits for no answer.
async fn serve(runtime: &Runtime, args: &Args, signals: &mut EndSignals) -> Result<()> {
    say(&format!("waiting for the engine at {}", args.sidecar.engine.url));
    let sidecar = tokio::select! {
        sidecar = Sidecar::start(runtime, args.sidecar.clone()) => sidecar?,
        () = signals.next() => return Ok(()),
    };
    let instance = sidecar.instance();
    say(&format!("ready {} {} {}", args.sidecar.name, instance.id, instance.address));
    signals.next().await;
    tokio::select! {
        report = sidecar.drain(args.drain) => {
            say(&format!("drained: {} finished, {} ended", report.finished, report.killed));
        }
        () = signals.next() => say("told to end twice: answers were not waited for"),
    }
    Ok(())
}

/// Leaving the directory and closing connections takes a moment.
const ENDING_MAX: Duration = Duration::from_secs(10);
