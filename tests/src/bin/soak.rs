//! `cargo xtask bench soak`: a million short requests over TCP to another process, three of ten given
//! up at some point; at the end nothing is left of them.
#![expect(clippy::print_stdout, reason = "a program says what it finds")]
#![expect(clippy::cast_precision_loss, reason = "figures")]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dynamo_core::discovery::{Address, Discovery, MemoryDiscovery};
use dynamo_core::event_plane::MemoryEventPlane;
use dynamo_core::protocol::InstanceId;
use dynamo_core::random::Random;
use dynamo_core::request_plane::{TcpConfig, TcpRequestPlane};
use dynamo_core::{
    Client, Context, Endpoint, Engine, ErrorKind, Instance, Priority, ResponseStream, Runtime,
    ServeOptions, engine_fn,
};
use dynamo_tests::process::{self, Process};
use futures::stream::{self, StreamExt};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::task::JoinSet;
use tokio::time::Instant;

use table::{Metric, Table};

#[expect(unreachable_pub, reason = "another program has it as its own")]
#[path = "../../../peers/request-plane/src/table.rs"]
mod table;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("serve") => serve().await.map(|()| ExitCode::SUCCESS),
        path => {
            let requests = args.get(1).map_or(Ok(1_000_000), |n| n.parse());
            soak(path, requests.context("a number of requests")?).await
        }
    }
}

/// Serves until the pipe is closed; tells what is left for each line.
async fn serve() -> Result<()> {
    let config = TcpConfig::default().with_listen(([127, 0, 0, 1], 0).into());
    let runtime = runtime(config, Arc::default()).await?;
    // Some wait, so that priorities and deadlines matter.
    let options = ServeOptions::default().with_inflight_max(RUNNING).with_waiting_max(CALLERS);
    let short = engine_fn(|ctx: Context, count: u32| async move {
        let items = stream::iter(0..count).then(|n| async move {
            tokio::task::yield_now().await;
            Ok(n)
        });
        Ok(ResponseStream::new(&ctx, items))
    });
    let short = endpoint(&runtime, "short")?.serve_with(short, options).await?;
    let held = engine_fn(|ctx: Context, _: u32| async move {
        Ok(ResponseStream::new(&ctx, stream::pending()))
    });
    let options = ServeOptions::default().with_inflight_max(STREAMS_MAX);
    let held = endpoint(&runtime, "held")?.serve_with(held, options).await?;
    let (short_id, held_id) = (short.instance().id.0, held.instance().id.0);
    process::say(&format!("{} {short_id} {held_id}", short.instance().address)).await?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while lines.next_line().await?.is_some() {
        let left = Left::here(short.inflight() + held.inflight(), short.waiting())?;
        process::say(&serde_json::to_string(&left.0)?).await?;
    }
    Ok(())
}

/// What a process has at one moment, by name.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Left(BTreeMap<String, usize>);

impl Left {
    fn here(running: usize, waiting: usize) -> Result<Self> {
        let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let of = |name: &str, count| (name.to_owned(), count);
        let resident = usize::try_from(process::resident_kib()?)?;
        let files = process::open_files()?;
        Ok(Self(BTreeMap::from([
            of("running", running),
            of("waiting", waiting),
            of("tasks", tasks),
            of("files", files),
            of("resident", resident),
        ])))
    }

    async fn of(server: &mut Process) -> Result<Self> {
        Ok(Self(serde_json::from_str(&server.ask("?").await?)?))
    }

