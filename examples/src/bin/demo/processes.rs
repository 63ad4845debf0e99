//! The graph as processes of their own: etcd, NATS, a front end and four workers on loopback.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use dynamo_core::Runtime;
use dynamo_examples::graph::{GraphConfig, GraphWorker};
use dynamo_examples::model::Model;
use dynamo_examples::planes::{self, LOOPBACK};
use dynamo_examples::servers::Servers;
use dynamo_transfer::{AgentConfig, UcxConfig};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use crate::args::{Args, MEMORY, Worker};

/// The servers and workers that a front end has started; dropping it kills them.
pub(crate) struct Processes {
    servers: Servers,
    workers: Vec<(String, Child)>,
}

impl Processes {
    /// Starts etcd and NATS, and returns a runtime on them.
    pub(crate) async fn start() -> Result<(Self, Runtime)> {
        let servers = Servers::start()?;
        let runtime =
            planes::runtime(servers.etcd(), servers.nats(), planes::on_loopback()).await?;
        Ok((Self { servers, workers: Vec::new() }, runtime))
    }

    /// Starts a worker process; it serves once it has loaded the model.
    pub(crate) fn worker(&mut self, name: &str, args: &Args) -> Result<()> {
        let backend = args.backend.as_deref();
        agent(backend)?;
        let program = std::env::current_exe().context("where the demo is")?;
        let worker = Command::new(program)
            .args(["--worker", name, "--etcd", self.servers.etcd()])
            .args(["--nats", self.servers.nats(), "--model"])
            .arg(&args.model)
            .args(args.caches())
            .args(backend.map(|backend| ["--backend", backend]).into_iter().flatten())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start worker {name}"))?;
        self.workers.push((name.to_owned(), worker));
        Ok(())
    }

    /// Asks the workers to end and waits for them, then ends the servers.
    pub(crate) async fn end(mut self) -> Result<()> {
        for (name, mut worker) in self.workers.drain(..) {
            // Its end of the pipe closes: that is the word.
            drop(worker.stdin.take());
            let ended = tokio::time::timeout(ENDING_MAX, worker.wait()).await;
            let ended = ended.with_context(|| format!("worker {name} does not end"))??;
            if !ended.success() {
                bail!("worker {name} ended with {ended}");
            }
        }
        self.servers.end().await
    }
}

/// Is a worker until the front end closes the pipe.
pub(crate) async fn work(
    worker: &Worker,
    model: &Arc<Model>,
    backend: Option<&str>,
    config: &GraphConfig,
) -> Result<()> {
    let runtime = planes::runtime(&worker.etcd, &worker.nats, planes::on_loopback()).await?;
    let role = worker.name.split('-').next().unwrap_or_default();
    let agent = agent(backend)?;
    let serving = GraphWorker::start(&runtime, role, &worker.name, model, agent, config).await?;
    // Nothing is ever sent: the end is the word, also if the front end has died.
    tokio::io::stdin().read_to_end(&mut Vec::new()).await.context("waiting for the end")?;
    serving.end(ENDING_MAX / 2).await;
    runtime.shutdown(ENDING_MAX / 2).await?;
    Ok(())
}

/// What a worker offers its peers to move KV blocks by.
fn agent(backend: Option<&str>) -> Result<AgentConfig> {
    let agent = AgentConfig::default();
    Ok(match backend {
        None => agent.with_tcp_listen(LOOPBACK).with_shm(true),
        Some("tcp") => agent.with_tcp_listen(LOOPBACK),
        Some("shm") => agent.with_shm(true),
        Some("ucx") => agent.with_ucx(UcxConfig::default()),
        Some(other) => bail!("--backend {other}: there are tcp, shm, ucx and {MEMORY}"),
    })
}

/// A worker ends after the chunk it computes.
const ENDING_MAX: Duration = Duration::from_secs(30);
