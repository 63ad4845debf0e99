//! A server, or a client, that a test starts as a process of its own and does something bad to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use dynamo_core::event_plane::MemoryEventPlane;
use dynamo_core::request_plane::{TcpConfig, TcpRequestPlane};
use dynamo_core::{Context, Engine, ResponseStream, Runtime, ServeOptions, engine_fn};
use dynamo_tests::process::{self, say};
use futures::stream::{self, StreamExt};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::watch;

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["serve", listen, inflight_max] => serve(listen.parse()?, inflight_max.parse()?).await,
        ["call", address, id, phase] => call(address, id.parse()?, phase).await,
        _ => bail!("serve LISTEN INFLIGHT_MAX, or call ADDRESS ID PHASE"),
    }
}

async fn serve(listen: SocketAddr, inflight_max: usize) -> Result<()> {
    let config = TcpConfig::default().with_listen(listen).with_plaintext_allowed();
    let plane = Arc::new(TcpRequestPlane::start(config).await?);
    let runtime = Runtime::new(Arc::<Directory>::default(), plane, Arc::<Events>::default());
    let (release, starts) = (watch::Sender::new(false), Arc::<AtomicUsize>::default());
    let options = ServeOptions::default().with_inflight_max(inflight_max).with_waiting_max(1);
    let serving = dynamo_tests::phases::endpoint(&runtime)?;
    let serving = serving.serve_with(engine(release.subscribe(), &starts), options).await?;
    let instance = serving.instance();
    say(&format!("{} {}", instance.address, instance.id.0)).await?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let (mut serving, mut draining) = (Some(serving), tokio::task::JoinSet::new());
    while let Some(line) = lines.next_line().await? {
        match (line.as_str(), &serving) {
            ("left", serving) => {
                let counts = serving.as_ref().map_or((0, 0), |s| (s.inflight(), s.waiting()));
                let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
                let (running, waiting) = counts;
                say(&format!("{running} {waiting} {tasks} {}", process::open_files()?)).await?;
            }
            ("started", _) => say(&starts.load(Ordering::Relaxed).to_string()).await?,
            ("release", _) => {
                release.send_replace(true);
                say("released").await?;
            }
            ("drain", Some(_)) => {
                let drain = serving.take().context("it serves")?.drain(DRAIN_MAX);
                let mut drain = Box::pin(drain);
                // It has begun before anyone is told.
                ensure!(futures::poll!(&mut drain).is_pending(), "nothing to drain");
                draining.spawn(drain);
                say("draining").await?;
            }
            ("drained", None) => {
                let report = draining.join_next().await.context("it drains")??;
                say(&format!("{} {}", report.finished, report.killed)).await?;
            }
            (line, _) => bail!("{line:?}"),
        }
    }
    Ok(())
}

type Directory = dynamo_core::discovery::MemoryDiscovery;
type Events = MemoryEventPlane;

/// Answers with three items, and waits for its release where it is told to; counts its starts.
fn engine(
    release: watch::Receiver<bool>,
    starts: &Arc<AtomicUsize>,
) -> impl Engine<Request = String, Response = u32> {
    let starts = Arc::clone(starts);
    engine_fn(move |ctx: Context, phase: String| {
        starts.fetch_add(1, Ordering::Relaxed);
        let release = release.clone();
        let released = async move |is_here: bool| {
            if is_here {
                // The sender lives as long as the process.
                let _ = release.clone().wait_for(|is_released| *is_released).await;
            }
        };
        async move {
            if phase == "flood" {
                return Ok(ResponseStream::new(&ctx, stream::iter(0..).map(Ok)));
            }
            released(phase == "before accept").await;
            let items = stream::unfold((0, phase, released), |(n, phase, released)| async move {
                released(n == 0 && phase == "before first item").await;
                released(n == 1 && phase == "mid-stream").await;
                (n < 3).then_some((Ok(n), (n + 1, phase, released)))
            });
            Ok(ResponseStream::new(&ctx, items))
        }
    })
}

async fn call(address: &str, id: u64, phase: &str) -> Result<()> {
    let caller = dynamo_tests::phases::Caller::start(address, id).await?;
    say("calling").await?;
    let mut stream = caller.client.generate(Context::new(), phase.to_owned()).await?;
    while let Some(item) = stream.next().await {
        item?;
    }
    say("complete").await
}

/// Longer than a test waits.
const DRAIN_MAX: Duration = Duration::from_secs(30);
