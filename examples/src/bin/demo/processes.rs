//! The graph as processes of their own: etcd, NATS, a front end and four workers on loopback.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use dynamo_core::Runtime;
use dynamo_core::discovery::{EtcdConfig, EtcdDiscovery};
use dynamo_core::event_plane::{NatsConfig, NatsEventPlane};
use dynamo_core::request_plane::{TcpConfig, TcpRequestPlane};
use dynamo_examples::graph::{GraphConfig, GraphWorker};
use dynamo_examples::model::Model;
use dynamo_transfer::AgentConfig;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use crate::args::Worker;

/// The servers and workers that a front end has started; dropping it kills them.
pub(crate) struct Processes {
    servers: Vec<Child>,
    workers: Vec<(String, Child)>,
    folder: PathBuf,
    etcd: String,
    nats: String,
}

impl Processes {
    /// Starts etcd and NATS, and returns a runtime on them.
    pub(crate) async fn start() -> Result<(Self, Runtime)> {
        let (client, peer, nats) = (free_port()?, free_port()?, free_port()?);
        let folder = std::env::temp_dir().join(format!("dynamo-demo-{client}"));
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let mut etcd = Command::new("etcd");
        etcd.arg("--data-dir").arg(&folder);
        etcd.args(["--listen-client-urls", &url(client), "--advertise-client-urls", &url(client)]);
        etcd.args(["--listen-peer-urls", &url(peer)]);
        etcd.args(["--initial-advertise-peer-urls", &url(peer)]);
        etcd.args(["--initial-cluster", &format!("default={}", url(peer))]);
        let mut server = Command::new("nats-server");
        server.args(["-a", "127.0.0.1", "-p", &nats.to_string()]);
        let mut servers = Vec::new();
        for command in [&mut etcd, &mut server] {
            let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let started = quiet.kill_on_drop(true).spawn();
            servers.push(started.with_context(|| format!("cannot start {command:?}"))?);
        }
        let (etcd, nats) = (url(client), format!("nats://127.0.0.1:{nats}"));
        let runtime = runtime(&etcd, &nats).await?;
        Ok((Self { servers, workers: Vec::new(), folder, etcd, nats }, runtime))
    }

    /// Starts a worker process; it serves once it has loaded the model.
    pub(crate) fn worker(&mut self, name: &str, model: &Path) -> Result<()> {
        let program = std::env::current_exe().context("where the demo is")?;
        let worker = Command::new(program)
            .args(["--worker", name, "--etcd", &self.etcd, "--nats", &self.nats, "--model"])
            .arg(model)
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
        for mut server in self.servers.drain(..) {
            server.kill().await.context("ending a server")?;
        }
        std::fs::remove_dir_all(&self.folder).context("removing the folder of etcd")
    }
}

/// Is a worker until the front end closes the pipe.
pub(crate) async fn work(worker: &Worker, model: &Arc<Model>, config: &GraphConfig) -> Result<()> {
    let runtime = runtime(&worker.etcd, &worker.nats).await?;
    let role = worker.name.split('-').next().unwrap_or_default();
    let agent = AgentConfig::default().with_tcp_listen(loopback());
    let serving = GraphWorker::start(&runtime, role, &worker.name, model, agent, config).await?;
    // Nothing is ever sent: the end is the word, also if the front end has died.
    tokio::io::stdin().read_to_end(&mut Vec::new()).await.context("waiting for the end")?;
    serving.end(ENDING_MAX / 2).await;
    runtime.shutdown(ENDING_MAX / 2).await?;
    Ok(())
}

/// A runtime that reaches other processes.
async fn runtime(etcd: &str, nats: &str) -> Result<Runtime> {
    let discovery = EtcdDiscovery::start(EtcdConfig::new([etcd]))?;
    let requests = TcpRequestPlane::start(TcpConfig::default().with_listen(loopback())).await?;
    let events = NatsEventPlane::start(NatsConfig::new(nats)).await?;
    Ok(Runtime::new(Arc::new(discovery), Arc::new(requests), Arc::new(events)))
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(loopback()).context("looking for a free port")?;
    Ok(listener.local_addr()?.port())
}

/// A worker ends after the chunk it computes.
const ENDING_MAX: Duration = Duration::from_secs(30);