    fn get(&self, name: &str) -> usize {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// Compares everything but the memory.
    fn is_as(&self, other: &Self) -> bool {
        ["running", "waiting", "tasks", "files"].iter().all(|n| self.get(n) == other.get(n))
    }
}

async fn soak(path: Option<&str>, requests: usize) -> Result<ExitCode> {
    let mut server = Process::start(&std::env::current_exe()?, ["serve"])?;
    let line = server.line().await?;
    let words: Vec<_> = line.split(' ').collect();
    let [address, short, held] = words[..] else { anyhow::bail!("server says {line:?}") };
    let discovery = Arc::<MemoryDiscovery>::default();
    let runtime = runtime(TcpConfig::default(), Arc::clone(&discovery)).await?;
    let mut registrations = Vec::new();
    for (name, id) in [("short", short), ("held", held)] {
        let endpoint = endpoint(&runtime, name)?.path().clone();
        let (address, labels) = (Address(address.to_owned()), BTreeMap::new());
        let id = InstanceId(id.parse()?);
        let instance = Instance { id, incarnation: 0, endpoint, address, labels };
        registrations.push(discovery.register(instance).await?);
    }
    let client = endpoint(&runtime, "short")?.client().await?;
    let keeper = endpoint(&runtime, "held")?.client().await?;

    let mut table = Table::default();
    run(&client, requests / 100, &mut BTreeMap::new()).await?;
    let server_before = Left::of(&mut server).await?;
    let client_before = Left::here(0, 0)?;
    let (started, mut ends) = (Instant::now(), BTreeMap::new());
    let mut sizes = Vec::new();
    for tenth in 1..=10 {
        run(&client, requests / 10, &mut ends).await?;
        let sizes_now = [Left::here(0, 0)?, Left::of(&mut server).await?];
        let sizes_now = sizes_now.map(|left| left.get("resident"));
        println!("  {tenth}0 %: client {} KiB, server {} KiB", sizes_now[0], sizes_now[1]);
        sizes.push(sizes_now);
    }
    let rate = requests as f64 / started.elapsed().as_secs_f64();
    println!("  {ends:?}");
    let (client_after, server_after) = settled(&mut server, &client_before, &server_before).await?;
    println!("  client {:?} -> {:?}", client_before.0, client_after.0);
    println!("  server {:?} -> {:?}", server_before.0, server_after.0);
    // A stream that was left over would miss here: so many the connection has, and no more.
    let all = stream::iter(0..STREAMS_MAX).map(|_| keeper.generate(Context::new(), 0));
    let all: Vec<_> = all.buffer_unordered(CALLERS).collect().await;
    let held = all.iter().filter(|stream| stream.is_ok()).count();
    drop(all);

    let workload = format!("{requests} requests, 30 % given up");
    let mut row = |metric: Metric, value, target| {
        table.row(&workload, metric, value, None, target);
    };
    row(Metric::higher("requests", "1/s"), rate, None);
    let over = |name: &str| {
        let more = |after: &Left, before: &Left| after.get(name).abs_diff(before.get(name));
        (more(&client_after, &client_before) + more(&server_after, &server_before)) as f64
    };
    row(Metric::lower("left running", "1"), over("running"), Some(0.0));
    row(Metric::lower("left waiting", "1"), over("waiting"), Some(0.0));
    row(Metric::lower("left tasks", "1"), over("tasks"), Some(0.0));
    row(Metric::lower("left files", "1"), over("files"), Some(0.0));
    let missing = (STREAMS_MAX - held) as f64;
    row(Metric::lower("left streams", "1"), missing, Some(0.0));
    let mut grown = 0.0;
    for (side, name) in ["client", "server"].into_iter().enumerate() {
        let sizes: Vec<f64> = sizes.iter().map(|sizes| sizes[side] as f64).collect();
        let [first, .., last] = sizes[..] else { continue };
        println!("  {name}: first {first} KiB, last {last} KiB");
        let metric = if side == 0 { "client grows" } else { "server grows" };
        let slope = slope(&sizes);
        row(Metric::lower(metric, "KiB/10 %"), slope, Some(GROWTH_MAX));
        grown = f64::max(grown, slope);
    }
    table.print();
    if let Some(path) = path {
        table.write(path)?;
    }
    let is_good = client_after.is_as(&client_before)
        && server_after.is_as(&server_before)
        && held == STREAMS_MAX
        && grown <= GROWTH_MAX;
    drop((client, keeper));
    runtime.shutdown(SETTLED_MAX).await?;
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Waits until both sides are as they were, or will not be.
async fn settled(server: &mut Process, client: &Left, at_server: &Left) -> Result<(Left, Left)> {
    let started = Instant::now();
    loop {
        let now = (Left::here(0, 0)?, Left::of(server).await?);
        let is_settled = now.0.is_as(client) && now.1.is_as(at_server);
        if is_settled || started.elapsed() > SETTLED_MAX {
            return Ok(now);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Makes so many requests, and adds up how they ended.
async fn run(
    client: &Client<u32, u32>,
    requests: usize,
    ends: &mut BTreeMap<&'static str, usize>,
) -> Result<()> {
    let left = Arc::new(AtomicUsize::new(requests));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (client, left) = (client.clone(), Arc::clone(&left));
        callers.spawn(async move {
            let (mut random, mut ends) = (Random::unseeded(), BTreeMap::new());
            let take = |left: usize| left.checked_sub(1);
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
                *ends.entry(Box::pin(call(&client, &mut random)).await?).or_default() += 1;
            }
            Result::<BTreeMap<&str, usize>>::Ok(ends)
        });
    }
    while let Some(caller) = callers.join_next().await {
        for (end, count) in caller?? {
            *ends.entry(end).or_default() += count;
        }
    }
    Ok(())
}

/// Makes a request, and perhaps gives it up; tells how that ended.
async fn call(client: &Client<u32, u32>, random: &mut Random) -> Result<&'static str> {
    let level = u8::try_from(random.below(8).unwrap_or_default())?;
    let ctx = Context::new().with_priority(Priority::new(level).unwrap_or(Priority::NORMAL));
    let count = u32::try_from(1 + random.below(12).unwrap_or_default())?;
    let (way, items) = (random.below(20), random.below(count as usize).unwrap_or_default());
    // Six of twenty are given up.
    let ctx = if way == Some(0) { ctx.with_timeout(Duration::from_micros(300)) } else { ctx };
    let mut start = Box::pin(client.generate(ctx.clone(), count));
    let first = match way {
        Some(1 | 2) => futures::poll!(&mut start),
        _ => Poll::Pending,
    };
    match way {
        Some(1) => return Ok("dropped before it began"),
        Some(2) => ctx.kill(),
        _ => {}
    }
    let read = async {
        let mut stream = match first {
            // On a busy machine the answer may be there before the first look.
            Poll::Ready(started) => started?,
            Poll::Pending => start.await?,
        };
        let mut got = 0;
        while let Some(item) = stream.next().await {
            ensure!(item? == got, "items are in order");
            got += 1;
            match way {
                Some(3 | 4) if got as usize > items => return Ok("dropped"),
                Some(5) if got as usize > items => ctx.kill(),
                _ => {}
            }
        }
        ensure!(got == count, "{got} items of {count} and no error");
        Ok("complete")
    };
    let ended = tokio::time::timeout(SETTLED_MAX, read).await.context("a request hangs")?;
    ended.or_else(|error| {
        let kind = error.downcast_ref::<dynamo_core::Error>().map(dynamo_core::Error::kind);
        match (kind, way) {
            (Some(ErrorKind::Cancelled), Some(2 | 5)) => Ok("killed"),
            (Some(ErrorKind::DeadlineExceeded), Some(0)) => Ok("too late"),
            _ => Err(error),
        }
    })
}

/// The slope of the line with the least squares: how much more each time.
fn slope(values: &[f64]) -> f64 {
    let middle = (values.len() as f64 - 1.0) / 2.0;
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let (mut over, mut under) = (0.0, 0.0);
    for (at, value) in values.iter().enumerate() {
        over += (at as f64 - middle) * (value - mean);
        under += (at as f64 - middle).powi(2);
    }
    over / under
}

async fn runtime(config: TcpConfig, discovery: Arc<MemoryDiscovery>) -> Result<Runtime> {
    let requests = Arc::new(TcpRequestPlane::start(config).await?);
    Ok(Runtime::new(discovery, requests, Arc::<MemoryEventPlane>::default()))
}

fn endpoint(runtime: &Runtime, name: &str) -> Result<Endpoint<u32, u32>> {
    Ok(runtime.namespace("soak")?.component("worker")?.endpoint(name)?)
}

const CALLERS: usize = 256;
const RUNNING: usize = 64;
const SETTLED_MAX: Duration = Duration::from_secs(20);

/// The streams that a connection has by default.
const STREAMS_MAX: usize = 4096;

/// What an allocator's noise comes to; a hundred bytes lost for each request would be ten thousand.
const GROWTH_MAX: f64 = 256.0;
