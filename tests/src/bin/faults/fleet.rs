//! The workers: processes of this very program that serve over TCP and are found over etcd.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use dynamo_core::discovery::{EtcdConfig, EtcdDiscovery};
use dynamo_core::event_plane::MemoryEventPlane;
use dynamo_core::protocol::{GenerateChunk, GenerateRequest, InstanceId};
use dynamo_core::random::Random;
use dynamo_core::request_plane::{TcpConfig, TcpRequestPlane};
use dynamo_core::{Client, Endpoint, Runtime};
use dynamo_tests::process::{self, Process};
use dynamo_tests::tokens;
use tokio::io::AsyncReadExt;

/// How many workers there are, but for the time that one needs to start.
pub(crate) const WORKERS: usize = 4;

pub(crate) struct Fleet {
    etcd: String,
    program: PathBuf,
    runtime: Runtime,
    workers: Vec<(InstanceId, Process)>,
}

impl Fleet {
    pub(crate) async fn start(etcd: String) -> Result<Self> {
        let program = std::env::current_exe().context("where this program is")?;
        let runtime = runtime(&etcd, false).await?;
        let mut fleet = Self { etcd, program, runtime, workers: Vec::new() };
        for _ in 0..WORKERS {
            let worker = fleet.worker().await?;
            fleet.workers.push(worker);
        }
        Ok(fleet)
    }

    /// The runtime of those who call the workers.
    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    pub(crate) fn pick(&self, random: &mut Random) -> usize {
        random.below(WORKERS).unwrap_or_default()
    }

    pub(crate) fn id(&self, at: usize) -> InstanceId {
        self.workers[at].0
    }

    pub(crate) fn kill(&mut self, at: usize) -> Result<()> {
        self.workers[at].1.kill()
    }

    pub(crate) async fn signal(&self, at: usize, name: &str) -> Result<()> {
        self.workers[at].1.signal(name).await
    }

    /// Puts a new worker into the place of one that was killed.
    pub(crate) async fn replace(&mut self, at: usize) -> Result<()> {
        self.workers[at].1.ended().await?;
        self.workers[at] = self.worker().await?;
        Ok(())
    }

    /// Waits until a newcomer finds every worker.
    pub(crate) async fn wait_listed(&self) -> Result<()> {
        let newcomer = runtime(&self.etcd, false).await?;
        let client: Client<_, _> = endpoint(&newcomer)?.client().await?;
        let listed = async {
            loop {
                let known = client.instances();
                let is_known = |id: &InstanceId| known.iter().any(|instance| instance.id == *id);
                if self.workers.iter().all(|(id, _)| is_known(id)) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LISTED_MAX, listed).await.context("not all are listed")?;
        drop(client);
        Ok(newcomer.shutdown(LISTED_MAX).await?)
    }

    pub(crate) async fn end(mut self) -> Result<()> {
        for (_, mut worker) in self.workers.drain(..) {
            worker.ended().await?;
        }
        Ok(self.runtime.shutdown(LISTED_MAX).await?)
    }

    /// Starts a worker; it is listed when this returns.
    async fn worker(&self) -> Result<(InstanceId, Process)> {
        let mut worker = Process::start(&self.program, ["worker", &self.etcd])?;
        let id = worker.line().await?;
        Ok((InstanceId(id.parse().context("a worker says its id")?), worker))
    }
}

/// Is a worker until the pipe is closed.
pub(crate) async fn work(etcd: &str) -> Result<()> {
    let runtime = runtime(etcd, true).await?;
    let serving = endpoint(&runtime)?.serve(tokens::engine(PACE)).await?;
    process::say(&serving.instance().id.0.to_string()).await?;
    tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
    serving.drain(Duration::from_secs(5)).await;
    Ok(runtime.shutdown(Duration::from_secs(5)).await?)
}

pub(crate) fn endpoint(runtime: &Runtime) -> Result<Endpoint<GenerateRequest, GenerateChunk>> {
    Ok(runtime.namespace("faults")?.component("worker")?.endpoint("generate")?)
}

async fn runtime(etcd: &str, listens: bool) -> Result<Runtime> {
    let config = TcpConfig::default();
    let loopback = ([127, 0, 0, 1], 0).into();
    let config = if listens { config.with_listen(loopback) } else { config };
    let requests = TcpRequestPlane::start(config).await?;
    let discovery = EtcdDiscovery::start(EtcdConfig::new([etcd]))?;
    Ok(Runtime::new(Arc::new(discovery), Arc::new(requests), Arc::<MemoryEventPlane>::default()))
}

/// A token takes as long as one of a fast model.
const PACE: Duration = Duration::from_millis(4);
const LISTED_MAX: Duration = Duration::from_secs(60);
