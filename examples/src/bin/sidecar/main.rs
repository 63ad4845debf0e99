//! The sidecar of one engine server: an instance of a component as long as the engine answers.

mod args;

use std::io::Write as _;
use std::time::Duration;

use anyhow::Result;
use dynamo_examples::planes;
use dynamo_examples::sidecar::Sidecar;
use tokio::signal::unix::{SignalKind, signal};

use args::Args;

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse(std::env::args().skip(1))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut told = async move || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let planes = planes::runtime(&args.etcd, &args.nats, args.listen);
    let runtime = tokio::select! {
        runtime = planes => runtime?,
        () = told() => return Ok(()),
    };
    let sidecar = tokio::select! {
        sidecar = Sidecar::start(&runtime, args.sidecar.clone()) => Some(sidecar?),
        () = told() => None,
    };
    if let Some(sidecar) = sidecar {
        let instance = sidecar.instance();
        say(&format!("ready {} {} {}", args.sidecar.name, instance.id, instance.address));
        told().await;
        tokio::select! {
            report = sidecar.drain(args.drain) => {
                say(&format!("drained: {} finished, {} ended", report.finished, report.killed));
            }
            () = told() => say("told to end twice: requests were not waited for"),
        }
    }
    Ok(runtime.shutdown(ENDING_MAX).await?)
}

/// Writes a line; that nobody reads them ends nothing.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Leaving the directory and closing connections takes a moment.
const ENDING_MAX: Duration = Duration::from_secs(10);
