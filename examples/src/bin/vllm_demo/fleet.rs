//! The fleet: etcd, NATS, two vLLM servers, a sidecar for each; and front ends to it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use dynamo_examples::servers::{Servers, free_port};
use serde::Deserialize;
use tokio::process::Command;

use crate::args::Args;
use crate::engine::{BLOCK_SIZE, CONTEXT_LEN, MODEL, TOPIC, VllmServer};
use crate::process::Process;

/// Two vLLM servers as instances of a component; dropping it kills all.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) engines: Vec<VllmServer>,
    sidecars: Vec<Process>,
    servers: Servers,
    model: PathBuf,
    folder: PathBuf,
}

impl Fleet {
    /// Starts all, and waits until both engines are registered.
    pub(crate) async fn start(args: &Args, folder: &Path) -> Result<Self> {
        let servers = Servers::start()?;
        let engine = |name| VllmServer::start(name, args, folder);
        let mut engines = vec![engine("vllm-0")?, engine("vllm-1")?];
        let end_token = end_token(&args.model)?;
        let mut sidecars = Vec::new();
        for engine in &mut engines {
            engine.ready().await?;
            engine.warm_up().await?;
            sidecars.push(sidecar(engine, &end_token, &servers, folder)?);
        }
        for sidecar in &mut sidecars {
            sidecar.says_ready(READY_MAX).await?;
        }
        let (model, folder) = (args.model.clone(), folder.to_owned());
        Ok(Self { engines, sidecars, servers, model, folder })
    }

    /// Starts a front end that chooses by `policy`, and waits until it knows both engines.
    pub(crate) async fn front_end(
        &self,
        name: &str,
        policy: &str,
        port: Option<u16>,
    ) -> Result<FrontEnd> {
        let port = port.map_or_else(free_port, Ok)?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut command = Command::new(sibling("front_end")?);
        planes(&mut command, &self.servers);
        command.arg("--model-dir").arg(&self.model).args(["--router", policy, "--workers", "2"]);
        command.args(["--listen", &address.to_string(), "--context-len", CONTEXT_LEN]);
        let mut process = Process::start(name, command, &self.folder)?;
        process.says_ready(READY_MAX).await?;
        Ok(FrontEnd { process, address })
    }

    /// Has both engines forget what they have cached.
    pub(crate) async fn reset(&self) -> Result<()> {
        for engine in &self.engines {
            engine.reset().await?;
        }
        Ok(())
    }

    /// Ends the sidecars as an operator would, then everything.
    pub(crate) async fn end(mut self) -> Result<()> {
        for sidecar in &mut self.sidecars {
            sidecar.end().await?;
        }
        self.servers.end().await
    }
}

/// A front end of the fleet.
#[derive(Debug)]
pub(crate) struct FrontEnd {
    process: Process,
    pub(crate) address: SocketAddr,
}

/// What a front end says of a request that is over; as far as it is looked at here.
#[derive(Debug, Deserialize)]
pub(crate) struct Finished {
    /// All who began a part of the answer, in order.
    pub(crate) parts: Vec<String>,
    pub(crate) predicted_cached_tokens: Option<u64>,
    pub(crate) cached_tokens: Option<u64>,
}

impl Finished {
    /// Returns who served it last.
    pub(crate) fn worker(&self) -> &str {
        self.parts.last().map_or("nobody", String::as_str)
    }

    /// Tells whether as much was cached as the front end had expected.
    pub(crate) fn is_as_predicted(&self) -> bool {
        self.cached_tokens.is_some() && self.cached_tokens == self.predicted_cached_tokens
    }
}

impl FrontEnd {
    /// Ends it and returns what it said of its requests.
    pub(crate) async fn end(mut self) -> Result<Vec<Finished>> {
        self.process.end().await?;
        let printed = self.process.printed()?;
        let lines = printed.lines().filter(|line| line.starts_with('{'));
        lines.map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }
}

fn sidecar(
    engine: &VllmServer,
    end_token: &str,
    servers: &Servers,
    folder: &Path,
) -> Result<Process> {
    let mut command = Command::new(sibling("sidecar")?);
    planes(&mut command, servers);
    command.args(["--engine", &format!("http://{}", engine.address), "--name", engine.name()]);
    command.args(["--events", &engine.events, "--replay", &engine.replay, "--topic", TOPIC]);
    command.args(["--end-token", end_token]);
    Process::start(&format!("sidecar-{}", engine.name()), command, folder)
}

/// Adds what sidecars and front ends are told alike.
fn planes(command: &mut Command, servers: &Servers) {
    command.args(["--etcd", servers.etcd(), "--nats", servers.nats()]);
    command.args(["--component", "demo/vllm", "--model", MODEL, "--block-size", BLOCK_SIZE]);
}

/// Returns a program that was built together with this one.
fn sibling(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("where the demo is")?;
    Ok(own.with_file_name(name))
}

/// Returns the token by which the model ends its answers.
fn end_token(model: &Path) -> Result<String> {
    #[derive(Deserialize)]
    struct Config {
        eos_token_id: u32,
    }
    let path = model.join("config.json");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let config: Config = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    Ok(config.eos_token_id.to_string())
}

const READY_MAX: Duration = Duration::from_secs(60);
