//! `cargo xtask bench transfer-soak`: a million transfers of 4 KiB over each backend, 16 in flight,
//! one of twenty dropped on its way; at the end nothing is left of them.
#![expect(clippy::print_stdout, reason = "a program says what it finds")]
#![expect(clippy::cast_precision_loss, reason = "figures")]

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dynamo_core::random::Random;
use dynamo_tests::process::{self, Process};
use dynamo_transfer::{
    Agent, BackendKind, HostBuffer, RegisteredRegion, RemoteAgent, TransferOptions,
};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::task::JoinSet;
use tokio::time::Instant;

use reached::reached_over;
use table::{Metric, Table};

#[path = "../../../dynamo-transfer/tests/support/reached.rs"]
mod reached;
#[expect(unreachable_pub, reason = "another program has it as its own")]
#[path = "../../../peers/request-plane/src/table.rs"]
mod table;

fn main() -> Result<ExitCode> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    // What talks over pipes has one thread, so that threads can be counted.
    let runtime = runtime.worker_threads(2).max_blocking_threads(1).enable_all().build()?;
    runtime.block_on(run_as_told())
}

async fn run_as_told() -> Result<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [word, backend] = &args[..]
        && word == "own"
    {
        own(backend.parse()?).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let transfers = args.get(1).map_or(Ok(1_000_000), |n| n.parse());
    let transfers = transfers.context("PATH TRANSFERS BACKEND...")?;
    let named = args.iter().skip(2).map(|name| Ok(name.parse()?)).collect::<Result<Vec<_>>>()?;
    let is_known = |named: &BackendKind| BETWEEN_AGENTS.contains(named);
    ensure!(named.iter().all(is_known), "there are memcpy, shm, ucx and tcp");
    let backends = if named.is_empty() { BETWEEN_AGENTS.to_vec() } else { named };
    let (mut table, mut is_good) = (Table::default(), true);
    for backend in backends {
        is_good &= soak(backend, transfers, &mut table).await?;
    }
    table.print();
    if let Some(path) = args.first() {
        table.write(path)?;
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Owns a region until the pipe is closed; tells what is left for each line.
async fn own(backend: BackendKind) -> Result<()> {
    let agent = Agent::start(reached_over(backend).with_name("owner")).await?;
    let region = agent.register_peer_writable(vec![HostBuffer::new(REGION_BYTES)])?;
    let metadata = agent.metadata([region.grant()])?;
    process::say(&serde_json::to_string(&metadata[..])?).await?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while lines.next_line().await?.is_some() {
        process::say(&serde_json::to_string(&Left::here(&agent)?.0)?).await?;
    }
    region.close().await;
    agent.shutdown().await;
    Ok(())
}

/// What a process has at one moment, in the order of [`NAMES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Left([usize; 5]);

impl Left {
    fn here(agent: &Agent) -> Result<Self> {
        let (resident, files) =
            (usize::try_from(process::resident_kib()?)?, process::open_files()?);
        let threads = std::fs::read_dir("/proc/self/task")?.count();
        let stats = agent.stats();
        let in_flight = usize::try_from(stats.in_flight())?;
        Ok(Self([resident, files, threads, stats.regions, in_flight]))
    }

    fn resident(self) -> usize {
        self.0[0]
    }

    /// Compares everything but the memory; fewer files or threads are none left.
    fn is_as(self, before: Self) -> bool {
        self.0[1..3].iter().zip(&before.0[1..3]).all(|(now, before)| now <= before)
            && self.0[3..] == before.0[3..]
    }
}

const NAMES: &str = "KiB, files, threads, regions, in flight";

/// The two sides of a soak; with memcpy they are one process.
struct Sides {
    initiator: Agent,
    /// Of this process, with its region.
    own: Option<(Agent, RegisteredRegion<HostBuffer>)>,
    process: Option<Process>,
    peer: RemoteAgent,
}

impl Sides {
    async fn start(backend: BackendKind) -> Result<Self> {
        let config = reached_over(backend);
        let initiator = Agent::start(config.clone().with_name("initiator")).await?;
        if backend == BackendKind::Memcpy {
            let owner = Agent::start(config.with_name("owner")).await?;
            let region = owner.register_peer_writable(vec![HostBuffer::new(REGION_BYTES)])?;
            let peer = initiator.load_metadata(&owner.metadata([region.grant()])?)?;
            return Ok(Self { initiator, own: Some((owner, region)), process: None, peer });
        }
        let mut process = Process::start(&std::env::current_exe()?, ["own", &backend.to_string()])?;
        let metadata: Vec<u8> = serde_json::from_str(&process.line().await?)?;
        let peer = initiator.load_metadata(&metadata)?;
        Ok(Self { initiator, own: None, process: Some(process), peer })
    }

    async fn left(&mut self) -> Result<[Left; 2]> {
        let here = Left::here(&self.initiator)?;
        let there = match (&self.own, &mut self.process) {
            (Some((owner, _)), _) => Left::here(owner)?,
            (None, Some(process)) => Left(serde_json::from_str(&process.ask("?").await?)?),
            (None, None) => here,
        };
        Ok([here, there])
    }
}

async fn soak(backend: BackendKind, transfers: usize, table: &mut Table) -> Result<bool> {
    let mut sides = Sides::start(backend).await?;
    let region = sides.initiator.register_mut(vec![HostBuffer::new(REGION_BYTES)])?;
    let region = Arc::new(region);
    run(&sides, &region, transfers / 100).await?;
    let before = sides.left().await?;
    println!("{backend}: {NAMES}; at first {:?}, owner {:?}", before[0].0, before[1].0);
    let (mut sizes, mut took, mut ends) = (Vec::new(), Duration::ZERO, Ends::default());
    for tenth in 1..=10 {
        let begun = Instant::now();
        ends += run(&sides, &region, transfers / 10).await?;
        took += begun.elapsed();
        let left = sides.left().await?;
        sizes.push(left.map(Left::resident));
        if matches!(tenth, 1 | 5 | 10) {
            println!("  {tenth}0 %: {:?}, owner {:?}", left[0].0, left[1].0);
        }
    }
    println!("  {ends:?}");
    let after = settled(&mut sides, before).await?;
    println!("  settled: {:?}, owner {:?}", after[0].0, after[1].0);
    let is_settled = after[0].is_as(before[0]) && after[1].is_as(before[1]);
    let grown = [0, 1].map(|side| sizes[9][side].saturating_sub(sizes[4][side]));
    let workload = format!("{backend}, {transfers} x 4 KiB, 5 % dropped");
    let rate = transfers as f64 / took.as_secs_f64();
    table.row(&workload, Metric::higher("transfers", "1/s"), rate, None, None);
    let most = Some(GROWTH_KIB_MAX as f64);
    for (side, name) in ["initiator grows", "owner grows"].into_iter().enumerate() {
        table.row(&workload, Metric::lower(name, "KiB"), grown[side] as f64, None, most);
    }
    let left = f64::from(u8::from(!is_settled));
    table.row(&workload, Metric::lower("something is left", "1"), left, None, Some(0.0));
    let region = Arc::into_inner(region).context("nobody has the region")?;
    tokio::time::timeout(SETTLED_MAX, region.close()).await.context("the region is held")?;
    sides.initiator.shutdown().await;
    Ok(is_settled && grown.iter().all(|grown| *grown <= GROWTH_KIB_MAX))
}

/// Waits until both sides are as they were, or will not be.
async fn settled(sides: &mut Sides, before: [Left; 2]) -> Result<[Left; 2]> {
    let begun = Instant::now();
    loop {
        let now = sides.left().await?;
        let is_settled = now[0].is_as(before[0]) && now[1].is_as(before[1]);
        if is_settled || begun.elapsed() > SETTLED_MAX {
            return Ok(now);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How transfers ended.
#[derive(Debug, Clone, Copy, Default)]
struct Ends {
    complete: usize,
    dropped: usize,
}

impl std::ops::AddAssign for Ends {
    fn add_assign(&mut self, other: Self) {
        self.complete += other.complete;
        self.dropped += other.dropped;
    }
}

/// Makes so many transfers, and adds up how they ended.
async fn run(
    sides: &Sides,
    region: &Arc<RegisteredRegion<HostBuffer>>,
    transfers: usize,
) -> Result<Ends> {
    let left = Arc::new(AtomicUsize::new(transfers));
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let (agent, peer) = (sides.initiator.clone(), sides.peer.clone());
        let (region, left) = (Arc::clone(region), Arc::clone(&left));
        callers.spawn(async move {
            let (mut random, mut ends) = (Random::unseeded(), Ends::default());
            let take = |left: usize| left.checked_sub(1);
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
                let one = transfer(&agent, &peer, &region, caller, &mut random);
                ends += tokio::time::timeout(SETTLED_MAX, one).await.context("hangs")??;
            }
            Result::<Ends>::Ok(ends)
        });
    }
    let mut ends = Ends::default();
    while let Some(caller) = callers.join_next().await {
        ends += caller??;
    }
    Ok(ends)
}

/// Reads or writes one block, and perhaps drops it on its way; now and then with a region of its own.
async fn transfer(
    agent: &Agent,
    peer: &RemoteAgent,
    region: &RegisteredRegion<HostBuffer>,
    caller: usize,
    random: &mut Random,
) -> Result<Ends> {
    let mut below = |bound| random.below(bound).unwrap_or_default();
    let (is_write, is_dropped, is_own) = (below(2) == 1, below(20) == 0, below(100) == 0);
    // Each caller in a part of the regions where nobody else is.
    let block = (caller * BLOCKS + below(BLOCKS)) * BLOCK_BYTES;
    let range = [(block as u64, BLOCK_BYTES as u64)];
    let own = is_own.then(|| agent.register_mut(vec![HostBuffer::new(BLOCK_BYTES)])).transpose()?;
    let local = match &own {
        Some(own) => own.descriptor([(0, BLOCK_BYTES as u64)])?,
        None => region.descriptor(range)?,
    };
    let (remote, options) = (peer.regions()[0].descriptor(range)?, TransferOptions::default());
    let mut transfer = Box::pin(if is_write {
        agent.write(local, remote, options)
    } else {
        agent.read(local, remote, options)
    });
    let mut ends = Ends::default();
    if is_dropped {
        for _ in 0..below(4) {
            // On its way, or there already.
            let _ = futures::poll!(&mut transfer);
            tokio::task::yield_now().await;
            if transfer.progress().bytes_moved > 0 {
                break;
            }
        }
        drop(transfer);
        ends.dropped = 1;
    } else {
        let report = transfer.await?;
        ensure!(report.bytes == BLOCK_BYTES as u64, "{report:?}");
        ends.complete = 1;
    }
    if let Some(own) = own {
        own.close().await;
    }
    Ok(ends)
}

const CALLERS: usize = 16;

/// Of each caller.
const BLOCKS: usize = 64;

const BLOCK_BYTES: usize = 4 << 10;
const REGION_BYTES: usize = CALLERS * BLOCKS * BLOCK_BYTES;
const SETTLED_MAX: Duration = Duration::from_secs(20);

/// What an allocator's noise comes to over half a million transfers: four bytes for each.
const GROWTH_KIB_MAX: usize = 2048;

/// Those that need no file and no device.
const BETWEEN_AGENTS: [BackendKind; 4] =
    [BackendKind::Memcpy, BackendKind::Shm, BackendKind::Ucx, BackendKind::Tcp];
