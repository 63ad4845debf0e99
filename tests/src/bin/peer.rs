//! A server, or a client, that a test starts as a process of its own and does something bad to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
    let (release, counts) = (watch::Sender::new(false), Arc::<Counts>::default());
    let options = ServeOptions::default().with_inflight_max(inflight_max).with_waiting_max(1);
    let serving = dynamo_tests::phases::endpoint(&runtime)?;
    let serving = serving.serve_with(engine(release.subscribe(), &counts), options).await?;
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
            ("started", _) => say(&counts.started.load(Ordering::Relaxed).to_string()).await?,
            ("flooded", _) => say(&counts.flooded.load(Ordering::Relaxed).to_string()).await?,
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

/// What the engine has done.
#[derive(Debug, Default)]
struct Counts {
    /// Requests that it was asked.
    started: AtomicU64,
    /// Items of floods that it gave out.
    flooded: AtomicU64,
}

/// Answers with three items, and waits for its release where it is told to.
fn engine(
    release: watch::Receiver<bool>,
    counts: &Arc<Counts>,
) -> impl Engine<Request = String, Response = u32> {
    let counts = Arc::clone(counts);
    engine_fn(move |ctx: Context, phase: String| {
        counts.started.fetch_add(1, Ordering::Relaxed);
        let (release, counts) = (release.clone(), Arc::clone(&counts));
        let released = async move |is_here: bool| {
            if is_here {
                // The sender lives as long as the process.
                let _ = release.clone().wait_for(|is_released| *is_released).await;
            }
        };
        async move {
            if phase == "flood" {
                // Behind the first item each takes five bytes.
                let items = stream::iter((0..1).chain(1 << 16..)).map(move |item| {
                    counts.flooded.fetch_add(1, Ordering::Relaxed);
                    Ok(item)
                });
                return Ok(ResponseStream::new(&ctx, items));
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

/// Makes a request, and says how far it is.
async fn call(address: &str, id: u64, phase: &str) -> Result<()> {
    let caller = dynamo_tests::phases::Caller::start(address, id).await?;
    let call = caller.client.generate(Context::new(), phase.to_owned());
    tokio::pin!(call);
    let connects = async {
        while caller.connections() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let answered = tokio::select! {
        biased;
        answered = &mut call => Some(answered),
        () = connects => None,
    };
    say("connected").await?;
    let mut stream = match answered {
        Some(answered) => answered?,
        None => call.await?,
    };
    say("begun").await?;
    while let Some(item) = stream.next().await {
        item?;
        say("item").await?;
    }
    say("complete").await
}

/// Longer than a test waits.
const DRAIN_MAX: Duration = Duration::from_secs(30);
