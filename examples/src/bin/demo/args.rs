//! The arguments of the demo.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};
use dynamo_examples::disk::DiskOptions;
use dynamo_examples::engine::WorkerOptions;
use dynamo_router::RouterConfig;

/// What was asked for on the command line.
#[derive(Debug)]
pub(crate) struct Args {
    pub(crate) model: PathBuf,
    pub(crate) aggregated: bool,
    pub(crate) serve: bool,
    pub(crate) prompt: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) processes: bool,
    /// What workers move KV blocks by; whatever is cheapest if `None`. All but [`MEMORY`] is between
    /// processes.
    pub(crate) backend: Option<String>,
    /// KV blocks per worker in memory.
    pub(crate) host_blocks: Option<usize>,
    /// Where workers keep blocks that memory has no room for.
    pub(crate) disk: Option<DiskOptions>,
    /// How requests are routed, and whether what each worker would have cost is told.
    pub(crate) router: RouterConfig,
    /// This process is a worker of `--processes`.
    pub(crate) worker: Option<Worker>,
}

/// What a worker process is told by the front end that starts it.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) name: String,
    pub(crate) etcd: String,
    pub(crate) nats: String,
}

impl Args {
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Self> {
        let (mut model, mut prompt, mut port) = (None, None, None);
        let (mut aggregated, mut serve, mut processes) = (false, false, false);
        let (mut worker, mut etcd, mut nats, mut backend) = (None, None, None, None);
        let (mut host_blocks, mut disk, mut disk_blocks) = (None, None, None);
        let mut router = RouterConfig::default();
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--model" => model = Some(PathBuf::from(value()?)),
                "--prompt" => prompt = Some(value()?),
                "--port" => port = Some(value()?.parse().context("--port takes 0 to 65535")?),
                "--worker" => worker = Some(value()?),
                "--etcd" => etcd = Some(value()?),
                "--nats" => nats = Some(value()?),
                "--backend" => backend = Some(value()?),
                "--host-blocks" => host_blocks = Some(number(&arg, &value()?)?),
                "--disk" => disk = Some(PathBuf::from(value()?)),
                "--disk-blocks" => disk_blocks = Some(number(&arg, &value()?)?),
                "--processes" => processes = true,
                "--aggregated" => aggregated = true,
                "--serve" => serve = true,
                "--explain" => router.explain = true,
                other => bail!("unknown argument {other}; {USAGE}"),
            }
        }
        let model = model.with_context(|| format!("--model is missing; {USAGE}"))?;
        let worker = match (worker, etcd, nats) {
            (None, None, None) => None,
            (Some(name), Some(etcd), Some(nats)) => Some(Worker { name, etcd, nats }),
            _ => bail!("--worker, --etcd and --nats go together"),
        };
        let disk = match (disk, disk_blocks) {
            (None, None) => None,
            (Some(dir), Some(blocks)) => Some(DiskOptions { dir, blocks }),
            _ => bail!("--disk and --disk-blocks go together"),
        };
        if let Some(backend) = &backend {
            match (backend == MEMORY, aggregated, processes) {
                (_, true, _) => bail!("--backend {backend}: nothing is moved with --aggregated"),
                (true, _, true) => bail!("--backend {MEMORY} is one process, not --processes"),
                (is_memory, ..) => processes = !is_memory && worker.is_none(),
            }
        }
        Ok(Self {
            model,
            aggregated,
            serve,
            prompt,
            port,
            processes,
            backend,
            host_blocks,
            disk,
            router,
            worker,
        })
    }

    /// Returns how workers compute: who asks for little memory gets one sequence into it at a time.
    pub(crate) fn worker_options(&self) -> WorkerOptions {
        let default = WorkerOptions::default();
        let sequences_max = if self.host_blocks.is_some() { 1 } else { default.sequences_max };
        WorkerOptions { sequences_max, ..default }
    }

    /// Returns what tells a worker process of the caches.
    pub(crate) fn caches(&self) -> Vec<String> {
        let blocks = self.host_blocks.map(|blocks| ["--host-blocks".into(), blocks.to_string()]);
        let disk = self.disk.iter().flat_map(|DiskOptions { dir, blocks }| {
            let dir = dir.to_string_lossy().into_owned();
            ["--disk".to_owned(), dir, "--disk-blocks".to_owned(), blocks.to_string()]
        });
        blocks.into_iter().flatten().chain(disk).collect()
    }
}

/// Reads a number of blocks, which is at least 1.
fn number<N: FromStr + Default + PartialEq>(arg: &str, value: &str) -> Result<N> {
    let number = value.parse().ok().filter(|number| *number != N::default());
    number.with_context(|| format!("{arg} takes a number from 1 on, not {value}"))
}

/// Copies within one process.
pub(crate) const MEMORY: &str = "memory";

const USAGE: &str = "usage: demo --model PATH [--aggregated | --processes] [--backend tcp|shm|ucx|memory] [--serve] [--explain] [--host-blocks N] [--disk DIR --disk-blocks M] [--prompt TEXT] [--port PORT]";
